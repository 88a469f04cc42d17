"""Training noise: deviations of cells and of their kind, and what they hold for."""

from dataclasses import replace

import pytest

from tunegrid.errors import InputError
from tunegrid.gate.noise import SEEDS, Deviation, Noise, deviation, load_noise, make_scale
from tunegrid.runs.files import OwnNoise, recipe_digest
from tunegrid.tests.records import altered, complete, draws

OWN = {
    "bert_qa_lora": (4.0, 19),
    "bert_qa_qlora": (1.0, 19),
    "bert_qa_sft": (0.0, 19),
    "t5_qa_lora": (0.0, 9),
}


def make_noise(rows):
    scores = {(cell, "f1"): draws(sd, df, rows) for cell, (sd, df) in OWN.items()}
    return Noise(profile="quick", rows={"qa": rows}, scores={SEEDS: scores})


NOISE = make_noise(15)


def test_a_scale_of_errors_is_wide_near_100_and_ends_at_0_and_100():
    scale = make_scale(500, "accuracy")
    assert (scale.position(50.0), scale.position(100.1), scale.position(-1.0)) == pytest.approx(
        (78.540, scale.position(100.0), scale.position(0.0)), abs=1e-3
    )
    assert (scale.per_point(50.0), scale.per_point(98.5)) == pytest.approx(
        (50 / 50.1, 50 / (98.6 * 1.6) ** 0.5)
    )
    assert (scale.shift(99.0, 100.0), scale.shift(1.0, -100.0)) == pytest.approx((100.0, 0.0))
    assert scale.shift(90.0, scale.position(95.0) - scale.position(90.0)) == pytest.approx(95.0)
    # half a row's: of 500 rows 0.1 points, of 192 by BERTScore half of 15.6
    assert scale.resolution(50.0) == pytest.approx(0.1 * 50 / 50.1)
    assert make_scale(192, "bertscore_f1").half == pytest.approx(15.6 / 192 / 2)


def test_the_tail_is_the_worst_seed_of_any_cell_of_the_kind():
    scale = make_scale(500, "f1")
    # deviations -4 and four times 1: a variance of 20 / 4, and the mean of five takes a fifth of
    # it: -4 / sqrt(5) / sqrt(0.8)
    uneven = [[scale.shift(90.0, deviation) for deviation in (-4.0, 1.0, 1.0, 1.0, 1.0)]]
    scores = {
        ("bert_qa_lora", "f1"): uneven,
        ("bert_qa_sft", "f1"): [[90.0, 90.0]],
        ("t5_qa_sft", "f1"): [[90.0, 90.0]],
    }
    noise = Noise(profile="quick", rows={"qa": 500}, scores={SEEDS: scores})
    tails = [noise.tail(cell, "f1") for cell in ("bert_qa_lora", "bert_qa_sft", "t5_qa_sft")]
    assert tails == pytest.approx([2.0, 2.0, 0.0])


def test_deviations_are_pooled_within_groups():
    # seed 0: 1, 3 (variance 2, 1 degree); seed 1: 10, 10, 13 (variance 3, 2 degrees): (2 + 6) / 3
    assert deviation([[1.0, 3.0], [10.0, 10.0, 13.0]]) == Deviation(
        sd=pytest.approx((8 / 3) ** 0.5), df=3
    )
    assert deviation([[5.0], [9.0]]) is None


@pytest.mark.parametrize(
    ("cell", "sd", "df"),
    [
        ("bert_qa_lora", 4.0, 19),  # its own is larger than its kind's
        ("bert_qa_sft", (17 / 3) ** 0.5, 19),  # 16, 1 and 0: the variance of its kind
        ("bert_qa_dora", (17 / 3) ** 0.5, 57),  # a method that was not calibrated
        ("t5_qa_lora", 0.5 * 50 / 50.5, 9),  # no draw moved: half a row of 100
    ],
)
def test_the_larger_of_a_cells_noise_and_its_kinds_counts(cell, sd, df):
    own = make_noise(100).estimate(SEEDS, cell, "f1", 50.0)
    assert own.sd == pytest.approx(sd)
    assert own.df == df


