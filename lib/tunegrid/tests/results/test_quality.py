"""Verdicts on scores where training noise is known: which noise applies, several seeds, one error rate."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from tunegrid import ROOT
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.judgements import Outcome, Verdict
from tunegrid.results.noise import Deviation, Noise
from tunegrid.results.quality import MAIN_ALPHA, decide
from tunegrid.results.statistics import by_training, cauchy, row_deviation
from tunegrid.results.verdict import FAILED_BY, outcome
from tunegrid.tests.records import MEASURED, hits, record_of

CELL = "bert_sa_lora"
REPORTS = ROOT / "reports"
SUMS = {
    "bounded_scores": ["bertscore_f1"],
    "data": MEASURED["data"] | {"rows": MEASURED["data"]["rows"] | {"test": 192}},
}


pytestmark = pytest.mark.usefixtures("store")


def noise_of(deviations, df=20.0, cell=CELL, metric="accuracy"):
    """One cell's noise, of runs that scored 512 test rows."""
    rows = {cell.split("_")[1]: 512}
    return Noise(
        profile="quick",
        rows=rows,
        measured={kind: {(cell, metric): Deviation(sd=sd, df=df)} for kind, sd in deviations.items()},
    )


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


@pytest.mark.parametrize(("first_loss", "known"), [(1.1, BOTH), (1.0, {"seeds": 8.0})], ids=["another loss", "no other noise"])
def test_another_training_is_held_to_noise_between_seeds(first_loss, known):
    judgement = accuracy(gate(run_of([0]), run_of([100], first_loss=first_loss), noise=noise_of(known)))
    assert judgement.error == pytest.approx(8.0 * 2**0.5, rel=1e-6)
    assert judgement.verdict is Verdict.CANNOT_TELL


def test_several_seeds_are_judged_by_several_and_without_calibration_tell_their_own_noise():
    same = accuracy(gate(run_of([0] * 5), run_of([40] * 4), noise=noise_of(BOTH)))
    assert same.error == pytest.approx(4.0 * (2 / 4) ** 0.5, rel=1e-6)  # four pairs of one seed each
    other = accuracy(gate(run_of([0] * 5), run_of([40] * 4, first_loss=1.1), noise=noise_of(BOTH)))
    assert other.error == pytest.approx(8.0 * (1 / 4 + 1 / 5) ** 0.5, rel=1e-6)
    assert (same.seeds, other.seeds) == (4, 4)
    assert same.effect == other.effect == pytest.approx(-100 * 40 / 512)
    assert "160 rows lost, 0 gained of 4 x 512" in same.detail
    judgement = accuracy(gate(run_of([0, 10, 20]), run_of([0, 10, 20, 30]), noise=Noise()))
    # variances of 10-row steps: 100 and 500 / 3 rows squared, with 2 and 3 degrees: (200 + 500) / 5 = 140
    sd = 140**0.5 * 100 / 512
    assert judgement.error == pytest.approx(sd * (1 / 3 + 1 / 4) ** 0.5)
    assert "noise between these seeds" in judgement.detail


def scores_alone(run):
    """The run without its points by row, as a CI that keeps only the JSON has it."""
    return Run.of([replace(record, examples=None) for seeds in run.records.values() for record in seeds.values()])


def test_calibrated_noise_needs_scores_alone():
    # 512 rows lost 100: 19.5 points, 3.45 errors of 4 x sqrt(2)
    old, new = scores_alone(run_of([0])), scores_alone(run_of([100]))
    judged = gate(old, new, noise=noise_of(BOTH))
    judgement = accuracy(judged)
    assert judgement.verdict is Verdict.WORSE
    assert judgement.error == pytest.approx(4.0 * 2**0.5, rel=1e-6)
    assert judgement.detail == "by scores alone, no rows were at hand; noise of one seed, perturbed: error 5.66; margin 1.0"
    with_rows = accuracy(gate(run_of([0]), scores_alone(run_of([100])), noise=noise_of(BOTH)))
    assert with_rows == judgement  # of a pair, both need their rows
    assert outcome(judged, FAILED_BY) is Outcome.WORSE


