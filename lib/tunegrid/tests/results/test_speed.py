"""Ratios of paired turns: intervals, looks and pools worked out by hand; and comparisons of two environments."""

import math

import pytest

from tunegrid.commands.speed import ALL, Change, Comparison, changes_of, log_ratios, moderated, over_all
from tunegrid.results.judgements import Outcome, Verdict
from tunegrid.results.noise import Deviation

TEN = [0.08, 0.10, 0.12, 0.10]  # mean 0.1, variance 0.0008 / 3, standard error 0.01633 / 2
NOISE = (0.0, 0.001, -0.001, 0.0)  # of four rounds
LOUD = [0.3, -0.4, 0.2, -0.1]


def rounds(training, memory=None, noise=NOISE):
    return [{"training": training + n} | ({} if memory is None else {"memory": memory}) for n in noise]


def change(log_ratio, reach):
    """One whose interval reaches so far: of 3 degrees of freedom, t at 1 - 0.01 / 4 looks is 7.4533."""
    return Change(log_ratio=log_ratio, error=reach / 7.4533, df=3)


def test_ratios_are_of_the_median_update_and_of_the_last_peak():
    before = [{"seconds": s, "peak_bytes": 400} for s in (1.0, 2.0, 4.0)]
    after = [{"seconds": s, "peak_bytes": 500} for s in (1.1, 2.2, 9.0)]  # 1.1, 1.1 and 2.25: the third was disturbed
    assert log_ratios(before, after) == pytest.approx({"training": math.log(1.1), "memory": math.log(1.25)})
    assert log_ratios(before, [one | {"peak_bytes": None} for one in after]).keys() == {"training"}


def test_the_interval_of_four_rounds_by_hand_is_wider_among_more_cells():
    # t of 3 degrees of freedom at 1 - 0.01 / 4 looks is 7.4533, times 0.008165 is 0.06086: exp(0.03914) and exp(0.16086)
    found = changes_of({"a": TEN})["a"]
    assert (found.log_ratio, found.error, found.df) == (pytest.approx(0.1), pytest.approx(0.008165, rel=1e-3), 3)
    assert found.interval == pytest.approx((1.0399, 1.1745), abs=1e-4)
    assert found.verdict is Verdict.CANNOT_TELL
    # Two cells and both together are three tests; the variance of both is common to them, with 6 degrees of freedom:
    # t at 1 - 0.01 / 4 / 3 is 5.3982; the deviation is that of `test_cells_with_the_same_noise...`, 1.2026 times their own
    found = changes_of({"a": TEN, "b": TEN})["a"]
    assert found.df == 6
    assert math.log(found.interval[1]) - found.log_ratio == pytest.approx(5.3982 * 1.2026 * 0.008165, rel=1e-3)


@pytest.mark.parametrize(
    ("log_ratio", "reach", "verdict"),
    [
        (0.10, 0.04, Verdict.WORSE),  # 1.062 to 1.150
        (0.10, 0.06, Verdict.CANNOT_TELL),  # 1.041 to 1.174
        (0.03, 0.01, Verdict.SAME),  # slower for certain, by less than the margin
        (0.00, 0.06, Verdict.CANNOT_TELL),
        (-0.10, 0.04, Verdict.BETTER),
        (-0.04, 0.02, Verdict.CANNOT_TELL),
    ],
)
def test_a_verdict_needs_the_whole_interval(log_ratio, reach, verdict):
    assert change(log_ratio, reach).verdict is verdict


def test_a_cell_is_judged_at_the_first_look_that_tells_it_or_else_at_its_last():
    found = changes_of({"a": [*[0.2, 0.201, 0.199, 0.2], *[0.0] * 6]})["a"]
    assert (found.log_ratio, found.verdict) == (pytest.approx(0.2), Verdict.WORSE)
    found = changes_of({"a": [0.3, -0.3] * 4 + [0.1]})["a"]  # nine rounds: the look after eight was the last
    assert (found.log_ratio, found.df, found.verdict) == (0, 7, Verdict.CANNOT_TELL)
    assert changes_of({"a": [0.0, 0.0, 0.0]}) == {}
    # Each turn takes 2 % longer than the one before: A B, B A, A B, B A
    assert changes_of({"a": [0.02, -0.02, 0.02, -0.02]})["a"].log_ratio == pytest.approx(0.0)


def test_noise_of_several_cells_by_hand():
    # Few degrees of freedom make logs of variances low: digamma(1.5) - log(1.5) = 0.0365 - 0.4055, half of which is 1.2026
    both = moderated({"a": Deviation(sd=0.01, df=3), "b": Deviation(sd=0.01, df=3)})
    assert both["a"] == both["b"]
    assert (both["a"].sd, both["a"].df) == (pytest.approx(0.012026, rel=1e-3), 6)
    quiet = {str(cell): Deviation(sd=0.01, df=3) for cell in range(8)}
    noise = moderated(quiet | {"noisy": Deviation(sd=0.5, df=3)})
    assert noise["noisy"].sd > 0.35
    assert noise["noisy"].df == 3
    # sqrt(0.003^2 + 0.004^2) / 2 = 0.0025; 6 x (9 + 16)^2 / (9^2 + 16^2) = 11.128 degrees of freedom
    found = over_all([Change(log_ratio=mean, error=error, df=6) for mean, error in ((0.02, 0.003), (0.04, 0.004))])
    assert (found.log_ratio, found.error) == (pytest.approx(0.03), pytest.approx(0.0025))
    assert (found.df, found.cells) == (pytest.approx(11.128, abs=1e-3), 2)
    assert ALL in changes_of({"a": TEN, "b": TEN})
    assert ALL not in changes_of({"a": TEN, "b": TEN[:3]})
    assert ALL not in changes_of({"a": TEN})


@pytest.mark.parametrize(
    ("ratios", "outcome", "answer"),
    [
        (rounds(math.log(1.03), 0.0), Outcome.NO_WORSE, "training 3 % slower (3 to 3 %), memory the same (0 to 0 %)"),
        (rounds(0.0, math.log(1.1)), Outcome.WORSE, "training as fast (0 to 0 %), memory 10 % larger (10 to 10 %)"),
        (rounds(0.0, noise=LOUD), Outcome.CANNOT_TELL, "): cannot tell"),
    ],
)
def test_one_cell_has_the_answer_alone(ratios, outcome, answer):
    comparison = Comparison(ratios={"bert_sa_lora": ratios})
    assert (comparison.outcome, len(comparison.report)) == (outcome, 1)
    assert comparison.report[0].endswith(answer)


def test_a_slower_cell_is_worse_among_equal_ones_and_cells_are_open_until_every_figure_is_told():
    comparison = Comparison(ratios={"bert_sa_lora": rounds(math.log(1.2)), "gpt2_sa_lora": rounds(0.0)})
    slower, equal, answer = comparison.report
    assert slower.startswith("bert_sa_lora: training 20 % slower (")
    assert equal == "gpt2_sa_lora: training as fast (0 to 0 %)"
    assert answer.startswith("Worse: training 10 % slower (")  # the geometric mean of 1.2 and 1 is 1.095
    assert answer.endswith(" over 2 cells")
    ratios = {"told": rounds(0.0), "noisy": rounds(0.0, noise=LOUD), "begun": rounds(0.0)[:1], "new": []}
    assert Comparison(ratios=ratios).open_cells == ["noisy", "begun", "new"]
    assert Comparison(ratios={"new": []}).report == ["Cannot tell: too few rounds"]
