"""Training noise: deviations of cells and of their kind, and what they hold for."""

from dataclasses import replace

import pytest

from tunegrid.errors import InputError
from tunegrid.results.noise import SEEDS, Deviation, Noise, deviation, load_noise, resolution
from tunegrid.tests.records import complete

OWN = {"bert_qa_lora": (4.0, 19), "bert_qa_qlora": (1.0, 19), "bert_qa_sft": (0.0, 19), "t5_qa_lora": (0.0, 9)}
NOISE = Noise(
    profile="quick",
    rows={"qa": 15},
    measured={SEEDS: {(cell, "f1"): Deviation(sd=sd, df=df) for cell, (sd, df) in OWN.items()}},
)


def test_deviations_are_pooled_within_groups_and_no_flip_is_half_a_rows_noise():
    # seed 0: 1, 3 (variance 2, 1 degree); seed 1: 10, 10, 13 (variance 3, 2 degrees): (2 + 6) / 3
    assert deviation([[1.0, 3.0], [10.0, 10.0, 13.0]]) == Deviation(sd=pytest.approx((8 / 3) ** 0.5), df=3)
    assert deviation([[5.0], [9.0]]) is None
    assert (resolution(500), resolution(192, "bertscore_f1")) == (0.1, pytest.approx(15.6 / 192 / 2))


@pytest.mark.parametrize(
    ("cell", "sd", "df"),
    [
        ("bert_qa_lora", 4.0, 19),  # its own is larger than its kind's
        ("bert_qa_sft", (17 / 3) ** 0.5, 19),  # 16, 1 and 0: the variance of its kind
        ("bert_qa_dora", (17 / 3) ** 0.5, 57),  # a method that was not calibrated
        ("t5_qa_lora", 100 / 15 / 2, 9),  # no draw moved: half a row
    ],
)
def test_the_larger_of_a_cells_noise_and_its_kinds_counts(cell, sd, df):
    own = replace(NOISE, rows={"qa": 100 if cell != "t5_qa_lora" else 15}).estimate(SEEDS, cell, "f1")
    assert (own.sd, own.df) == (pytest.approx(sd), df)


def test_noise_holds_for_its_profile_and_test_rows_only_and_no_file_is_none(tmp_path):
    record = complete("bert_qa_lora")  # 15 test rows
    assert NOISE.of(SEEDS, record, "f1")
    assert NOISE.of("perturbed", record, "f1") is NOISE.of(SEEDS, record, "exact_match") is None
    assert NOISE.of(SEEDS, replace(record, cell="roberta_qa_lora"), "f1") is None
    assert NOISE.of(SEEDS, replace(record, profile="full"), "f1") is None
    assert replace(NOISE, rows={"qa": 7}).of(SEEDS, record, "f1") is None
    assert load_noise(tmp_path / "noise.toml") == Noise()


@pytest.mark.parametrize(
    "text",
    ["[cells", "[rows]\nqa = 5\n", '[rows]\n[evidence]\nprofile = "quick"\n[cells.a_qa_b]\nf1 = {seeds = {sd = 1, df = 4}}\n'],
)
def test_a_broken_file_is_refused_with_the_command_that_writes_it(tmp_path, text):
    path = tmp_path / "noise.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"holds no noise .*; `python -m tunegrid.lab calibrate` writes it"):
        load_noise(path)
