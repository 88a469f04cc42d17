"""Tolerances of numerics are what harmless changes did, doubled. No session is trained here."""

import tomllib
from dataclasses import replace

import pytest

from tunegrid.errors import InputError
from tunegrid.lab.tolerances import (
    FLOORS,
    FLOORS_OF,
    Apart,
    apart,
    largest,
    numerics_toml,
    tolerance,
    tolerances_of,
)
from tunegrid.results.thresholds import TOLERANCES, load_tolerances
from tunegrid.tests.records import altered, complete, seeds_as

LOSSES = [0.75, 0.5, 0.25]


def later(deviations, kind="nf4 fp32"):
    """Cells a, b, c ... whose later losses lie so far apart."""
    return [Apart(cell=cell, kind=kind, figures={"later": value}) for cell, value in zip("abcdef", deviations, strict=False)]


# The rule


@pytest.mark.parametrize(
    ("deviation", "doubled"),
    [
        ((3.1e-4,), 6.2e-4),
        ((3.14e-4,), 6.3e-4),
        ((4.96e-4,), 1e-3),
        ((0.0,), 0.0),
        ((1e-6, 1.5e-5), 1.5e-5),
        ((8e-6, 1.5e-5), 1.6e-5),
    ],
)
def test_a_tolerance_is_twice_the_deviation_rounded_up_to_two_digits_and_no_less_than_its_floor(deviation, doubled):
    assert tolerance(*deviation) == doubled


def test_a_cell_beyond_ten_times_the_median_has_a_tolerance_of_its_own():
    # the median of 1, 2, 3, 4 and 31 is 3: 31 lies beyond 30, so that 4 is the largest of the others
    tables = tolerances_of(largest(later([1e-3, 2e-3, 3e-3, 4e-3, 3.1e-2])))
    assert tables["nf4 fp32"]["later"] == 8e-3
    assert tables["cell e"] == {"later": 6.2e-2}
    tables = tolerances_of(largest(later([1e-3, 2e-3, 3e-3, 4e-3, 2.9e-2])))  # within: wider for all
    assert tables.keys() == {"nf4 fp32"}
    assert tables["nf4 fp32"]["later"] == 5.8e-2
    assert largest(later([0.5], "bf16")) == {"bf16": {"later": 0.5}}  # a lone cell is never far beyond


def test_what_no_cell_showed_has_its_floor_and_no_evidence():
    most = largest(later([1e-3]))
    assert "decoded" not in most["nf4 fp32"]
    assert tolerances_of(most)["nf4 fp32"] == {**FLOORS, **FLOORS_OF["nf4 fp32"], "later": 2e-3}
    bf16 = tolerances_of(largest(later([1e-3], "bf16")))["bf16"]
    assert (bf16["moved"], bf16["decoded"], bf16["weights"]) == (6e-3, 5e-2, FLOORS["weights"])
    assert tolerances_of(largest(later([1e-3], "fp32")))["fp32"]["moved_alone"] == 1e-3


# Two records


def record(cell="bert_sa_lora", seed=0, draw=None, by=0.0):
    """A finished record whose first loss lies so far off."""
    made = complete(cell, seeds=seeds_as(seed, draw))
    losses = [LOSSES[0] + by, *LOSSES[1:]]
    return replace(made, training=replace(made.training, losses=losses, updates=len(losses)))


def test_two_trainings_lie_apart_by_all_figures_of_numerics():
    old, new = record(), altered(record(by=0.125), "training.first_step.decoded", 5e-6)
    found = apart(old, new)
    assert (found.cell, found.kind) == ("bert_sa_lora", "fp32")
    assert found.figures["first"] == 0.125
    assert found.figures["decoded"] == pytest.approx(4e-6)  # 1e-6 in a complete record
    assert found.figures["curve"] == pytest.approx(0.125 / 3 / 0.5)  # three updates are one mean; the mean loss is 0.5
    of_modules = {"module_outputs", "module_gradients"}  # only where the sessions kept their files
    assert found.figures.keys() | {"moved_alone"} | of_modules == FLOORS.keys()
    none = altered(new, "training.first_step.decoded", None)  # no model searched
    assert "decoded" not in apart(old, none).figures


def test_what_calibrates_nothing_is_refused():
    broken = record()
    broken.training.losses[1] = None
    with pytest.raises(InputError, match="bert_sa_lora of seed 0 has a loss that is not finite"):
        apart(record(), broken)
    with pytest.raises(InputError, match="bert_sa_lora has weights in one of two trainings alone"):
        apart(record(), altered(record(), "training.first_step.weights", {"head": None}))
    with pytest.raises(InputError, match="tolerances rest on moved starts"):
        numerics_toml({0: [{"bert_sa_lora": record()}]})


def curves(**deviations):
    return [Apart(cell=cell, kind="nf4 fp32", figures={"curve": value}) for cell, value in deviations.items()]


def test_each_cell_has_its_own_curve_and_other_cells_have_that_of_the_median_cell():
    tables = tolerances_of(largest(curves(a=9e-3, b=3e-3, c=4e-3, d=1e-5)))
    assert tables["nf4 fp32"]["curve"] == 7e-3  # twice the middle of 3e-3 and 4e-3
    assert {name: table["curve"] for name, table in tables.items() if name.startswith("cell ")} == {
        "cell a": 1.8e-2,
        "cell b": 6e-3,
        "cell c": 8e-3,
        "cell d": 2e-3,  # the floor
    }


# The file


CELLS = ("bert_sa_lora", "bert_sa_qlora")


def grid(seed, draw=None):
    """Draw D moves the first loss by D x 2**-10, in QLoRA twice as far."""
    moved = (draw or 0) * 2.0**-10
    return {cell: record(cell, seed, draw, seed + moved * (1 + CELLS.index(cell))) for cell in CELLS}


def test_the_file_is_read_again_and_holds_its_evidence(tmp_path):
    path, present = tmp_path / "numerics.toml", TOLERANCES.read_text()
    path.write_text(numerics_toml({seed: [grid(seed), grid(seed, 1), grid(seed, 2)] for seed in (0, 1)}))
    tables, written, kept = load_tolerances(path), tomllib.loads(path.read_text()), tomllib.loads(present)
    # the farthest is draw 2: 2 / 1024 = 1.953e-3, of QLoRA 4 / 1024 = 3.906e-3; doubled 3.906e-3 and 7.813e-3
    assert (tables["fp32"]["first"], tables["nf4 fp32"]["first"]) == (4e-3, 7.9e-3)
    evidence = written["evidence"]
    assert (evidence["pairs"], evidence["seeds"], evidence["draws"]) == (8, [0, 1], [1, 2])
    assert evidence["largest"]["fp32"]["first"] == 1.95e-3
    assert evidence["versions"].keys() >= {"torch", "transformers", "peft"}
    # what an older version measured is kept, and so is the head
    assert evidence["drawn"] == kept["evidence"]["drawn"]
    for name, table in kept.items():
        assert written.get(name, {}).get("moved_alone") == table.get("moved_alone")
    assert path.read_text().partition("\n\n")[0] == present.partition("\n\n")[0]
