"""Robustness and forgetting of two runs of one seed: equal, moved by rounding, or changed."""

from dataclasses import asdict, replace

import pytest
from tunegrid.record.instruments import ContrastRecord, ForgettingRecord, ShiftedRecord, ShiftRecord
from tunegrid.results.instruments import compared_part

from tunegrid.record.parts import Estimate
from tunegrid.results.answer import answer_of
from tunegrid.results.gate import Run, gate
from tunegrid.results.judgements import Verdict
from tunegrid.results.numerics import load_tolerances
from tunegrid.tests.records import MEASURED, complete, seeds_as


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
    training = MEASURED["training"] | ({"losses": losses} if losses else {})
    return complete(
        "bert_sa_sft", seeds=seeds_as(seed), training=training, **{name: asdict(part) for name, part in parts.items()}
    )


def verdict(name, old, new):
    return compared_part(name, old, new, load_tolerances())


MOVED = [1e-4 + loss for loss in MEASURED["training"]["losses"]]


FEWER = {"negated": ContrastRecord(meaning="-", pairs=50, right=45, both=45)}
EQUAL_LOSSES = ", and all losses are equal"


@pytest.mark.parametrize(
    ("losses", "after", "told"),
    [
        (None, shifted(), (Verdict.EQUAL, "all figures are equal")),
        (None, replace(shifted(), score=40.0), (Verdict.CHANGED, f"plain: +40, it was +90{EQUAL_LOSSES}")),
        (None, replace(shifted(), contrasts=FEWER), (Verdict.CHANGED, f"negated, right: +90, it was +96{EQUAL_LOSSES}")),
        # equal losses mean equal weights, so that any other drop is a change
        (None, shifted(drop=-20.25), (Verdict.CHANGED, f"typos5: -20.25, it was -20{EQUAL_LOSSES}")),
        # where rounding drove the courses apart, drops may differ as far as it drives them
        (MOVED, shifted(drop=-22.0), (Verdict.ROUNDING, "typos5: -22, it was -20")),
        (MOVED, shifted(drop=-60.0), (Verdict.CHANGED, "typos5: -60, it was -20")),
        (MOVED, shifted(both=15), (Verdict.CHANGED, "negated: +30, it was +90")),  # 45 of 50 pairs and 15 of 50
        (MOVED, shifted(loud=-1.0), (Verdict.CHANGED, "loud: -1, it was not there")),
    ],
)
def test_shifts_are_equal_moved_by_rounding_or_changed(losses, after, told):
    assert verdict("shifted", record(shifted=shifted()), record(losses=losses, shifted=after)) == told


@pytest.mark.parametrize(
    ("change", "told"),
    [(0.52, (Verdict.ROUNDING, "change: +0.52, it was +0.5")), (1.5, (Verdict.CHANGED, "change: +1.5, it was +0.5"))],
)
def test_forgetting_is_held_to_its_own_tolerance(change, told):
    old, new = record(forgetting=forgetting()), record(losses=MOVED, forgetting=forgetting(change))
    assert verdict("forgetting", old, new) == told


def test_other_seeds_and_runs_without_it_are_not_compared():
    for new, reason in ((record(1, shifted=shifted()), "no run of the same seed"), (record(), "not measured in both runs")):
        assert verdict("shifted", record(shifted=shifted()), new) == (Verdict.NOT_COMPARABLE, reason)


def test_the_gate_says_it_and_fails_where_numerics_count():
    old, new = record(shifted=shifted()), record(shifted=shifted(drop=-50.0))
    judged = gate(Run.of([old]), Run.of([new]))
    [one] = [judgement for judgement in judged if judgement.quantity == "shifted"]
    assert (one.verdict, one.kind) == (Verdict.CHANGED, "numerics")
    told = " ".join(answer_of([new], judged, kinds=("numerics",), baseline="old.json").sentences)
    assert "Failed: robustness changed in the one cell. Cause: first at the stage typos5" in told
    assert "does not count here" in " ".join(answer_of([new], judged, kinds=("quality",), baseline="old.json").sentences)
    judged = gate(Run.of([record()]), Run.of([record()]))
    assert {"shifted", "forgetting"}.isdisjoint(judgement.quantity for judgement in judged)
