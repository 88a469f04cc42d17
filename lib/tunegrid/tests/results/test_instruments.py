"""Robustness and forgetting of two runs of one seed: equal, moved by rounding, or changed."""

from dataclasses import asdict, replace

import pytest

from tunegrid.record.parts import ContrastRecord, Estimate, ForgettingRecord, ShiftedRecord, ShiftRecord
from tunegrid.results.answer import answer_of
from tunegrid.results.gate import Run, gate
from tunegrid.results.instruments import compared_part
from tunegrid.results.judgements import Verdict
from tunegrid.results.numerics import load_tolerances
from tunegrid.tests.records import MEASURED, complete


def estimate(value):
    return Estimate(value=value, low=value - 1, high=value + 1)


def shifted(drop=-20.0, both=45, **names):
    shifts = {"typos5": drop, **names}
    return ShiftedRecord(
        metric="accuracy",
        rows=50,
        score=90.0,
        repeated=True,
        unmoved=[],
        shifts={
            name: ShiftRecord(meaning="-", changed=50, read=50, score=70.0, change=estimate(own))
            for name, own in shifts.items()
        },
        contrasts={"negated": ContrastRecord(meaning="-", pairs=50, right=48, both=both)},
        examples=None,
    )


def forgetting(change=0.5):
    known = {"objective": "masked", "texts": {"qa": 2}, "tokens": 40, "frozen": False, "refused": None}
    return ForgettingRecord(**known, before=estimate(1.0), after=estimate(1.0 + change), change=estimate(change))


def record(seed=0, losses=None, **parts):
    seeds = {"seed": seed, "split_seed": 42, "perturbation": None}
    training = MEASURED["training"] | ({"losses": losses} if losses else {})
    return complete("bert_sa_sft", seeds=seeds, training=training, **{name: asdict(part) for name, part in parts.items()})


def verdict(name, old, new):
    return compared_part(name, old, new, load_tolerances())


MOVED = [1e-4 + loss for loss in MEASURED["training"]["losses"]]


def test_equal_figures_are_equal():
    assert verdict("shifted", record(shifted=shifted()), record(shifted=shifted())) == (Verdict.EQUAL, "all figures are equal")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"score": 40.0}, "plain: +40, it was +90"),
        (
            {"contrasts": {"negated": ContrastRecord(meaning="-", pairs=50, right=45, both=45)}},
            "negated, right: +90, it was +96",
        ),
    ],
)
def test_every_figure_is_compared(changes, told):
    other = replace(shifted(), **changes)
    assert verdict("shifted", record(shifted=shifted()), record(shifted=other)) == (
        Verdict.CHANGED,
        f"{told}, and all losses are equal",
    )


def test_equal_losses_mean_equal_weights_so_any_other_drop_is_a_change():
    assert verdict("shifted", record(shifted=shifted()), record(shifted=shifted(drop=-20.25))) == (
        Verdict.CHANGED,
        "typos5: -20.25, it was -20, and all losses are equal",
    )


def test_where_rounding_drove_the_courses_apart_drops_may_differ_as_far_as_it_drives_them():
    old = record(shifted=shifted())
    assert verdict("shifted", old, record(losses=MOVED, shifted=shifted(drop=-22.0)))[0] is Verdict.ROUNDING
    assert verdict("shifted", old, record(losses=MOVED, shifted=shifted(drop=-60.0)))[0] is Verdict.CHANGED


def test_pairs_that_turn_no_more_are_a_change():
    """45 of 50 pairs and 15 of 50: 90 % and 30 %."""
    told = verdict("shifted", record(shifted=shifted()), record(losses=MOVED, shifted=shifted(both=15)))
    assert told == (Verdict.CHANGED, "negated: +30, it was +90")


def test_a_shift_that_one_run_lacks_is_named():
    told = verdict("shifted", record(shifted=shifted()), record(losses=MOVED, shifted=shifted(loud=-1.0)))
    assert told == (Verdict.CHANGED, "loud: -1, it was not there")


def test_forgetting_is_held_to_its_own_tolerance():
    old = record(forgetting=forgetting())
    assert verdict("forgetting", old, record(losses=MOVED, forgetting=forgetting(0.52)))[0] is Verdict.ROUNDING
    assert verdict("forgetting", old, record(losses=MOVED, forgetting=forgetting(1.5))) == (
        Verdict.CHANGED,
        "change: +1.5, it was +0.5",
    )


@pytest.mark.parametrize(
    ("new", "reason"), [(record(seed=1, shifted=shifted()), "no run of the same seed"), (record(), "not measured in both runs")]
)
def test_other_seeds_and_runs_without_it_are_not_compared(new, reason):
    assert verdict("shifted", record(shifted=shifted()), new) == (Verdict.NOT_COMPARABLE, reason)


def test_the_gate_says_it_and_fails_where_numerics_count():
    old, new = record(shifted=shifted()), record(shifted=shifted(drop=-50.0))
    judged = gate(Run.of([old]), Run.of([new]))
    [one] = [judgement for judgement in judged if judgement.quantity == "shifted"]
    assert (one.verdict, one.kind) == (Verdict.CHANGED, "numerics")
    told = " ".join(answer_of([new], judged, kinds=("numerics",), baseline="old.json").sentences)
    assert "Failed: robustness changed in the one cell. Cause: first at the stage typos5" in told
    assert "does not count here" in " ".join(answer_of([new], judged, kinds=("quality",), baseline="old.json").sentences)


def test_a_gate_of_runs_without_instruments_says_nothing_of_them():
    judged = gate(Run.of([record()]), Run.of([record()]))
    assert {"shifted", "forgetting"}.isdisjoint(judgement.quantity for judgement in judged)
