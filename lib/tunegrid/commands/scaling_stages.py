"""Stages of a cell at any number of rows, without training. In: a number of rows and a folder. Out: what `scaling` measures.

A stage is prepared, which is not measured, and then run. Rows are synthetic, recipes are the full profile's, and tokenizers are
those of the micro backbones, which ship with the suite.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from tunegrid.data import synthetic
from tunegrid.data.sources import Row, tables
from tunegrid.data.splits import load_splits
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.profiles import FULL_PROFILE, QUICK_PROFILE
from tunegrid.record import Record, new_record
from tunegrid.results import examples
from tunegrid.results.examples import Examples, Texts
from tunegrid.results.gates import Run, gate
from tunegrid.results.noise import Noise

if TYPE_CHECKING:
    from tunegrid.codecs.base import Codec

CLASSIFY, EXTRACT, GENERATE = "bert_sa_sft", "bert_qa_sft", "t5_sum_sft"
Work = Callable[[], object]
Prepare = Callable[[int, Path], Work]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage.

    Attributes:
        prepare: makes what the stage needs of so many rows, in a folder; returns what is measured.
    """

    name: str
    prepare: Prepare


def cell_at(cell_id: str, folder: Path, cache: str = "features") -> Cell:
    """A cell of the full profile, all of whose rows and features are in a folder."""
    return STUDY.cell(cell_id, replace(FULL_PROFILE, caps={}, data_root=folder / "data", feature_cache=folder / cache))


def codec_at(cell_id: str, folder: Path, cache: str = "features") -> "Codec":
    """Its codec, over the micro backbone's tokenizer. What needs torch is imported here: some stages do not."""
    from tunegrid.codecs import codec_of
    from tunegrid.run.build import load_tokenizer

    return codec_of(cell_at(cell_id, folder, cache), load_tokenizer(STUDY.cell(cell_id, QUICK_PROFILE)))


def rows_at(cell_id: str, count: int, folder: Path) -> Sequence[Row]:
    """So many training rows, as they are read from the folder."""
    cell = cell_at(cell_id, folder)
    if not (folder / "data" / cell.task.folder).is_dir():
        synthetic.write(cell.task, count, folder / "data")
    return tables(cell.task, cell.profile.data_root)["train"].take(range(count))


def _consume(items: Iterable[Any]) -> int:
    return sum(1 for _ in items)


# Rows and features


def _read(cell_id: str, count: int, folder: Path) -> Work:
    rows_at(cell_id, count, folder)
    cell = cell_at(cell_id, folder)
    return lambda: load_splits(cell.task, cell.profile).fingerprint


def _encode(cell_id: str, count: int, folder: Path) -> Work:
    from tunegrid.codecs.features import encoded

    rows, codec = rows_at(cell_id, count, folder), codec_at(cell_id, folder)
    return lambda: _consume(encoded(codec, rows, training=True))


def _write_features(cell_id: str, count: int, folder: Path) -> Work:
    from tunegrid.codecs.features import features_of

    rows, codec = rows_at(cell_id, count, folder), codec_at(cell_id, folder, cache="written")
    shutil.rmtree(folder / "written", ignore_errors=True)
    return lambda: features_of(codec, rows, training=True)


def _read_features(cell_id: str, count: int, folder: Path) -> Work:
    from tunegrid.codecs.features import features_of

    rows, codec = rows_at(cell_id, count, folder), codec_at(cell_id, folder)
    features_of(codec, rows, training=True)
    return lambda: _consume(features_of(codec, rows, training=True))


def _batched(codec: "Codec", features: Sequence[Any]) -> list[list[int]]:
    from tunegrid.codecs.features import lengths_of
    from tunegrid.run.order import epoch_batches

    return epoch_batches(lengths_of(features), codec.recipe.per_device_train_batch_size, seed=0, epoch=0)


def _batches(cell_id: str, count: int, folder: Path) -> Work:
    from tunegrid.codecs.features import features_of

    rows, codec = rows_at(cell_id, count, folder), codec_at(cell_id, folder)
    return partial(_batched, codec, features_of(codec, rows, training=True))


