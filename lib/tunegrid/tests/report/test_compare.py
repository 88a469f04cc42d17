"""Methods next to each other: fronts, intervals and pairs, on records whose answers are known by
hand.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from tunegrid.commands import compare as command
from tunegrid.gate.noise import SEEDS, Noise, load_noise
from tunegrid.report.compare import (
    CALIBRATED,
    OWN,
    PEAK,
    SECONDS,
    TENSORS,
    TRAINED,
    UNKNOWN,
    Error,
    compare_methods,
    method_frame,
    p_value,
    sections,
)
from tunegrid.report.tables import text
from tunegrid.runs.files import read_list
from tunegrid.tests.kinds import BASELINE
from tunegrid.tests.outputs import is_snapshot, refusal
from tunegrid.tests.records import (
    FOOTPRINT,
    MEASURED,
    PHASE,
    altered,
    complete,
    draws,
    make_seeds,
    saved,
)

pytestmark = pytest.mark.usefixtures("store")
# So that rows resolve small deviations
MANY = MEASURED["data"] | {"rows": MEASURED["data"]["rows"] | {"test": 10_000}}


class Costs(NamedTuple):
    """What a method costs."""

    trained_bytes: int
    peak_gib: float
    seconds: float


SFT_COSTS = Costs(300, 1.0, 10.0)
COSTS_BY_CELL = {"bert_sa_lora": Costs(300, 1.1, 12.0), "bert_sa_qlora": Costs(100, 0.9, 8.0)}


def measured(cell, score, seed=0, **changes):
    """A record of a method, with its costs and without points by row."""
    costs = COSTS_BY_CELL.get(cell, SFT_COSTS)
    parts = {
        "scores": {"accuracy": score},
        "bounds": {},
        "examples": None,
        "data": MANY,
        "seeds": make_seeds(seed),
        "memory": {
            "phases": {"train": PHASE | {"rss_peak_gib": costs.peak_gib}},
            "ledger": MEASURED["memory"]["ledger"] | {"checkpoint_bytes": costs.trained_bytes},
            "cells_before": 0,
        },
        "training": MEASURED["training"]
        | {"seconds": costs.seconds + seed, "losses": [0.7, 0.5 + seed / 64]},
    }
    return complete(cell, **parts | changes)


def three_on_two_seeds():
    """Means 57, 50 and 43, where a point is a point; each method's deviation is the square root of
    2.
    """
    return [
        measured("bert_sa_sft", 56.0),
        measured("bert_sa_sft", 58.0, seed=1),
        measured("bert_sa_lora", 49.0),
        measured("bert_sa_lora", 51.0, seed=1),
        measured("bert_sa_qlora", 42.0),
        measured("bert_sa_qlora", 44.0, seed=1),
    ]


def alone(records, noise=None):
    [comparison] = compare_methods(records, noise or Noise())
    return comparison


def pair(comparison, better, other):
    [(_, row)] = comparison.pairs.query("better == @better and other == @other").iterrows()
    return row


def test_papers_get_mean_and_deviation_in_one_column():
    """Of 56 and 58 the mean is 57, and the deviation the square root of 2."""
    entries = alone(three_on_two_seeds()).entries
    assert entries["sft"].mean_and_deviation == "57.0 ± 1.4"
    assert alone([measured("bert_sa_sft", 56.0)]).entries["sft"].mean_and_deviation is None


def test_a_published_score_is_beside_scores_of_its_kind_alone():
    records = three_on_two_seeds()
    own = [
        replace(record, main_score="recall", scores={"recall": 50.0 + record.seeds.seed})
        for record in records
    ]
    published = method_frame(compare_methods(records, Noise())).set_index("method").study
    assert published["lora"] == 87.0
    assert method_frame(compare_methods(own, Noise())).study.isna().all()


def test_three_methods_on_two_seeds_by_hand():
    comparison = alone(three_on_two_seeds())
    # A mean of two has variance 2 / 2 and one degree of freedom; a difference of two means 2 and
    # two degrees: t is 7 / sqrt 2 and 14 / sqrt 2. For two degrees p is 1 - t / sqrt(t ** 2 + 2),
    # and Holm takes the smallest of three p-values three times.
    for better, worse, gap, apart in (
        ("sft", "lora", 7, False),
        ("lora", "qlora", 7, False),
        ("sft", "qlora", 14, True),
    ):
        row = pair(comparison, better, worse)
        # 0.038, by Holm 0.077; 0.010, 0.030
        assert row.p == pytest.approx(1 - gap / (gap**2 + 4) ** 0.5, rel=0.05)
        assert row.apart == apart
    assert comparison.costs == [TRAINED, PEAK, SECONDS]
    for costs in ([TRAINED], [PEAK], [SECONDS], comparison.costs):
        assert comparison.front(*costs) == ["sft", "qlora"]
    costs = {TRAINED: 300 / 2**20, TENSORS: 4300 / 2**20, PEAK: 1.0, SECONDS: 10.5}
    assert comparison.entries["sft"].costs == pytest.approx(costs)
    # t of one degree of freedom is 12.706, the error sqrt(2) / sqrt(2)
    assert comparison.entries["qlora"].interval == pytest.approx(
        (43 - 12.706, 43 + 12.706), abs=0.2
    )
    # deviations of sqrt 2; for two degrees quantiles of 0.05 / 6 and 0.2 are 7.649 and 1.061: 4 x
    # (8.710 / 7) ** 2 is 6.19
    assert pair(comparison, "sft", "lora")["seeds that tell"] == 7
    # variances 3 and 1 of 3 and 1 degrees: error 2, and 16 / (9 / 3 + 1 / 1) degrees, of which t is
    # 2.776
    assert p_value(2 * 2.776445, [Error(3.0, 3.0), Error(1.0, 1.0)]) == pytest.approx(
        0.05, abs=1e-6
    )
    assert p_value(0.0, []) == 1.0
    assert p_value(1.0, []) == 0.0


def test_calibrated_noise_tells_what_one_seed_of_each_cannot():
    known = {
        ("bert_sa_sft", "accuracy"): draws(1.0, 9, 10_000),
        ("bert_sa_lora", "accuracy"): draws(1.0, 9, 10_000),
    }
    noise = Noise(profile="quick", rows={"sa": 10_000}, scores={SEEDS: known})
    records = [measured("bert_sa_sft", 90.0), measured("bert_sa_lora", 80.0)]
    comparison = alone(records, noise)
    assert pair(comparison, "sft", "lora").apart
    assert "Told apart: the one pair of methods\n" in text(sections([comparison], records))
    # the quantile of Student's t with 9 degrees of freedom is 2.262, and at 90 a deviation of 1 is
    # 0.6 points
    assert comparison.entries["sft"].interval[1] == pytest.approx(91.357, abs=1e-3)
    # Without it, or of other test rows, nothing can tell
    for useless_noise in (Noise(), replace(noise, rows={"sa": 768})):
        unknown = alone(records, useless_noise)
        assert unknown.entries["sft"].interval is None
        assert (
            pair(unknown, "sft", "lora")["not tested, since"]
            == "the noise between seeds of sft or lora is unknown"
        )


@pytest.mark.parametrize(
    ("cell", "scores", "noise"),
    [
        ("bert_sa_sft", [90.0], CALIBRATED),
        ("bert_sa_sft", [89.0, 90.0, 91.0], CALIBRATED),
        # at 90 a deviation of 1 is 0.6 points; the variance of these is 25, 69 times as large
        ("bert_sa_sft", [85.0, 90.0, 95.0], OWN),
        ("bert_sa_lora", [90.0], CALIBRATED),  # by its kind of cells
        ("bert_sa_lora", [89.0, 90.0, 91.0], OWN),
        ("gpt2_sa_sft", [89.0, 90.0, 91.0], OWN),
        ("gpt2_sa_sft", [90.0], UNKNOWN),
    ],
)
def test_intervals_are_by_calibrated_noise_unless_unknown_or_contradicted_by_seeds(
    cell, scores, noise
):
    known = {("bert_sa_sft", "accuracy"): draws(1.0, 40, 10_000)}
    calibrated = Noise(profile="quick", rows={"sa": 10_000}, scores={SEEDS: known})
    records = [measured(cell, score, seed) for seed, score in enumerate(scores)]
    comparison = alone(records, calibrated)
    [entry] = comparison.entries.values()
    assert entry.scores == scores
    assert entry.noise == noise
    assert noise in text(sections([comparison], records)).partition("What to know")[0]


def test_the_committed_seeds_tell_pairs_apart_in_few_words():
    records = read_list(BASELINE)
    report = sections(compare_methods(records, load_noise()), records)
    shown = text(report)
    assert len(shown.split()) < 950
    assert is_snapshot(f"{shown}\n", "compare.txt")


@pytest.mark.parametrize(
    ("deviations", "seeds"), [((1.0, 1.0, 1.0), 2), ((0.3, 0.5, 1.0, 1.0, 2.0, 3.0), 5)]
)
def test_about_one_table_of_twenty_equal_methods_tells_any_apart_at_most(deviations, seeds):
    rng = np.random.default_rng(1)
    runs = 200
    alarms = 0
    record = measured("bert_sa_lora", 80.0)
    for _ in range(runs):
        records = []
        for method, deviation in enumerate(deviations):
            for seed, score in enumerate(rng.normal(80, deviation, seeds)):
                names = {"method": f"m{method}", "cell": f"bert_sa_m{method}"}
                scores = {"accuracy": float(score)}
                own_seeds = replace(record.seeds, seed=seed)
                records.append(replace(record, scores=scores, seeds=own_seeds, **names))
        alarms += alone(records).pairs.apart.any()
    assert alarms / runs <= 0.05 + 0.03  # two standard errors


def test_what_is_not_like_for_like_comes_first_and_other_rows_are_not_tested():
    unlike = {
        "training": MEASURED["training"] | {"updates": 5, "precision": "bf16"},
        "data": MANY | {"fingerprint": "f" * 16},
    }
    comparison = alone([measured("bert_sa_sft", 90.0), measured("bert_sa_qlora", 80.0, **unlike)])
    first, *_ = sections([comparison], [])
    assert dict(zip(first.frame["in"], first.frame.methods, strict=True)) == {
        "updates": "2x16 (sft), 5x12 (qlora)",
        "precision": "fp32 (sft), bf16 (qlora)",
        "data": "0123456789abcdef (sft), ffffffffffffffff (qlora)",
    }
    assert pair(comparison, "sft", "qlora")["not tested, since"] == "their test rows differ"


def test_what_audits_object_to_is_left_out_and_said():
    finding = {
        "name": "learned_something",
        "passed": False,
        "detail": "no better than the majority",
    }
    records = [measured("bert_sa_sft", 99.0, audits=[finding]), *three_on_two_seeds()[2:]]
    comparison = alone(records)
    assert list(comparison.entries) == ["lora", "qlora"]
    words = (
        "bert_sa_sft, seed 0, is left out: audit learned_something: no better than the majority."
    )
    assert words in text(sections([comparison], records))


@pytest.mark.parametrize(
    ("path", "value", "costs"),
    [
        ("memory.cells_before", 3, [TRAINED, TENSORS, SECONDS]),
        ("memory.cells_before", None, [TRAINED, TENSORS, SECONDS]),
        ("device.contended", True, [TRAINED, PEAK]),
    ],
)
def test_what_a_shared_process_or_machine_cannot_measure_is_no_cost(path, value, costs):
    records = [altered(record, path, value) for record in three_on_two_seeds()]
    assert alone(records).costs == costs


LORA = measured("bert_sa_lora", 80.0)
SFT = measured("bert_sa_sft", 80.0)
LIMITED = measured("bert_sa_sft", 80.0, 1, limits=vars(LORA.limits) | {"train_rows": 70})


@pytest.mark.parametrize(
    ("records", "word"),
    [
        ([LORA, replace(SFT, profile="full")], "one profile at a time"),
        ([complete(**FOOTPRINT)], "nothing to compare"),
        ([replace(LORA, status="reported")], "nothing to compare"),
        ([LORA, SFT, LIMITED], "not seeds of one experiment"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, capsys, records, word):
    assert word in refusal(capsys, command.main, saved(tmp_path / "run.json", *records))
