"""The table of what must be equal, and what it is compared by: differences, definitions and formulas worked out by hand."""

import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.equivalences import KNOWN, MERGING, ROWS, SAVING
from benchmarks.equivalent.answers import moved_left
from benchmarks.equivalent.compare import OTHER, SAME_BITS, apart, differences, drift, gaps, of_whole, within
from benchmarks.equivalent.options import schedule
from benchmarks.equivalent.quantized import blocks_of, dynamic_levels, nearest, nf4_levels
from tunegrid import ROOT
from tunegrid.grid.cells import STUDY
from tunegrid.grid.profiles import QUICK_PROFILE, ZOO_PROFILE
from tunegrid.grid.zoo import zoo

# The table


def test_every_row_has_a_name_of_its_own_a_reason_and_a_plant_that_says_what_it_does():
    assert [name for name, count in Counter(row.id for row in (*ROWS, *KNOWN)).items() if count > 1] == []
    assert [row.id for row in ROWS if not (row.why and row.equal and row.cells and row.plant.__doc__)] == []
    assert [row.id for row in KNOWN if not (row.what and row.library)] == []


def test_every_cell_of_the_table_is_one_of_the_study_or_of_the_zoo():
    known = {*STUDY.ids(QUICK_PROFILE), *zoo().ids(ZOO_PROFILE)}
    assert {cell for row in (*ROWS, *KNOWN) for cell in row.cells} <= known


@pytest.mark.parametrize("rows", [SAVING, (*MERGING, *KNOWN)], ids=["saving", "merging"])
def test_every_method_of_the_zoo_is_saved_and_every_one_that_can_be_merged_is_merged(rows):
    methods = {cell.split("_")[2] for cell in zoo().ids(ZOO_PROFILE)}
    without_layers = {"sft", "bitfit", "prompt"} if rows is not SAVING else set()
    assert methods - {cell.split("_")[2] for row in rows for cell in row.cells} - without_layers == set()


def test_the_guide_shows_all_that_is_known():
    page = (ROOT / "benchmarks" / "guides" / "what-must-be-equal.md").read_text()
    shown = [
        name for line in page.splitlines() if line.startswith("| `") for name in re.findall("`([^`]+)`", line.split("|")[1])
    ]
    assert sorted(shown) == sorted(row.id for row in KNOWN)


# Differences


def test_how_far_apart_two_tensors_are_is_the_norm_of_their_difference_in_units_of_the_larger_norm():
    assert apart(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])) == 0.0
    assert apart(torch.tensor([0.0, 8.0]), torch.tensor([6.0, 8.0])) == pytest.approx(0.6)  # 6 of 10


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([1.0]), torch.tensor([1.0, 1.0])),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        (torch.tensor([math.nan]), torch.tensor([math.nan])),
        (torch.tensor([0.0]), torch.tensor([math.nan])),
        (torch.tensor([1]), torch.tensor([2])),
        ("a", "b"),
        (1, True),
    ],
)
def test_what_cannot_be_compared_is_infinitely_far_apart(one, other):
    assert apart(one, other) == math.inf


def test_a_drift_is_the_mean_difference_with_its_sign():
    one = torch.tensor([1.0, -1.0, 2.0, 4.0])  # mean size 2
    assert drift(one, one + torch.tensor([0.1, -0.1, 0.1, -0.1])) == pytest.approx(0.0, abs=1e-7)
    assert drift(one, one + 0.1) == pytest.approx(0.05)


def test_a_difference_is_named_with_its_place():
    one, other = {"weights": {"a": torch.ones(2), "b": torch.ones(2)}}, {"weights": {"a": torch.ones(2), "b": torch.zeros(2)}}
    assert differences(one, other, {"weights": within(0.5)}) == ["weights[b]: 1.0e+00 apart, allowed 5e-01"]
    assert differences(one, one, {"weights": SAME_BITS}) == []
    assert gaps(one, other, {"weights": SAME_BITS}) == {"weights": 1.0}


def test_a_part_that_is_nothing_but_rounding_counts_as_part_of_the_whole():
    one = {"gradients": {"large": torch.tensor([3.0, 4.0]), "nothing": torch.tensor([1e-9])}}
    other = {"gradients": {"large": torch.tensor([3.0, 4.0]), "nothing": torch.tensor([-1e-9])}}
    assert gaps(one, other, {"gradients": of_whole(0.1)})["gradients"] == pytest.approx(4e-10)  # 2e-9 of 5
    assert differences(one, other, {"gradients": of_whole(1e-6)}) == []
    assert differences(one, other, {"gradients": within(1e-6)}) != []