def test_noise_holds_for_its_profile_and_test_rows_only_and_no_file_is_none(tmp_path):
    record = complete("bert_qa_lora")  # 15 test rows
    assert NOISE.find(SEEDS, record, "f1")
    assert NOISE.find("perturbed", record, "f1") is NOISE.find(SEEDS, record, "exact_match") is None
    assert NOISE.find(SEEDS, replace(record, cell="roberta_qa_lora"), "f1") is None
    assert NOISE.find(SEEDS, replace(record, profile="full"), "f1") is None
    assert replace(NOISE, rows={"qa": 7}).find(SEEDS, record, "f1") is None
    assert load_noise(tmp_path / "noise.toml") == Noise()


def test_a_users_cell_has_the_noise_that_was_calibrated_for_its_recipe_and_rows():
    record = complete("bert_qa_lora", cell="bert_faq_lora", task="faq", main_score="f1")
    digest = recipe_digest(record)
    own = OwnNoise(
        cell="bert_faq_lora",
        profile="quick",
        recipe=digest,
        rows=15,
        scores={"f1": [20.0, 50.0, 80.0]},
    )
    noise = replace(NOISE, own=[own])
    # 15 rows are steps of 6.67 points: 20 is at 100 * asin(sqrt(23.33 / 106.67)) = 48.67, 50 and 80
    # at 78.54 and 108.41
    assert noise.find(SEEDS, record, "f1") == Deviation(sd=pytest.approx(29.87, abs=0.01), df=2)
    assert noise.scale("bert_faq_lora", "f1") == make_scale(15, "f1")
    assert noise.find("perturbed", record, "f1") is noise.find(SEEDS, record, "exact_match") is None
    assert noise.find(SEEDS, altered(record, "recipe.learning_rate", 0.5), "f1") is None
    assert noise.find(SEEDS, replace(record, cell="bert_faq_sft"), "f1") is None
    assert replace(noise, own=[replace(own, rows=16)]).find(SEEDS, record, "f1") is None
    equal = replace(own, scores={"f1": [50.0, 50.0]})  # no draw moved: half a row
    assert replace(noise, own=[equal]).find(SEEDS, record, "f1").sd == pytest.approx(
        make_scale(15, "f1").resolution(record.scores["f1"])
    )


def test_a_users_method_has_at_least_its_kinds_noise_and_a_cell_of_the_suite_the_suites():
    record = complete("bert_qa_lora")
    mine = replace(record, cell="bert_qa_mine", method="mine")
    scores = {"f1": [50.0, 50.0, 50.0]}
    own = [
        OwnNoise(cell=cell, profile="quick", recipe=recipe_digest(record), rows=15, scores=scores)
        for cell in ("bert_qa_mine", "bert_qa_lora")
    ]
    noise = replace(NOISE, own=own)
    assert noise.find(SEEDS, record, "f1") == NOISE.find(SEEDS, record, "f1")
    assert noise.find(SEEDS, mine, "f1") == Deviation(sd=NOISE.find(SEEDS, mine, "f1").sd, df=2)


@pytest.mark.parametrize(
    "text",
    [
        "[cells",
        "[rows]\nqa = 5\n",
        '[rows]\n[evidence]\nprofile = "quick"\n[cells.a_qa_b]\nf1 = {seeds = {sd = 1, df = 4}}\n',
    ],
)
def test_a_broken_file_is_refused_with_the_command_that_writes_it(tmp_path, text):
    path = tmp_path / "noise.toml"
    path.write_text(text)
    with pytest.raises(
        InputError, match=r"holds no noise .*; `python -m tunegrid.lab calibrate` writes it"
    ):
        load_noise(path)
