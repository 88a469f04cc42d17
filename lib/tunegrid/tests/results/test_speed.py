"""Comparisons of two environments by turns that are written here."""

import math

import pytest

from tunegrid.record.turn import Turn
from tunegrid.results.judgements import Outcome
from tunegrid.results.pairs import Rule
from tunegrid.results.speed import MIB, Comparison, evaluation_ratio, memory_ratio, update_ratio

RULE = Rule(rounds=4)
NOISE = (1.0, 1.001, 0.999, 1.0)  # of four rounds


def turn(*seconds, rows=None, peak=500 * MIB):
    return Turn(update_seconds=seconds or (0.01,), waited_share=0.0, rows_per_second=rows, peak_bytes=peak)


def pairs(slower=1.0, larger=1.0, peaks=(0, 1, 2, 0)):
    """Four rounds, after / before; peaks differ by some pages from turn to turn, the same on both sides."""
    return [
        (turn(0.01, peak=500 * MIB + page), turn(0.01 * slower * noise, peak=round((500 * MIB + page) * larger)))
        for noise, page in zip(NOISE, (4096 * page for page in peaks), strict=True)
    ]


def test_an_updates_ratio_is_the_median_over_updates():
    # 1.1, 1.1 and 2.25: the third update was disturbed
    assert update_ratio(turn(1.0, 2.0, 4.0), turn(1.1, 2.2, 9.0)) == pytest.approx(math.log(1.1))


def test_the_other_ratios_by_hand():
    assert evaluation_ratio(turn(rows=100.0), turn(rows=80.0)) == pytest.approx(math.log(1.25))
    assert memory_ratio(turn(peak=400), turn(peak=500)) == pytest.approx(math.log(1.25))


def test_what_was_not_measured_has_no_ratio():
    assert evaluation_ratio(turn(), turn()) is None
    assert memory_ratio(turn(peak=None), turn(peak=500)) is None


def test_the_answer_is_one_line():
    comparison = Comparison(pairs={"bert_sa_lora": pairs(slower=1.04)}, rule=RULE)
    assert comparison.answer == "No worse: training 4 % slower (4 to 4 %), memory equal"
    assert comparison.outcome is Outcome.NO_WORSE


def test_a_slower_cell_is_named_among_equal_ones():
    comparison = Comparison(pairs={"bert_sa_lora": pairs(slower=1.2), "gpt2_sa_lora": pairs()}, rule=RULE)
    assert comparison.answer.startswith("Worse: training 10 % slower (")  # the geometric mean of 1.2 and 1 is 1.095
    assert comparison.answer.endswith("memory equal over 2 cells; worse: bert_sa_lora")
    assert comparison.outcome is Outcome.WORSE


def test_memory_is_equal_where_peaks_of_the_two_sides_overlap():
    pages = Comparison(pairs={"a": pairs(larger=1 + 4096 / (500 * MIB))}, rule=RULE)  # one page more: within one side's spread
    mebibytes = Comparison(pairs={"a": pairs(larger=1.01)}, rule=RULE)
    larger = Comparison(pairs={"a": pairs(larger=1.1)}, rule=RULE)
    assert pages.answer.endswith("memory equal")
    assert mebibytes.answer.endswith("memory 1 % larger (1 to 1 %)")
    assert (mebibytes.outcome, larger.outcome) == (Outcome.NO_WORSE, Outcome.WORSE)


def test_memory_that_the_system_does_not_tell_is_left_out():
    comparison = Comparison(pairs={"a": [(turn(peak=None), turn(peak=None))] * 4}, rule=RULE)
    assert comparison.answer == "No worse: training as fast (0 to 0 %)"


def test_a_noisy_comparison_cannot_tell():
    noisy = [(turn(1.0), turn(ratio)) for ratio in (1.3, 0.7, 1.2, 0.9)]
    comparison = Comparison(pairs={"a": noisy}, rule=RULE)
    assert comparison.outcome is Outcome.CANNOT_TELL
    assert "): cannot tell, memory equal" in comparison.answer


def test_cells_are_open_until_every_figure_is_told():
    noisy = [(turn(1.0), turn(ratio)) for ratio in (1.3, 0.7, 1.2, 0.9)]
    comparison = Comparison(pairs={"told": pairs(), "noisy": noisy, "begun": pairs()[:1], "new": []}, rule=Rule(rounds=10))
    assert comparison.open_cells == ["noisy", "begun", "new"]


def test_before_the_first_look_nothing_is_said():
    comparison = Comparison(pairs={"a": pairs()[:2]}, rule=RULE)
    assert comparison.answer == "Cannot tell: training too few rounds, memory too few rounds"


def test_the_table_has_a_line_per_cell():
    comparison = Comparison(pairs={"bert_sa_lora": pairs(slower=1.2), "gpt2_sa_lora": pairs()}, rule=RULE)
    titles, slower, equal = comparison.table
    assert titles.split() == ["cell", "rounds", "before", "after", "training", "memory"]
    assert slower.split()[:6] == ["bert_sa_lora", "4", "10.0", "ms", "12.0", "ms"]
    assert equal.split()[0] == "gpt2_sa_lora"
    assert equal.endswith("equal")
