"""The fault table: each fault is injected and caught by the audit or threshold named for it; its healthy twin passes."""

import pytest

from benchmarks.faults import FAULTS, objections

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_a_fault_is_caught(fault, tmp_path):
    found = objections(fault, tmp_path, sabotaged=True)
    assert fault.caught_by in found, f"{fault.what}: {fault.caught_by} let it through; objections: {found or 'none'}"


TWINS = {(fault.cells, str(fault.settings)): fault for fault in FAULTS}  # faults of one cell share their twin


@pytest.mark.parametrize("fault", TWINS.values(), ids=lambda fault: "+".join(fault.cells))
def test_a_healthy_twin_passes(fault, tmp_path):
    assert objections(fault, tmp_path, sabotaged=False) == {}
