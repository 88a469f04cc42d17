"""Verdicts on scores where training noise is known: which noise applies, several seeds, one error rate."""

import time
from dataclasses import replace

import numpy as np
import pytest

from lib.grid.cells import STUDY_IDS
from lib.results import examples
from lib.results.gates import Run, failing, gate
from lib.results.judgements import Verdict
from lib.results.noise import Deviation, Noise
from lib.results.quality import MAIN_ALPHA, Decision, decide
from lib.results.statistics import by_training, cauchy, row_deviation
from lib.tests.test_gates import ROWS, hits, record_of
from lib.tests.test_record import MEASURED

CELL = "bert_sa_lora"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """Examples of these runs stay out of the machine's own store."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")


def noise_of(deviations, df=20.0, cell=CELL, metric="accuracy"):
    """One cell's noise; the records' `data` say 15 test rows."""
    rows = {cell.split("_")[1]: MEASURED["data"]["rows"]["test"]}
    return Noise(
        profile="quick",
        rows=rows,
        measured={kind: {(cell, metric): Deviation(sd=sd, df=df)} for kind, sd in deviations.items()},
    )


# A row of 15 is worth more than these deviations, so records say 15 rows and have 512 with points.
BOTH = {"perturbed": 4.0, "seeds": 8.0}


def run_of(lost_by_seed, first_loss=1.0, right=480):
    """A run of one cell with a seed for each number of rows lost."""
    changes = {
        "training": MEASURED["training"] | {"losses": [first_loss, 0.5], "order": "a" * 16},
        "bounded_scores": ["accuracy"],
    }
    points = [{"accuracy": hits(512, right, lost)} for lost in lost_by_seed]
    return Run.of(record_of(CELL, by_row, seed=seed, **changes) for seed, by_row in enumerate(points))


def accuracy(judgements):
    return next(judgement for judgement in judgements if judgement.quantity == "accuracy")


# Which noise


def test_a_run_of_the_same_seed_is_held_to_noise_of_one_seed():
    judgement = accuracy(gate(run_of([0]), run_of([100]), noise=noise_of(BOTH)))
    assert judgement.effect == pytest.approx(-100 * 100 / 512)
    assert judgement.error == pytest.approx(4.0 * 2**0.5, rel=1e-6)
    assert judgement.verdict is Verdict.WORSE
    assert "noise of one seed, perturbed: error 5.66" in judgement.detail


def test_another_first_loss_is_held_to_noise_between_seeds():
    judgement = accuracy(gate(run_of([0]), run_of([100], first_loss=1.1), noise=noise_of(BOTH)))
    assert judgement.error == pytest.approx(8.0 * 2**0.5, rel=1e-6)
    assert judgement.verdict is Verdict.CANNOT_TELL


def test_without_noise_of_one_seed_that_between_seeds_holds():
    judgement = accuracy(gate(run_of([0]), run_of([100]), noise=noise_of({"seeds": 8.0})))
    assert judgement.error == pytest.approx(8.0 * 2**0.5, rel=1e-6)


def test_several_seeds_are_judged_by_several():
    same = accuracy(gate(run_of([0] * 5), run_of([40] * 4), noise=noise_of(BOTH)))
    assert same.error == pytest.approx(4.0 * (2 / 4) ** 0.5, rel=1e-6)  # four pairs of one seed each
    other = accuracy(gate(run_of([0] * 5), run_of([40] * 4, first_loss=1.1), noise=noise_of(BOTH)))
    assert other.error == pytest.approx(8.0 * (1 / 4 + 1 / 5) ** 0.5, rel=1e-6)
    assert (same.seeds, other.seeds) == (4, 4)
    assert same.effect == other.effect == pytest.approx(-100 * 40 / 512)
    assert "160 rows lost, 0 gained of 4 x 512" in same.detail


def test_without_calibration_several_seeds_tell_their_own_noise():
    judgement = accuracy(gate(run_of([0, 10, 20]), run_of([0, 10, 20, 30]), noise=Noise()))
    # variances of 10-row steps: 100 and 500 / 3 rows squared, with 2 and 3 degrees: (200 + 500) / 5 = 140
    sd = 140**0.5 * 100 / 512
    assert judgement.error == pytest.approx(sd * (1 / 3 + 1 / 4) ** 0.5)
    assert "noise between these seeds" in judgement.detail


def test_rows_that_go_both_ways_widen_a_noise_that_is_too_small():
    lost_and_won = np.array([-100.0] * 30 + [100.0] * 20 + [0.0] * 334)
    # twenty rows of 384 gained: (20 * 100 ** 2 / 384 ** 2) ** 0.5
    assert row_deviation([lost_and_won]) == pytest.approx(20**0.5 * 100 / 384)
    assert row_deviation([np.array([-100.0] * 30 + [0.0] * 354)]) == 0.0


# One error rate


def effects(p_values, points=-5.0):
    """Effects whose p-values of being worse are these."""
    made = {}
    for key, p in p_values.items():
        effect = by_training(points, 1.0, 1e6, rows=500, flips=(0, 0))
        made[key] = replace(effect, p_worse=p, p_better=1 - p)
    return made


MARGINS = {"other": 1.0}
MAINS = {"a": "f1", "b": "f1"}


def verdicts(p_values, **options):
    return {key: decision.verdict for key, decision in decide(effects(p_values, **options), MAINS, MARGINS).items()}


def test_main_scores_share_nine_tenths_of_alpha_over_the_cells():
    assert pytest.approx(0.045) == MAIN_ALPHA
    assert verdicts({("a", "f1"): 0.022, ("b", "f1"): 0.5})["a", "f1"] is Verdict.WORSE
    assert verdicts({("a", "f1"): 0.023, ("b", "f1"): 0.5})["a", "f1"] is Verdict.CANNOT_TELL
    share = decide(effects({("a", "f1"): 0.022, ("b", "f1"): 0.5}), MAINS, MARGINS, share=0.5)
    assert share["a", "f1"] == Decision(verdict=Verdict.CANNOT_TELL, p=pytest.approx(0.088))


def test_other_scores_alarm_through_one_global_test_only():
    alone = {("a", "f1"): 0.5, **{("a", f"rouge{n}"): 0.4 for n in range(4)}}
    assert Verdict.WORSE not in verdicts(alone | {("a", "rouge0"): 0.004}).values()  # of five such tests, one in fifty
    worse = verdicts(alone | {("a", "rouge0"): 1e-5})
    assert [key for key, verdict in worse.items() if verdict is Verdict.WORSE] == [("a", "rouge0")]


def test_a_drop_below_the_margin_is_never_worse():
    assert Verdict.WORSE not in verdicts({("a", "f1"): 1e-9, ("a", "em"): 1e-9}, points=-0.9).values()


def test_the_global_test_by_hand():
    assert cauchy([0.01]) == pytest.approx(0.01)
    assert cauchy([0.03, 0.03, 0.03]) == pytest.approx(0.03)  # the same thrice is no more
    # of ten, nine at one half count nothing: tan of (0.5 - 0.001) pi is 318.3; a tenth of it has p = 0.01
    assert cauchy([0.001] + [0.5] * 9) == pytest.approx(0.01, abs=1e-4)
    assert cauchy([0.001, 1.0]) < 0.0025  # a gain elsewhere does not hide it
    assert cauchy([]) == 1.0


def test_strict_asks_for_main_scores_only():
    judgements = gate(run_of([0]), run_of([30]), noise=noise_of({"seeds": 8.0}))
    untold = replace(accuracy(judgements), quantity="f1_macro")
    assert [j.quantity for j in failing([*judgements, untold], ["quality"], strict=True)] == ["accuracy"]


# Speed


def test_27_cells_of_five_seeds_take_two_seconds():
    rng = np.random.default_rng(5)
    metrics = {
        "sa": ["accuracy"],
        "qa": ["exact_match", "f1"],
        "sum": ["rouge1", "rouge2", "rougeL", "rougeLsum", "bertscore_f1"],
    }
    records, measured = [], {}
    for cell in STUDY_IDS:
        task = cell.split("_")[1]
        measured |= {(cell, metric): Deviation(sd=1.0, df=4) for metric in [*metrics[task], "f1_macro"]}
        for seed in range(5):
            points = {metric: list(np.clip(rng.normal(75, 10, ROWS[task]), 0, 100)) for metric in metrics[task]}
            records.append(record_of(cell, points, seed=seed))
    rows = dict.fromkeys(metrics, MEASURED["data"]["rows"]["test"])
    noise = Noise(profile="quick", rows=rows, measured={"seeds": measured, "perturbed": measured})
    run = Run.of(records)
    began = time.process_time()
    judged = gate(run, run, noise=noise)
    assert time.process_time() - began < 2
    assert {j.verdict for j in judged if j.quantity == j.main_score} <= {Verdict.SAME, Verdict.CANNOT_TELL}
