"""What a quick cell is made of, as values that a test can exchange one by one; and its run from start to audit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from lib.codecs import codec_of
from lib.data.splits import Splits, load_splits
from lib.grid.cells import Cell, grid
from lib.grid.profiles import QUICK_PROFILE
from lib.grid.tasks import TASKS, Problem
from lib.results.record import Record, new_record, plain
from lib.results.thresholds import load_bounds
from lib.run.audits import Evidence, Finding, audited
from lib.run.build import build, load_bert_scorer, load_tokenizer
from lib.run.evaluation import evaluate
from lib.run.measurements import measured
from lib.run.meter import Meter
from lib.run.metrics import Metrics
from lib.run.progress import Progress
from lib.run.training import Trainer

CPU = torch.device("cpu")
TEST_ROWS = 96
BOUNDS = load_bounds(Path(__file__).parent / "thresholds" / "quick.toml")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a cell is made of.

    Attributes:
        cell: the label, and what is audited against.
        built: what the model is built from; the label itself where nobody meddles.
        codec: makes the codec of a cell and a tokenizer.
        selected_on: the split that chooses among epochs.
    """

    cell: Cell
    built: Cell
    splits: Splits
    metrics: Metrics
    codec: Callable[[Cell, Any], Any] = codec_of
    trainer: type[Trainer] = Trainer
    selected_on: str = "validation"


def healthy(cell_id: str, settings: dict[str, Any]) -> Parts:
    """A quick cell as it should be; one with other settings is scored on fewer rows."""
    cell = next(cell for cell in grid(QUICK_PROFILE) if cell.id == cell_id)
    splits = quick_splits(cell.task.id)
    if settings:
        splits = replace(splits, validation=splits.validation[:TEST_ROWS], test=splits.test[:TEST_ROWS])
    metrics = Metrics(bert_scorer=bert_scorer() if cell.task.problem is Problem.GENERATE else None)
    return changed(Parts(cell=cell, built=cell, splits=splits, metrics=metrics), **settings)


def changed(parts: Parts, **settings: Any) -> Parts:
    """The same cell, label and all, with other values in its recipe."""

    def other(cell: Cell) -> Cell:
        overrides = {**cell.profile.overrides, cell.id: {**cell.profile.overrides[cell.id], **settings}}
        return replace(cell, profile=replace(cell.profile, overrides=overrides))

    return replace(parts, cell=other(parts.cell), built=other(parts.built))


@cache
def quick_splits(task_id: str) -> Splits:
    """A task's embedded rows."""
    return load_splits(next(task for task in TASKS if task.id == task_id), QUICK_PROFILE)


bert_scorer = cache(partial(load_bert_scorer, QUICK_PROFILE))


def run(parts: Parts) -> tuple[list[Finding], Record]:
    """Build, train, score, audit; the findings and the record."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(parts.cell)
    codec = parts.codec(parts.cell, tokenizer)
    model = build(parts.built, tokenizer, CPU)
    meter, progress = Meter(device=CPU), Progress(parts.cell.id, lambda line: None)
    trainer = parts.trainer(parts.cell, model, codec, codec.features(parts.splits.train, training=True), meter)
    score = partial(evaluate, model, codec, metrics=parts.metrics, device=CPU, progress=progress)

    def validate() -> tuple[float, Any]:
        found = score(getattr(parts.splits, parts.selected_on))
        return found.scores[parts.cell.task.main_score], found.rows

    training = trainer.run(progress, validate)
    evaluation = score(parts.splits.test)
    findings = audited(Evidence(cell=parts.cell, codec=codec, trainer=trainer, splits=parts.splits, evaluation=evaluation))
    found = measured(parts.cell, parts.splits, model, meter, training, evaluation)
    return findings, new_record(parts.cell) | plain(found)
