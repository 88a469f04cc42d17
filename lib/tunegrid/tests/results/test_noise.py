"""Training noise: deviations pooled over cells, and which kind separates two runs."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import special

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.results.examples import read
from tunegrid.results.gate import read_run
from tunegrid.results.noise import (
    STEPS,
    Deviation,
    Noise,
    deviation,
    inverse_trigamma,
    load_noise,
    pooled,
    residuals,
    resolution,
    tail,
    tails,
)
from tunegrid.results.statistics import gains_of
from tunegrid.tests.records import complete

REPORTS = ROOT / "reports"
ROWS = {"qa": 500, "sa": 500, "sum": 500}
METHODS = ("lora", "qlora", "sft")


def cells_of(task, deviations, df=4):
    """Deviations of nine cells, three a backbone."""
    cells = [f"{backbone}_{task}_{method}" for backbone in ("bert", "gpt2", "t5") for method in METHODS]
    return {(cell, "f1"): Deviation(sd=sd, df=df) for cell, sd in zip(cells, deviations, strict=True)}


def test_deviations_are_pooled_within_seeds_and_no_flip_is_half_a_rows_noise():
    # seed 0: 1, 3 (variance 2, 1 degree); seed 1: 10, 10, 13 (variance 3, 2 degrees): (2 + 6) / 3
    assert deviation([[1.0, 3.0], [10.0, 10.0, 13.0]]) == Deviation(sd=pytest.approx((8 / 3) ** 0.5), df=3)
    assert deviation([[5.0], [9.0]]) is None
    assert resolution(500) == 0.1
    pools = pooled(cells_of("qa", [0.0] * 9), ROWS)
    assert pools["bert_qa_lora", "f1"].sd == pytest.approx(0.1, rel=0.3)


def test_a_row_that_changes_counts_for_less_by_bertscore():
    """Of the rows that two seeds of the baseline answer otherwise: the mean of squares of their points over the mean."""
    path = REPORTS / "baselines" / "quick-cpu.json"
    moved = []
    for cell, seeds in read_run(path).records.items():
        points = [read(record, path)["bertscore_f1"] for record in seeds.values() if "_sum_" in cell]
        for one, other in combinations(points, 2):
            gains = np.abs(gains_of(one, other))
            moved.append((gains**2).sum() / gains.sum())
    assert np.mean(moved) == pytest.approx(STEPS["bertscore_f1"], rel=0.1)
    assert resolution(192, "bertscore_f1") == pytest.approx(15.6 / 192 / 2)
    assert resolution(192, "rouge1") == resolution(192) == pytest.approx(100 / 192 / 2)


@pytest.mark.parametrize("value", [1e-8, 0.01, 0.5, 3.0, 500.0])
def test_trigamma_is_inverted(value):
    assert special.polygamma(1, inverse_trigamma(value)) == pytest.approx(value, rel=1e-6)


def test_cells_of_a_kind_that_differ_by_chance_alone_share_their_deviation():
    rng = np.random.default_rng(0)
    own = [(rng.chisquare(4) / 4) ** 0.5 for _ in range(9)]
    measured = cells_of("qa", own)
    moved = [pooled(measured, ROWS)[key] for key in measured]
    assert np.std([each.sd for each in moved]) < 0.8 * np.std(own)
    assert all(each.df == 4 + 4 - 2 for each in moved)  # the prior counts as much as the cell, less its two parameters


def test_a_prior_belongs_to_one_backbone_and_task_and_counts_little_where_cells_differ_widely():
    pools = pooled(cells_of("qa", [0.3, 0.4, 0.5, 0.3, 0.4, 0.5, 4.0, 5.0, 6.0]), ROWS)
    assert pools["bert_qa", "f1"].sd < 0.6
    assert pools["t5_qa", "f1"].sd > 4.0
    moved = pooled(cells_of("qa", [0.2, 2.0, 20.0] * 3), ROWS)["bert_qa_sft", "f1"]
    assert (moved.sd, moved.df) == (pytest.approx(20.0, rel=0.15), 4)


def test_moderated_deviations_make_intervals_that_hold():
    """True variances of a kind differ as the model says; five runs each. A t interval covers what it promises."""
    rng = np.random.default_rng(1)
    outside = draws = 0
    for _ in range(150):
        truth = (5 / rng.chisquare(5, 9)) ** 0.5
        measured = cells_of("qa", truth * (rng.chisquare(4, 9) / 4) ** 0.5)
        pools = pooled(measured, ROWS)
        for sd, key in zip(truth, measured, strict=True):
            own = pools[key]
            outside += abs(rng.normal(0, sd)) > special.stdtrit(own.df, 0.995) * own.sd
            draws += 1
    assert 0.002 < outside / draws < 0.02  # 0.01 is promised


def test_residuals_and_tails_by_hand():
    # 10, 12, 14 and 4: without the last, mean 12 and variance 4; (4 - 12) / (2 x sqrt(1 + 1 / 3)) = -3.464 of two degrees
    [*_, last] = residuals([[10.0, 12.0, 14.0, 4.0]], 0.1)
    assert special.ndtr(last) == pytest.approx(special.stdtr(2, -3.4641), rel=1e-4)
    assert len(residuals([[1.0, 2.0]], 0.1)) == 0
    # deviations 1, -1 and 2, -2: without the first group, variance 8 of one degree; t is 1 / sqrt(8 x 1 / 2) = 0.5
    first, *_ = residuals([[51.0, 49.0], [12.0, 8.0]], 0.1)
    assert special.ndtr(first) == pytest.approx(special.stdtr(1, 0.5))
    # The lowest two of 40 lie at -2.241 and -1.780 for a normal: -8.042 in all would be twice as far off.
    middle = [0.0] * 38
    assert tail(np.array([-5.0, -3.042, *middle])) == pytest.approx(2.0, abs=1e-3)
    assert tail(np.array([-1.0, -1.0, *middle])) == 1.0  # never less than normal
    assert tail(np.array([-9.0] * 19)) == 1.0  # too few to tell
    assert [Deviation(sd=1.0, df=4, tail=2.0).tail_of(runs) for runs in (1, 4)] == [2.0, 1.5]


def test_residuals_of_normal_scores_are_normal():
    rng = np.random.default_rng(3)
    drawn = np.concatenate([residuals([rng.normal(80, 3, 10)], 0.01) for _ in range(2000)])
    assert (drawn.std(), (drawn < -2.326).mean()) == (pytest.approx(1.0, abs=0.02), pytest.approx(0.01, abs=0.0015))


def test_a_collapse_counts_for_its_kind_most_and_for_all_a_little():
    rng = np.random.default_rng(0)
    scores = {key: [rng.normal(80, 1, 20).tolist()] for key in cells_of("qa", [1.0] * 9)}
    scores["t5_qa_lora", "f1"][0][0] = 60.0
    heavy = tails(scores, ROWS)
    assert heavy["t5_qa", "f1"] > 1.5 > heavy["bert_qa", "f1"] == heavy["gpt2_qa", "f1"] >= 1.0
    pools = pooled(cells_of("qa", [1.0] * 9), ROWS, scores)
    assert pools["t5_qa_sft", "f1"].tail == pools["t5_qa", "f1"].tail == heavy["t5_qa", "f1"]


def test_noise_holds_for_its_profile_and_test_set_only_and_no_file_is_none(tmp_path):
    record = complete("bert_qa_lora")
    noise = Noise(profile="quick", rows={"qa": record.data.rows["test"]}, measured={"seeds": cells_of("qa", [4.0] * 9)})
    assert noise.of("seeds", record, "f1").sd == pytest.approx(4.0, rel=0.3)
    assert noise.of("seeds", replace(record, cell="bert_qa_dora"), "f1").sd == pytest.approx(4.0, rel=0.5)
    assert noise.of("seeds", replace(record, cell="roberta_qa_lora"), "f1") is None
    assert noise.of("perturbed", record, "f1") is None
    assert noise.of("seeds", record, "exact_match") is None
    assert noise.of("seeds", replace(record, profile="full"), "f1") is None
    assert replace(noise, rows={"qa": 7}).of("seeds", record, "f1") is None
    assert load_noise(tmp_path / "noise.toml") == Noise()


@pytest.mark.parametrize(
    "text",
    ["[cells", "[rows]\nqa = 5\n", '[rows]\n[evidence]\nprofile = "quick"\n[cells.a_qa_b]\nf1 = {seeds = {sd = 1, df = 4}}\n'],
)
def test_a_broken_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "noise.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"holds no noise .*; `python -m tunegrid.lab calibrate` writes it"):
        load_noise(path)
