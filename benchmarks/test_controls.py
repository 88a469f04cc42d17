"""Controls: a run that cannot have learned its task must miss a threshold, in every cell. If one passes, the bound is blunt."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from benchmarks.parts import BOUNDS, Parts, changed, healthy, run
from lib.grid.backbones import BACKBONES
from lib.grid.cells import CELL_IDS
from lib.grid.tasks import Problem
from lib.results.thresholds import missed

pytestmark = pytest.mark.controls


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """Micro backbones with the weights that they were drawn with."""
    from lib.micro.pretrain import pretrain

    root = tmp_path_factory.mktemp("untrained")
    for backbone in BACKBONES:
        pretrain(backbone.id, root / backbone.micro, steps=0, log=lambda line: None)
    return root


def random_weights(parts: Parts, root) -> Parts:
    """The recipe from scratch."""
    profile = replace(parts.cell.profile, checkpoint_root=root)
    return replace(parts, built=replace(parts.built, profile=profile))


def learning_rate_0(parts: Parts, root) -> Parts:
    """Updates that move nothing."""
    return changed(parts, learning_rate=0.0)


def shuffled_labels(parts: Parts, root) -> Parts:
    """Targets that have nothing to do with their inputs."""
    rows = SHUFFLES[parts.cell.task.problem](parts.splits.train, Random(0))
    return replace(parts, splits=replace(parts.splits, train=rows))


def dealt_out(column):
    """A column's values, dealt out again among the rows."""

    def shuffle(rows, rng):
        values = rng.sample([row[column] for row in rows], len(rows))
        return [row | {column: value} for row, value in zip(rows, values, strict=True)]

    return shuffle


def other_spans(rows, rng):
    """Of each context another word than the answer."""
    return [row | {"answers": some_word(row["context"], rng)} for row in rows]


def some_word(context, rng):
    words = context.split()
    place = rng.randrange(len(words))
    return {"text": [words[place]], "answer_start": [len(" ".join(words[:place])) + bool(place)]}


SHUFFLES: dict[Problem, Callable] = {
    Problem.CLASSIFY: dealt_out("label"),
    Problem.EXTRACT: other_spans,
    Problem.GENERATE: dealt_out("highlights"),
}


CONTROLS = {control.__name__: control for control in (random_weights, learning_rate_0, shuffled_labels)}


@pytest.mark.parametrize("cell_id", CELL_IDS)
@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_misses_a_threshold(cell_id, control, untrained, benchmark):
    benchmark.group = f"controls {control}"
    parts = CONTROLS[control](healthy(cell_id, {}), untrained)
    _, record = benchmark.pedantic(run, args=(parts,), rounds=1)
    below = missed(record["scores"], BOUNDS[cell_id])
    benchmark.extra_info.update(control=control, of=cell_id, scores=record["scores"], bounds=BOUNDS[cell_id], missed=below)
    assert below, f"{cell_id} reaches every bound with {control}: {record['scores']}"