def test_several_seeds_tell_their_own_noise_by_scores_alone():
    # of 512 rows: variances 100 and 700 / 3 rows squared, with 2 degrees of freedom each
    old, new = scores_alone(run_of([0, 10, 20])), scores_alone(run_of([0, 10, 30]))
    for record in old.records[CELL].values():
        record.data.rows["test"] = 512
    judgement = accuracy(gate(old, new, noise=Noise()))
    assert judgement.error == pytest.approx(((100 + 700 / 3) / 2) ** 0.5 * 100 / 512 * (2 / 3) ** 0.5)


@pytest.mark.parametrize("change", [lambda run: run, scores_alone], ids=["rows", "scores alone"])
def test_without_noise_one_seed_a_side_cannot_be_told_and_says_what_helps(change):
    old, new = change(run_of([0])), change(run_of([100], first_loss=1.1))
    judged = gate(old, new, noise=Noise())
    judgement = accuracy(judged)
    assert (judgement.verdict, judgement.p) == (Verdict.CANNOT_TELL, None)
    assert judgement.effect == pytest.approx(-100 * 100 / 512)
    assert "give both runs --seeds 0-4" in judgement.detail
    assert outcome(judged, FAILED_BY) is Outcome.CANNOT_TELL


def test_rows_alone_decide_between_runs_of_one_training():
    judgement = accuracy(gate(run_of([0]), run_of([100]), noise=Noise()))
    assert judgement.verdict is Verdict.WORSE
    assert "noise of rows alone" in judgement.detail


def test_no_seed_of_the_baseline_is_called_worse_than_another_without_noise():
    """Twenty ordered pairs of healthy seeds; by rows alone twelve had a cell that was called worse."""
    path = REPORTS / "baselines" / "quick-cpu.json"
    run = read_run(path)
    seeds = list(next(iter(run.records.values())))
    one = {seed: Run(records={cell: {seed: own[seed]} for cell, own in run.records.items()}, path=path) for seed in seeds}
    mains = [
        judgement
        for old, new in permutations(seeds, 2)
        for judgement in gate(one[old], one[new], noise=Noise())
        if judgement.quantity == judgement.main_score
    ]
    assert len(mains) == 20 * 27
    assert {judgement.verdict for judgement in mains} <= {Verdict.CANNOT_TELL, Verdict.SAME}


def test_before_and_after_are_of_the_runs_that_were_paired():
    """Seeds 0 and 1 of the baseline lost 0 and 256 rows of 512: the run of seed 0 is held to seed 0 alone."""
    old, new = run_of([0, 256]), run_of([64])
    same = accuracy(gate(old, new, noise=noise_of(BOTH)))
    assert (same.before, same.after) == (93.75, 81.25)  # 480 and 416 of 512
    other = accuracy(gate(old, run_of([64], first_loss=1.1), noise=noise_of(BOTH)))
    assert (other.before, other.after) == (68.75, 81.25)  # 480 and 224 of 512


def test_what_is_equal_to_the_last_digit_is_the_same_where_its_rows_are_at_hand():
    judgement = accuracy(gate(run_of([0]), run_of([0], first_loss=1.1), noise=noise_of({"seeds": 40.0})))
    assert (judgement.verdict, judgement.low, judgement.high) == (Verdict.SAME, 0.0, 0.0)
    untested = accuracy(gate(run_of([0]), run_of([0], first_loss=1.1), noise=Noise()))
    assert untested.verdict is Verdict.SAME
    assert outcome([untested], FAILED_BY) is Outcome.NO_WORSE
    judgement = accuracy(gate(scores_alone(run_of([0])), scores_alone(run_of([0])), noise=noise_of({"seeds": 40.0})))
    assert judgement.verdict is Verdict.CANNOT_TELL


def test_the_baseline_is_the_same_as_itself_in_every_score():
    """One seed: BERTScore of the nine cells that summarize could not be told, as if a row were worth 100 points."""
    path = REPORTS / "baselines" / "quick-cpu.json"
    run = Run(records={cell: {0: own[0]} for cell, own in read_run(path).records.items()}, path=path)
    judged = [judgement for judgement in gate(run, run) if judgement.kind == "quality"]
    assert len(judged) == 81
    assert {judgement.verdict for judgement in judged} == {Verdict.SAME}


