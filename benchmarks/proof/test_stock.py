"""Checks that the libraries' own path equals ours at every stage, apart from known differences."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from benchmarks.proof.stock.known import KNOWN
from benchmarks.proof.stock.stages import Pair, first_difference
from fixtures.session import get_session
from tunegrid.data.splits import load_splits
from tunegrid.grid.cells import Cell
from tunegrid.grid.recipes import CELLS
from tunegrid.terminal import defuse

# The libraries' own path may warn.
pytestmark = [pytest.mark.stock, pytest.mark.filterwarnings("default")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrizes over study cells and seeds.

    Unlike tests marked `cells`, these tests produce no records.
    """
    session = get_session(metafunc.config)
    if "seed" in metafunc.fixturenames:
        ids = [cell_id for cell_id in session.ids("stock") if cell_id in CELLS]
        cases = [(cell_id, seed) for seed, cell_id in product(session.seeds, ids)]
        metafunc.parametrize(("cell_id", "seed"), cases)


@pytest.fixture
def cell(request: pytest.FixtureRequest, cell_id: str, seed: int) -> Cell:
    session = get_session(request.config)
    return session.grid.cell(cell_id, session.profile("stock", seed))


def test_the_libraries_path_is_ours(cell, splits, device, tmp_path):
    sentence = first_difference(Pair(cell, splits.train, splits.test, tmp_path, device))
    if sentence:
        pytest.fail(defuse(sentence), pytrace=False)


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.id)
def test_a_known_difference_is_still_one(request, known, tmp_path):
    session = get_session(request.config)
    cell = session.grid.cell(known.shown_by, session.profile("stock"))
    cell = replace(cell, recipe=replace(cell.recipe, **known.changes))
    splits = load_splits(cell.task, cell.profile)
    torch.set_num_threads(1)

    def differs(without: str) -> bool:
        device = torch.device("cpu")
        folder = tmp_path / without
        pair = Pair(cell, splits.train, splits.test, folder, device, without)
        return first_difference(pair, known.stage).startswith(f"{known.stage}: ")

    assert differs(without=known.id), f"{known.id} is mended: take it out of the table"
    if known.changes:
        assert not differs(without=""), f"{known.id} is mended: take it out of the table"
