"""Plants that break what must be equal: each row of the table objects to its own."""

from dataclasses import replace

import pytest

from benchmarks.plants.equal import EQUAL
from benchmarks.plants.plant import Planting
from benchmarks.test_equivalent import ROWS, bench, unequal  # noqa: F401 # a fixture
from fixtures.session import session_of


@pytest.fixture
def cell(request, plant):
    session = session_of(request.config)
    if plant.ranks > 1 and session.child.ranks == 1:
        pytest.skip(f"{plant.id} needs {plant.ranks} processes, which --isolate starts")
    profile = replace(session.profile(plant.profile), ranks=plant.ranks)
    return session.grid_of(profile).cell(plant.cell, profile)


def case(plant):
    return pytest.param(plant, id=plant.id, marks=[pytest.mark.ranks(plant.ranks)] if plant.ranks > 1 else [])


@pytest.mark.equivalent
@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # on what a row does to adapters on purpose
@pytest.mark.parametrize("plant", [case(plant) for plant in EQUAL])
def test_a_plant_breaks_its_row(plant, bench, monkeypatch):  # noqa: F811
    [row] = [row for row in ROWS if row.id == plant.caught_by]
    plant.broken_by(planting := Planting(monkeypatch))
    sentences = unequal(row, bench)
    assert planting.acts, f"{plant.id} never acted, so nothing is proven"
    assert sentences, f"{plant.id}: {plant.what}: {row.id} holds all the same"
