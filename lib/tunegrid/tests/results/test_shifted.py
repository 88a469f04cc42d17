"""What is told of shifts: drops, comparisons with SFT and pairs that turn, worked out by hand."""

from dataclasses import asdict

import pytest

from tunegrid.page import render
from tunegrid.page.view import page_of
from tunegrid.record.instruments import ContrastRecord, ShiftRecord
from tunegrid.record.parts import Estimate
from tunegrid.results import examples
from tunegrid.results.examples import keep_beside, read_shifted
from tunegrid.results.shifted import contrast_lines, objections, rows_of, shift_lines, shift_tables, shifted_record
from tunegrid.run.shifted import Contrast, ShiftedPoints, ShiftPoints
from tunegrid.tests.pages import run_of
from tunegrid.tests.records import complete, seeds_as

RIGHT = [100.0] * 10


pytestmark = pytest.mark.usefixtures("store")


def lost(count):
    """Ten rows of which so many lost all points."""
    return [0.0] * count + [100.0] * (10 - count)


def told(points=None, **changes):
    shifts = {
        name: ShiftPoints(meaning="-", points=own, changed=10, read=10) for name, own in (points or {"typos5": lost(3)}).items()
    }
    return ShiftedPoints(
        **{
            "metric": "accuracy",
            "rows": [{"n": number} for number in range(10)],
            "predictions": [1] * 10,
            "plain": RIGHT,
            "again": list(RIGHT),
            "shifts": shifts,
            "contrasts": {"negated": Contrast(meaning="-", right=[True] * 8 + [False] * 2, twin=[True] * 6 + [False] * 4)},
        }
        | changes
    )


def record(cell, points=None, seed=0, **changes):
    all_points = told(points, **changes)
    part = shifted_record(all_points, examples.write(rows_of(all_points)))
    return complete(cell, shifted=asdict(part), seeds=seeds_as(seed))


def read(one):
    return read_shifted(one, None)


def test_a_drop_is_paired_by_row_and_what_is_read_as_before_has_no_interval():
    # Three of ten rows lose all: -30 points.
    part = shifted_record(told(), None)
    shift = part.shifts["typos5"]
    assert (part.score, shift.score, shift.change.value) == (100.0, 70.0, -30.0)
    assert shift.change.low < -30 < shift.change.high <= 0
    assert part.contrasts["negated"] == ContrastRecord(meaning="-", pairs=10, right=8, both=6)
    assert list(objections(part)) == []
    part = shifted_record(told(shifts={"upper": ShiftPoints(meaning="-", points=list(RIGHT), changed=10, read=0)}), None)
    assert part.shifts["upper"] == ShiftRecord(
        meaning="-", changed=10, read=0, score=100.0, change=Estimate(value=0.0, low=0.0, high=0.0)
    )


def test_answers_that_turn_no_more_often_than_by_a_coins_toss_are_objected_to():
    """Of ten rows that are answered rightly, five twins are; of eight, it is too early to say."""
    blunt = Contrast(meaning="-", right=[True] * 10, twin=[True] * 5 + [False] * 5)
    assert list(objections(shifted_record(told(contrasts={"negated": blunt}), None))) == [
        "shift negated turns the right answer, and of 10 rows that are answered rightly, only 5 twins are: "
        "the model hardly reads what decides"
    ]
    assert list(objections(shifted_record(told(contrasts={"negated": blunt}), None), short=True)) == []
    few = Contrast(meaning="-", right=[True] * 8, twin=[False] * 8)
    assert list(objections(shifted_record(told(contrasts={"negated": few}), None))) == []


def test_a_method_is_held_to_sft_row_by_row_as_a_mean_over_seeds():
    """LoRA loses 3 and 5 of 10 rows, 40 points on average; SFT loses 1, 10 points: 30 points more."""
    lora = [record("bert_sa_lora"), record("bert_sa_lora", {"typos5": lost(5)}, seed=1)]
    records = [*lora, record("bert_sa_sft", {"typos5": lost(1)})]
    lora, sft = shift_lines(records, read)
    assert (lora.change, sft.change, sft.against) == (-40.0, -10.0, None)
    assert lora.against.points == pytest.approx(-30.0)
    assert lora.against.low < -30 < lora.against.high
    assert shift_lines(records, lambda one: None)[0].against is None  # rows that are not at hand
    still = [record(cell, {"upper": list(RIGHT)}) for cell in ("bert_sa_lora", "bert_sa_sft")]
    assert shift_lines(still, read)[0].against is None  # a shift that neither reads


def test_pairs_are_counted_over_seeds():
    """6 of 10 and 4 of 10 pairs are both right: 50 %."""
    other = {"negated": Contrast(meaning="-", right=[True] * 8 + [False] * 2, twin=[True] * 4 + [False] * 6)}
    [line] = contrast_lines([record("bert_sa_sft"), record("bert_sa_sft", seed=1, contrasts=other)])
    assert (line.shift, line.pairs, line.both) == ("negated", 10, 50.0)


def test_the_tables_have_cells_down_and_shifts_across():
    both = {"typos5": lost(3), "upper": lost(9)}
    assert shift_tables([record("bert_sa_lora", {"typos5": lost(4)}), record("bert_sa_sft", both)], read) == [
        "cell            plain typos5 upper negated",
        "bert_sa_lora    100.0  -40.0     -     60%",
        "bert_sa_sft     100.0  -30.0 -90.0     60%",
        "",
        "beyond SFT's:",
        "cell            typos5",
        "bert_sa_lora    -10.0",
    ]
    assert shift_tables([complete("bert_sa_sft")], read) == []


def test_what_holds_among_all_comparisons_has_a_star():
    tables = shift_tables([record("bert_sa_lora", {"typos5": lost(10)}), record("bert_sa_sft", {"typos5": lost(0)})], read)
    assert tables[-1] == "bert_sa_lora    -100.0*"


def test_points_of_rows_are_kept_beside_the_run_and_a_changed_file_is_refused(tmp_path):
    one, run = record("bert_sa_sft"), tmp_path / "run.json"
    keep_beside([one], run)
    assert (tmp_path / "examples" / one.shifted.examples.file).is_file()
    assert read_shifted(one, run) == {"plain": RIGHT, "typos5": lost(3)}
    assert read_shifted(complete("bert_sa_sft"), run) is None


def test_the_page_shows_what_shifts_cost_in_shades():
    page = page_of(run_of([record("bert_sa_lora", {"typos5": lost(4)}), record("bert_sa_sft", {"typos5": lost(1)})]))
    html = render.html(page)
    section = html.partition('id="shifts"')[2].partition("</section>")[0]
    assert '<td class="n b4" title="' in section
    assert '<td class="n b2" title="' in section
    assert "<td>typos5</td>" in section
    assert section.count('<td class="n">60</td>') == 2
    assert 'id="shifts"' not in render.html(page_of(run_of([complete("bert_sa_sft")])))
