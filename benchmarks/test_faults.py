"""The fault table: each fault is injected and caught by the check that is named for it; its healthy twin passes.

The pipeline is the one that users run. The fixtures below are its own, with the one that a fault breaks replaced.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faults import CELL_FAULTS, RECORD_FAULTS
from fixtures.session import session_of
from tunegrid.record.wrong import below_bounds
from tunegrid.results.files import read_list
from tunegrid.results.judgements import Verdict
from tunegrid.results.numerics import STAGES, compared, load_tolerances
from tunegrid.results.passing import cross_cell_audits

pytestmark = pytest.mark.faults

BASELINE = Path(__file__).parents[1] / "reports" / "baselines" / "quick-cpu.json"
TEST_ROWS = 96  # for a cell with settings of its own
# Faults of one cell share their twin.
TWINS = {(fault.profile, fault.cell, str(fault.settings), fault.ranks): fault for fault in CELL_FAULTS}


def case(fault, name):
    """A fault as a test's parameter; as many processes share the test as the fault has ranks."""
    return pytest.param(fault, id=name if fault.ranks == 1 else f"{name}-{fault.ranks}ranks")


@pytest.fixture
def sabotaged(request):
    return request.node.originalname == "test_a_fault_is_caught"


@pytest.fixture
def broken(fault, sabotaged, tmp_path):
    """Replaces the value of the fixture that the fault breaks."""

    def replaced(noun, value, material=tmp_path):
        return fault.sabotage(value, material) if sabotaged and fault.breaks == noun else value

    return replaced


@pytest.fixture
def cell(request, fault, broken):
    session = session_of(request.config)
    profile = replace(session.profile(fault.profile), ranks=fault.ranks)
    cell = session.grid_of(profile).cell(fault.cell, profile)
    return broken("cell", replace(cell, recipe=replace(cell.recipe, **fault.settings)))


@pytest.fixture
def libraries(libraries, broken, monkeypatch):
    """Broken when the cell has begun, so that what changes is seen."""
    broken("libraries", monkeypatch)


@pytest.fixture
def built_cell(cell, broken):
    return broken("built_cell", cell)


@pytest.fixture
def splits(splits, fault, broken):
    if fault.settings:
        splits = replace(splits, validation=splits.validation[:TEST_ROWS], test=splits.test[:TEST_ROWS])
    return broken("splits", splits)


@pytest.fixture
def validation_rows(splits, broken):
    return broken("validation_rows", splits.validation, splits)


@pytest.fixture
def codec(codec, broken):
    return broken("codec", codec)


@pytest.fixture
def model(model, broken):
    return broken("model", model)


@pytest.fixture
def trainer(trainer, broken):
    return broken("trainer", trainer)


@pytest.fixture
def score(score, broken):
    return broken("score", score)


@pytest.fixture
def serving(serving, broken):
    return broken("serving", serving)


@pytest.fixture
def bounds(bounds, fault):
    return {} if fault.settings else bounds


@pytest.fixture
def objections(audit_before, trainer, validate, splits, score, progress, record, bounds, fault, sabotaged):
    """What objects to the run: details by audit, the threshold, and for a fault of arithmetic the stage that numerics names."""
    findings = audit_before()
    training = trainer.run(progress, validate)
    row = record(findings, training, score(splits.test))
    below = below_bounds(row.scores, bounds)
    failed = {finding.name: finding.detail for finding in row.audits if not finding.passed}
    stage = changed(row) if sabotaged and fault.caught_by in STAGES else {}
    return failed | ({"threshold": "; ".join(below)} if below else {}) | stage


def changed(record):
    """The first stage in which a run's arithmetic is not that of the committed baseline's first seed."""
    old = next(saved for saved in read_list(BASELINE) if saved.cell == record.cell)
    verdict, change = compared(old, record, load_tolerances())
    return {change.partition(":")[0]: change} if verdict is Verdict.CHANGED else {}


@pytest.mark.parametrize("fault", [case(fault, fault.id) for fault in CELL_FAULTS])
def test_a_fault_is_caught(fault, objections):
    assert fault.caught_by in objections, f"{fault.what}: {fault.caught_by} let it through; objections: {objections or 'none'}"


@pytest.mark.parametrize("fault", [case(fault, fault.cell) for fault in TWINS.values()])
def test_a_healthy_twin_passes(fault, objections):
    assert objections == {}


def saved(fault):
    """The records of the fault's cells in the committed baseline, of its first seed."""
    return [next(record for record in read_list(BASELINE) if record.cell == cell) for cell in fault.cells]


def objecting(records):
    return {finding.name for findings in cross_cell_audits(records).values() for finding in findings if not finding.passed}


@pytest.mark.parametrize("fault", RECORD_FAULTS, ids=lambda fault: fault.id)
def test_a_fault_of_several_cells_is_caught(fault):
    records = saved(fault)
    fault.sabotage(*records)
    assert fault.caught_by in objecting(records)


@pytest.mark.parametrize("fault", RECORD_FAULTS, ids=lambda fault: fault.id)
def test_healthy_records_pass(fault):
    assert objecting(saved(fault)) == set()
