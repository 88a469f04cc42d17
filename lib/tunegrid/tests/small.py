"""Small real objects for tests: quick cells, rows, tokenizers, and untrained models."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from tunegrid.audits import Evidence
from tunegrid.codecs.base import Prediction
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.recipes import FIXTURES, QUICK_PROFILE
from tunegrid.grid.tasks import TASKS
from tunegrid.record.record import EvaluationRecord
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.evaluate import Evaluation
from tunegrid.run.meter import Progress
from tunegrid.run.metrics import METRICS, Metrics
from tunegrid.run.prepare import make_codec, prepare
from tunegrid.run.ranks import ALONE
from tunegrid.run.train import Trainer

CPU = torch.device("cpu")


def quick_cell(cell_id: str, **changes) -> Cell:
    """A quick cell whose recipe differs by `changes`."""
    cell = STUDY.cell(cell_id, QUICK_PROFILE)
    return replace(cell, recipe=replace(cell.recipe, **changes))


@cache
def get_tokenizer(cell_id: str):
    return load_tokenizer(quick_cell(cell_id))


def get_codec(cell_id: str, **changes):
    return make_codec(quick_cell(cell_id, **changes), get_tokenizer(cell_id))


def quick_model(cell_id: str):
    torch.set_num_threads(1)
    return build(quick_cell(cell_id), get_tokenizer(cell_id), CPU)


@cache
def read_rows(name: str) -> list[dict]:
    """Every row of a file below fixtures/data, for example "squad/train"."""
    return [
        json.loads(line) for line in (FIXTURES / "data" / f"{name}.jsonl").read_text().splitlines()
    ]


def train_rows(cell_id: str) -> list[dict]:
    """Every row that a quick cell may train on if its task is one of the study's."""
    folders = {task.id: task.folder for task in TASKS}
    return read_rows(f"{folders[cell_id.split('_')[1]]}/train")


def four_update_cell(cell_id: str) -> Cell:
    """A quick cell of four updates at a high rate."""
    return quick_cell(
        cell_id,
        max_steps=4,
        learning_rate=1e-2,
        warmup_ratio=0.0,
        per_device_train_batch_size=4,
    )


def change_json(path: Path, **fields) -> None:
    """Changes fields of a JSON object in a file, such as a checkpoint's config.json."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def silent() -> Progress:
    return lambda *state: None


def fine_tuner(
    cell_id: str, rows, codec=None, ranks=ALONE, after_update=lambda trainer: None, **changes
) -> Trainer:
    """A trainer of a quick cell on these rows; the class `codec` replaces the cell's own codec."""
    return cell_trainer(quick_cell(cell_id, **changes), rows, codec, ranks, after_update)


def cell_trainer(
    cell: Cell, rows, codec=None, ranks=ALONE, after_update=lambda trainer: None
) -> Trainer:
    """The same as `fine_tuner`, for a cell of any grid."""
    torch.set_num_threads(1)
    own = codec and codec(cell, load_tokenizer(cell))
    return prepare(cell, rows, CPU, codec=own, ranks=ranks, after_update=after_update)


def get_evidence(trainer: Trainer, run: bool = False, **more) -> Evidence:
    """A trainer's evidence for the audits, before or after its updates; nothing is scored."""
    if run:
        trainer.run(silent())
    return Evidence(cell=trainer.cell, codec=trainer.codec, trainer=trainer, **more)


def evaluate_answers(cell_id: str, rows, answers) -> Evaluation:
    """An evaluation in which a quick cell's model gave these answers, scored by our metrics."""
    task = quick_cell(cell_id).task
    scored = METRICS[task.problem](Metrics(), task, rows, answers)
    return Evaluation(
        part=EvaluationRecord(seconds=None, loss=None, batch=None, metric_sources={}),
        scores=scored.scores,
        examples=scored.examples,
        rows=rows,
        features=[],
        outputs=[],
        predictions=[Prediction(value=answer) for answer in answers],
    )


def assert_passes(audit, evidence: Evidence) -> str:
    """Checks that an audit passes; returns its detail."""
    passed, detail = audit(evidence)
    assert passed, detail
    return detail


def assert_fails(audit, evidence: Evidence) -> str:
    """Checks that an audit fails; returns its detail."""
    passed, detail = audit(evidence)
    assert not passed, detail
    return detail


def still(trainer: Trainer) -> Trainer:
    """Turns off the trainer's dropout, which would draw differently for parts of a batch."""
    for module in (*trainer.model.modules(), *trainer.sharded_model.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return trainer
