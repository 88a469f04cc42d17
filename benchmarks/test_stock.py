"""The libraries' own path, which most people run, beside ours: equal at every stage, but for the differences that are known."""

import pytest

from fixtures.session import session_of
from tunegrid.run.stock.known import KNOWN
from tunegrid.terminal import visible

pytestmark = [
    pytest.mark.stock,
    pytest.mark.filterwarnings("default"),  # what the libraries' own path warns of is theirs
]


@pytest.mark.cells("stock")
def test_the_libraries_path_is_ours(both, record_stock, benchmark):
    from tunegrid.run.stock.stages import compare

    missed = record_stock(benchmark.pedantic(compare, args=(both,), rounds=1)).missed
    assert not missed, visible("; ".join(missed))


@pytest.fixture
def shown(request, entry, tmp_path):
    """Both sides of the cell that shows a known difference, up to its stage; with or without reckoning with it."""
    from dataclasses import replace

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
