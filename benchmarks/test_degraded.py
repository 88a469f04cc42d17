"""Real degradations of the quick cells, for the gate to see: wrong targets, half the rate, a tenth of the updates lost.

`pytest -m degraded -n auto -k rate_halved --benchmark-json=FILE` leaves a run like any other, which `tunegrid gate` judges
by a baseline; `python -m tunegrid.lab sensitivity` does both for all of them.
"""

from dataclasses import replace
from random import Random

import pytest

from benchmarks.targets import spoiled
from fixtures.session import session_of
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.lab.sensitivity import DEGRADATIONS
from tunegrid.record import to_json

pytestmark = pytest.mark.degraded

SHARES = {"targets_5": 0.05, "targets_10": 0.10}  # of training rows with a wrong target


@pytest.fixture
def cell(request, cell_id):
    session = session_of(request.config)
    return session.grid.cell(cell_id, session.profile("quick"))


@pytest.fixture
def splits(splits, cell, degradation):
    share = SHARES.get(degradation)
    return replace(splits, train=spoiled(cell.task.problem, splits.train, share, Random(0))) if share else splits


@pytest.fixture
def trainer(trainer, degradation):
    if degradation == "rate_halved":
        trainer.stepper.schedule.base_lrs = [rate / 2 for rate in trainer.stepper.schedule.base_lrs]
    if degradation == "tenth_missing":
        trainer.update = losing_every_tenth(trainer, trainer.update)
    return trainer


def losing_every_tenth(trainer, update):
    """Every tenth update moves nothing."""

    def lossy(group):
        if trainer.log.updates % 10 == 9:
            for settings in trainer.optimizer.param_groups:
                settings["lr"] = 0.0  # the schedule sets the next update's
        return update(group)

    return lossy


@pytest.mark.parametrize("cell_id", STUDY_IDS)
@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_a_degraded_run_leaves_its_row(
    degradation, cell_id, audit_before, trainer, validate, splits, score, progress, benchmark, record
):
    findings = audit_before()
    training = benchmark.pedantic(trainer.run, args=(progress, validate), rounds=1)
    row = record(findings, training, score(splits.test))
    benchmark.extra_info.update(to_json(row))
    assert row.finished
