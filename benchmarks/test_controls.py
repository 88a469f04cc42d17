"""Controls: a run that cannot have learned its task must miss a threshold, in every cell. If one passes, the bound is blunt.

So must a run whose adapter is taken away after training while its head stays (`adapter_off`): the head alone must not do.

`pytest -m controls` has those of the study's quick cells, `pytest -m "controls and zoo"` those of the zoo, and `pytest -m
"controls and tasks"` those of more tasks.
"""

from dataclasses import replace
from random import Random

import pytest

from benchmarks.targets import SHUFFLES
from fixtures.session import session_of
from tunegrid.grid.backbones import BACKBONES, within
from tunegrid.grid.cells import STUDY
from tunegrid.grid.methods import TOKEN_ROWS
from tunegrid.grid.more_tasks import is_of_more_tasks, more_tasks
from tunegrid.grid.profiles import QUICK_PROFILE, TASKS_PROFILE, ZOO_PROFILE
from tunegrid.grid.zoo import zoo
from tunegrid.record.wrong import below_bounds

pytestmark = pytest.mark.controls

CONTROLS = ("random_weights", "learning_rate_0", "shuffled_labels", "adapter_off")
CASES = [
    *(
        pytest.param(control, "quick", cell.id, id=f"{control}-{cell.id}")
        for control in CONTROLS
        for cell in STUDY.cells(QUICK_PROFILE)
        if control != "adapter_off" or cell.method.adapts
    ),
    *(
        pytest.param(control, "zoo", cell.id, id=f"zoo-{control}-{cell.id}", marks=pytest.mark.zoo)
        for control in CONTROLS[1:]
        for cell in zoo().cells(ZOO_PROFILE)
        if control != "adapter_off" or cell.method.adapts
    ),
    *(
        pytest.param(control, "tasks", cell.id, id=f"tasks-{control}-{cell.id}", marks=pytest.mark.tasks)
        for control in CONTROLS
        for cell in more_tasks().cells(TASKS_PROFILE)
        if is_of_more_tasks(cell.id) and (control != "adapter_off" or cell.method.adapts)
    ),
]


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """Micro backbones with the weights that they were drawn with."""
    from tunegrid.lab.micro.pretrain import pretrain

    root = tmp_path_factory.mktemp("untrained")
    for backbone in BACKBONES:
        pretrain(backbone.id, root / backbone.micro, steps=0, log=lambda line: None)
    return root


@pytest.fixture
def cell(request, profile, cell_id, control):
    """The cell, which one control gives updates that move nothing."""
    session = session_of(request.config)
    chosen = session.profile(profile)
    cell = session.grid_of(chosen).cell(cell_id, chosen)
    return (
        replace(cell, recipe=replace(cell.recipe, learning_rate=0.0, head_learning_rate=None))
        if control == "learning_rate_0"
        else cell
    )


@pytest.fixture
def built_cell(cell, control, untrained):
    """The model, which one control builds from scratch."""
    return replace(cell, profile=replace(cell.profile, checkpoint_root=untrained)) if control == "random_weights" else cell


@pytest.fixture
def splits(splits, cell, control):
    """The rows, whose targets one control deals out anew: they have nothing to do with their inputs."""
    if control != "shuffled_labels":
        return splits
    return replace(splits, train=SHUFFLES[cell.task.problem](splits.train, Random(0)))


@pytest.fixture
def start(trainer, cell):
    """The adapter before training: what trains, but for the head and the rows of new tokens."""
    kept = (*cell.head.new_modules, TOKEN_ROWS)
    return {name: p.detach().clone() for name, p in trainer.parameters.items() if p.requires_grad and not within(name, kept)}


def switch_off(model, start):
    """Put the adapter back to where it started, under the head as it was trained."""
    model.load_state_dict(start, strict=False)


@pytest.mark.parametrize(("control", "profile", "cell_id"), CASES)
def test_a_control_misses_a_threshold(
    cell_id, profile, control, bounds, model, audit_before, trainer, start, validate, splits, score, progress, benchmark, record
):
    benchmark.group = f"controls {control}"
    findings = audit_before()
    training = benchmark.pedantic(trainer.run, args=(progress, validate), rounds=1)
    if control == "adapter_off":
        switch_off(model, start)
    scores = record(findings, training, score(splits.test)).scores
    below = below_bounds(scores, bounds)
    benchmark.extra_info.update(control=control, of=cell_id, scores=scores, bounds=bounds, missed=below)
    assert below, f"{cell_id} reaches every bound with {control}: {scores}"
