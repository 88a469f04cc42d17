"""The libraries' own path, which most people run, beside ours: equal at every stage, but for the differences that are known."""

from dataclasses import replace

import pytest
import torch

from benchmarks.proof.stock.known import KNOWN
from benchmarks.proof.stock.stages import Pair, first_difference
from fixtures.session import get_session
from tunegrid.data.splits import load_splits
from tunegrid.grid.recipes import CELLS
from tunegrid.terminal import defuse

# What the libraries' own path warns of is theirs.
pytestmark = [pytest.mark.stock, pytest.mark.filterwarnings("default")]


def pytest_generate_tests(metafunc):
    """One case for each of the study's cells and seed; no row of a record is left."""
    session = get_session(metafunc.config)
    if "seed" in metafunc.fixturenames:
        cases = [(cell_id, seed) for seed in session.seeds for cell_id in session.ids("stock") if cell_id in CELLS]
        metafunc.parametrize(("cell_id", "seed"), cases)


@pytest.fixture
def cell(request, cell_id, seed):
    session = get_session(request.config)
    return session.grid.cell(cell_id, session.profile("stock", seed))


def test_the_libraries_path_is_ours(cell, splits, device, tmp_path):
    sentence = first_difference(Pair(cell, splits.train, splits.test, tmp_path, device))
    if sentence:
        pytest.fail(defuse(sentence), pytrace=False)


@pytest.mark.parametrize("known", KNOWN, ids=lambda one: one.id)
def test_a_known_difference_is_still_one(request, known, tmp_path):
    session = get_session(request.config)
    cell = session.grid.cell(known.shown_by, session.profile("stock"))
    cell = replace(cell, recipe=replace(cell.recipe, **known.changes))
    splits = load_splits(cell.task, cell.profile)
    torch.set_num_threads(1)
    for difference_id, differs in ((known.id, True), ("", False)) if known.changes else ((known.id, True),):
        pair = Pair(cell, splits.train, splits.test, tmp_path / difference_id, torch.device("cpu"), difference_id)
        sentence = first_difference(pair, known.stage)
        assert sentence.startswith(f"{known.stage}: ") == differs, f"{known.id} is mended: take it out of the table"