def test_a_summary_that_changed_a_little_is_the_same_by_bertscore():
    """A row of 192 moved by two points: its noise is half of what a changed row moves by, not half of a hit."""
    points = [80.0] * 192
    old, new = (Run.of([record_of("t5_sum_sft", {"bertscore_f1": [*points[1:], last]}, **SUMS)]) for last in (80.0, 78.0))
    noise = Noise(
        profile="quick", rows={"sum": 192}, measured={"perturbed": {("t5_sum_sft", "bertscore_f1"): Deviation(sd=0.0, df=9)}}
    )
    judgement = next(judgement for judgement in gate(old, new, noise=noise) if judgement.quantity == "bertscore_f1")
    assert judgement.verdict is Verdict.SAME
    assert judgement.effect == pytest.approx(-2 / 192)


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
    return {key: verdict for key, (verdict, _) in decide(effects(p_values, **options), MAINS, MARGINS).items()}


def test_main_scores_share_nine_tenths_of_alpha_and_others_alarm_through_one_global_test():
    assert pytest.approx(0.045) == MAIN_ALPHA
    assert verdicts({("a", "f1"): 0.022, ("b", "f1"): 0.5})["a", "f1"] is Verdict.WORSE
    assert verdicts({("a", "f1"): 0.023, ("b", "f1"): 0.5})["a", "f1"] is Verdict.CANNOT_TELL
    alone = {("a", "f1"): 0.5, **{("a", f"rouge{n}"): 0.4 for n in range(4)}}
    assert Verdict.WORSE not in verdicts(alone | {("a", "rouge0"): 0.004}).values()  # of five such tests, one in fifty
    worse = verdicts(alone | {("a", "rouge0"): 1e-5})
    assert [key for key, verdict in worse.items() if verdict is Verdict.WORSE] == [("a", "rouge0")]
    assert Verdict.WORSE not in verdicts({("a", "f1"): 1e-9, ("a", "em"): 1e-9}, points=-0.9).values()
    assert cauchy([0.01]) == pytest.approx(0.01)
    assert cauchy([0.03, 0.03, 0.03]) == pytest.approx(0.03)  # the same thrice is no more
    # of ten, nine at one half count nothing: tan of (0.5 - 0.001) pi is 318.3; a tenth of it has p = 0.01
    assert cauchy([0.001] + [0.5] * 9) == pytest.approx(0.01, abs=1e-4)
    assert cauchy([0.001, 1.0]) < 0.0025  # a gain elsewhere does not hide it
    assert cauchy([]) == 1.0


def test_a_run_has_three_outcomes():
    """What cannot be told counts where no main score could be tested; with `cannot-tell`, where any main score cannot be."""
    tested = accuracy(gate(run_of([0]), run_of([30]), noise=noise_of({"seeds": 8.0})))
    assert tested.verdict is Verdict.CANNOT_TELL
    untested = replace(tested, cell="t5_sa_lora", p=None)
    same, worse = (replace(tested, cell="gpt2_sa_lora", verdict=verdict) for verdict in (Verdict.SAME, Verdict.WORSE))
    other_score = replace(tested, quantity="f1_macro")
    quality = ["quality"]
    assert outcome([untested], quality) is Outcome.CANNOT_TELL
    assert outcome([untested, tested], quality) is Outcome.NO_WORSE
    assert outcome([untested, same], quality) is Outcome.NO_WORSE
    assert outcome([untested, worse], quality) is Outcome.WORSE
    assert outcome([untested], ["memory"]) is Outcome.CANNOT_TELL  # nothing of memory was compared
    kinds = ["quality", "cannot-tell"]
    assert outcome([same, tested], kinds) is Outcome.CANNOT_TELL
    assert outcome([same, other_score], kinds) is Outcome.NO_WORSE
    assert outcome([worse, tested], kinds) is Outcome.WORSE
    assert [answer.exit_code for answer in Outcome] == [0, 1, 6]
