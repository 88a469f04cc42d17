"""Looks: shares of alpha, and which cells to train once more."""

import pytest

from tunegrid.errors import InputError
from tunegrid.results.gates import gate
from tunegrid.results.judgements import Judgement, Verdict
from tunegrid.results.looks import chance_to_tell, promising, share_of_alpha
from tunegrid.tests.test_quality import BOTH, accuracy, noise_of, run_of, store  # noqa: F401


def untold(cell, effect, error=1.0, seeds=1, **changes):
    """A judgement with a 95 % interval of two standard errors and a margin of one point; worse from three standard errors."""
    evidence = {"low": effect - 2 * error, "error": error, "critical": 3.0, "margin": 1.0, "seeds": seeds, "effect": effect}
    names = {"cell": cell, "main_score": "f1", "quantity": "f1", "verdict": Verdict.CANNOT_TELL}
    return Judgement(**names | evidence | changes)


def test_shares_of_all_looks_make_one():
    assert sum(share_of_alpha(look, 5) for look in range(1, 6)) == pytest.approx(1.0)
    assert share_of_alpha(1, 1) == 1.0


@pytest.mark.parametrize(("look", "looks"), [(0, 3), (4, 3), (1, 0)])
def test_a_look_that_does_not_exist_is_refused(look, looks):
    with pytest.raises(InputError, match=f"look {look} of {looks} does not exist"):
        share_of_alpha(look, looks)


def test_intervals_of_a_look_hold_at_its_share_of_alpha():
    once, first = (accuracy(gate(run_of([0]), run_of([20]), noise=noise_of(BOTH), looks=looks)) for looks in (1, 4))
    # one cell, df 20: t of 1 - 0.05 / 2 is 2.086, of 1 - 0.0125 / 2 it is 2.744
    assert (first.effect - first.low) / (once.effect - once.low) == pytest.approx(2.744 / 2.086, rel=1e-3)
    assert (first.high - first.effect) / (once.high - once.effect) == pytest.approx(2.744 / 2.086, rel=1e-3)


def test_the_chance_to_tell_by_hand():
    # one more seed: reach 2 / sqrt 2 = 1.414, spread 1 / sqrt 2 = 0.707; same if it then exceeds 0.414: (0.5 - 0.414) / 0.707
    # worse from -3 / sqrt 2 = -2.121: (-0.5 - 2.121) / 0.707 = -3.71
    assert chance_to_tell(untold("a", 0.5)) == pytest.approx(0.548, abs=0.001)


def test_cells_near_a_verdict_come_first_and_told_ones_not_at_all():
    told = untold("e", 0.0, verdict=Verdict.SAME)
    other = untold("f", 0.9, quantity="exact_match")
    judged = [untold("a", -1.0), untold("b", 0.9), untold("c", -2.8), untold("d", -1.2, error=30.0), told, other]
    assert promising(judged) == ["c", "b", "a", "d"]


def test_what_seeds_cannot_help_comes_last():
    no_rows = Judgement(cell="z", main_score="f1", quantity="f1", verdict=Verdict.CANNOT_TELL, effect=-3.0)
    assert promising([no_rows, untold("a", -1.0)]) == ["a", "z"]
