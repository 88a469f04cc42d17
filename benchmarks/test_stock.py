"""The libraries' own path, which most people run, beside ours: equal at every stage, but for the differences that are known."""

from dataclasses import replace

import pytest

from fixtures.session import session_of
from tunegrid.record import data_record, new_record
from tunegrid.results.status import located
from tunegrid.run.stock.known import KNOWN
from tunegrid.terminal import visible

pytestmark = [
    pytest.mark.stock,
    pytest.mark.filterwarnings("default"),  # what the libraries' own path warns of is theirs
]


@pytest.mark.cells("stock")
def test_the_libraries_path_is_ours(request, cell, splits, device, tmp_path, benchmark):
    from tunegrid.run.device import device_record
    from tunegrid.run.stock.both import Both
    from tunegrid.run.stock.stages import compare
    from tunegrid.run.stock.start import quiet, refused

    if reason := refused(cell):
        pytest.skip(f"no path of the libraries: {reason}")
    quiet()
    both = Both(cell, splits.train, splits.test, tmp_path, device)
    part = benchmark.pedantic(compare, args=(both,), rounds=1)
    fresh = new_record(cell)
    missed = [located(fresh, part.differs)] if part.differs else []
    session_of(request.config).run_of(request.node).record = replace(
        fresh,
        stock=part,
        device=device_record(device),
        data=data_record(cell, splits),
        status="missed" if missed else "passed",
        missed=missed,
    )
    assert not missed, visible(missed[0])


@pytest.fixture
def shown(request, entry, tmp_path):
    """Both sides of the cell that shows a known difference, up to its stage; with or without reckoning with it."""
    import torch

    from tunegrid.data.splits import load_splits
    from tunegrid.run.stock.both import Both
    from tunegrid.run.stock.stages import compare
    from tunegrid.run.stock.start import quiet

    session = session_of(request.config)
    profile = session.profile("stock")
    cell = session.grid.cell(entry.shown_by, profile)
    cell = replace(cell, recipe=replace(cell.recipe, **entry.changes))
    splits = load_splits(cell.task, profile)
    torch.set_num_threads(profile.threads or torch.get_num_threads())
    quiet()

    def differs(without=""):
        folder = tmp_path / (without or "known")
        return compare(Both(cell, splits.train, splits.test, folder, torch.device("cpu"), without), entry.stage).differs

    return differs


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: entry.id)
def test_a_known_difference_is_still_one(entry, shown):
    assert shown(without=entry.id).startswith(f"{entry.stage}: "), f"{entry.id} is mended: take it out of the table"


@pytest.mark.parametrize("entry", [entry for entry in KNOWN if entry.changes], ids=lambda entry: entry.id)
def test_nothing_else_differs_where_it_shows(entry, shown):
    assert not shown()