def _collate(cell_id: str, count: int, folder: Path) -> Work:
    from tunegrid.codecs.features import features_of

    rows, codec = rows_at(cell_id, count, folder), codec_at(cell_id, folder)
    features = features_of(codec, rows, training=True)
    batches = _batched(codec, features)
    return lambda: _consume(codec.collate([features[place] for place in batch]) for batch in batches)


# Results


def _answers(cell_id: str, rows: Iterable[Row], seed: int) -> list[Any]:
    """A label, or some of the reference's words, nine of ten right."""
    rng, task = Random(seed), STUDY.cell(cell_id, FULL_PROFILE).task
    if task.labels:
        return [row[task.target] if rng.random() < 0.9 else 1 - row[task.target] for row in rows]
    references = (row[task.target]["text"][0] if isinstance(row[task.target], dict) else row[task.target] for row in rows)
    return [" ".join(word for word in text.split() if rng.random() < 0.9) for text in references]


def _score(cell_id: str, count: int, folder: Path) -> Work:
    from tunegrid.run.metrics import METRICS, Metrics

    task, rows = STUDY.cell(cell_id, FULL_PROFILE).task, rows_at(cell_id, count, folder)
    answers = _answers(cell_id, rows, 0)
    return lambda: METRICS[task.problem](Metrics(), task, rows, answers)


def _keep(cell_id: str, count: int, folder: Path) -> Work:
    rows = rows_at(cell_id, count, folder)
    return lambda: _kept(cell_id, rows, 0)


def _kept(cell_id: str, rows: Sequence[Row], seed: int) -> Record:
    """A record of made-up answers to these rows, with its examples stored."""
    from tunegrid.run.metrics import METRICS, Metrics

    cell = STUDY.cell(cell_id, FULL_PROFILE)
    answers = _answers(cell_id, rows, seed)
    scored = METRICS[cell.task.problem](Metrics(), cell.task, rows, answers)
    record = new_record(cell)
    record.status, record.scores = "passed", dict(scored.scores)
    ids = [examples.row_id(row) for row in rows]
    record.examples = examples.write(Examples(ids=ids, points=scored.examples, predictions=list(map(str, answers))))
    texts = Texts(inputs=[row[cell.task.text[-1]] for row in rows], references=[str(row[cell.task.target]) for row in rows])
    examples.write_texts(record.examples.rows_hash, texts)
    return record


def _gate(cell_id: str, count: int, folder: Path) -> Work:
    rows = rows_at(cell_id, count, folder)
    old, new = (Run.of([_kept(cell_id, rows, seed)]) for seed in (0, 1))
    return lambda: gate(old, new, noise=Noise())


STAGES = (
    Stage(name="read sa", prepare=partial(_read, CLASSIFY)),
    Stage(name="read qa", prepare=partial(_read, EXTRACT)),
    Stage(name="read sum", prepare=partial(_read, GENERATE)),
    Stage(name="encode sa", prepare=partial(_encode, CLASSIFY)),
    Stage(name="encode qa", prepare=partial(_encode, EXTRACT)),
    Stage(name="encode sum", prepare=partial(_encode, GENERATE)),
    Stage(name="write features qa", prepare=partial(_write_features, EXTRACT)),
    Stage(name="read features qa", prepare=partial(_read_features, EXTRACT)),
    Stage(name="batch qa", prepare=partial(_batches, EXTRACT)),
    Stage(name="collate qa", prepare=partial(_collate, EXTRACT)),
    Stage(name="score sa", prepare=partial(_score, CLASSIFY)),
    Stage(name="score qa", prepare=partial(_score, EXTRACT)),
    Stage(name="score sum", prepare=partial(_score, GENERATE)),
    Stage(name="examples qa", prepare=partial(_keep, EXTRACT)),
    Stage(name="gate sa", prepare=partial(_gate, CLASSIFY)),
    Stage(name="gate qa", prepare=partial(_gate, EXTRACT)),
)