def test_a_place_that_only_one_has_is_a_difference():
    assert differences({"rows": {"a": 1}}, {"rows": {}}, {"rows": SAME_BITS}) == ["rows: there is nothing to compare"]
    assert differences({"rows": {"a": 1, "b": 2}}, {"rows": {"a": 1}}, {"rows": SAME_BITS}) == [
        "rows[b]: 2 is not None, allowed 0e+00"
    ]


def test_what_must_differ_and_does_not_is_named():
    same = {"losses": [1.0, 2.0]}
    assert differences(same, same, {"losses": OTHER}) == ["losses: nothing differs by more than 0e+00, and something should"]
    assert differences(same, {"losses": [1.0, 2.5]}, {"losses": OTHER}) == []


def test_small_differences_of_one_sign_are_a_bug_where_those_of_random_sign_are_noise():
    one = {"losses": [1.0] * 4}
    noisy, biased = {"losses": [1.01, 0.99, 1.01, 0.99]}, {"losses": [1.01] * 4}
    assert differences(one, noisy, {"losses": within(0.1, drift=0.005)}) == []
    assert differences(one, biased, {"losses": within(0.1, drift=0.005)}) == [
        "losses: the mean difference is 1.0e-02 of the mean size, allowed 5e-03"
    ]


# Definitions


def test_nf4_has_sixteen_levels_zero_among_them_and_more_above_than_below():
    levels = nf4_levels()
    assert (len(levels), levels.min(), levels.max(), (levels == 0).sum()) == (16, -1.0, 1.0, 1)
    assert ((levels > 0).sum(), (levels < 0).sum()) == (8, 7)
    assert levels[8] == pytest.approx(0.0795803)  # as the QLoRA paper prints it, appendix E


def test_codes_of_eight_bits_have_as_many_steps_in_a_power_of_ten_as_bits_are_left():
    signed, unsigned = dynamic_levels(True), dynamic_levels(False)
    assert (len(signed), len(unsigned)) == (256, 256)
    assert sorted(signed[(signed > 0.1) & (signed < 1)])[0] == pytest.approx(0.1 + 0.9 / 128)  # 64 steps, middles of them
    assert signed[signed > 0][0] == pytest.approx(0.55e-6)  # one step: the middle of 0.1 and 1
    assert [*unsigned[(unsigned > 0) & (unsigned < 1e-6)]] == pytest.approx([0.325e-6, 0.775e-6])


def test_a_short_last_block_and_a_block_of_zeros_have_scales_of_their_own():
    divided, scales = blocks_of(np.array([1.0, -4.0, 0.0, 0.0, 3.0]), 2)
    assert [*scales] == [4.0, 0.0, 3.0]
    assert [*divided] == [0.25, -1.0, 0.0, 0.0, 1.0]


def test_of_two_levels_that_are_as_near_either_will_do_and_no_other():
    levels = np.array([-1.0, 0.0, 1.0])
    values, given = np.array([0.5] + [0.9] * 199), np.array([1] + [0] * 199)
    assert [*nearest(values, levels, given)[:2]] == [1, 2]


def test_a_schedule_by_formula():
    recipe = STUDY.cell("gpt2_sum_lora", QUICK_PROFILE).recipe
    line = replace(recipe, lr_scheduler_type="linear", warmup_steps=2)
    assert [schedule(line, update, 6) for update in range(6)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    half = replace(recipe, lr_scheduler_type="cosine", warmup_steps=0, warmup_ratio=0.5)
    assert [schedule(half, update, 4) for update in range(4)] == pytest.approx([0.0, 0.5, 1.0, 0.5])


def test_padding_moves_to_the_front_with_its_mask_and_labels():
    batch = {
        "input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]),
        "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "labels": torch.tensor([[-100, 6, -100], [7, 8, 9]]),
        "decoder_input_ids": torch.tensor([[1, 2, 0], [1, 2, 3]]),
    }
    moved = moved_left(batch, 3)
    assert moved["input_ids"].tolist() == [[3, 5, 6], [7, 8, 9]]
    assert moved["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert moved["labels"].tolist() == [[-100, -100, 6], [7, 8, 9]]
    assert moved["decoder_input_ids"] is batch["decoder_input_ids"]
