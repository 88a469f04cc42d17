"""Verdicts on scores: which noise applies, several seeds, one error rate."""

from dataclasses import replace

import pytest

from tunegrid.gate.gate import Run, gate
from tunegrid.gate.judgements import Verdict
from tunegrid.gate.noise import POINT_SCALE, Noise
from tunegrid.gate.quality import MAIN_ALPHA, decide
from tunegrid.gate.statistics import by_training
from tunegrid.tests import kinds
from tunegrid.tests.records import MEASURED, draws, get_record, hits

CELL = "bert_sa_lora"
BOTH = {"perturbed": 4.0, "seeds": 8.0}  # deviations
OTHER = {"first_loss": 1.1}  # another training run
ROOT_2 = 2**0.5

pytestmark = pytest.mark.usefixtures("store")


def make_noise(deviations, df=20):
    """One cell's noise, of runs that scored 512 test rows."""
    scores = {kind: {(CELL, "accuracy"): draws(sd, df, 512)} for kind, sd in deviations.items()}
    return Noise(profile="quick", rows={"sa": 512}, scores=scores)


def make_run(lost_by_seed, first_loss=1.0):
    """A run of one cell, with a seed for each number of rows lost of the half that is right, where
    a point is a point.
    """
    training = MEASURED["training"] | {"losses": [first_loss, 0.5], "order": "a" * 16}
    records = []
    for seed, lost in enumerate(lost_by_seed):
        points = {"accuracy": hits(512, 256, lost)}
        records.append(
            get_record(CELL, points, seed, training=training, bounded_scores=["accuracy"])
        )
    return Run.make(records)


def scores_alone(run):
    """The run without its points by row, as a CI that keeps only the JSON has it."""
    return Run.make(replace(record, examples=None) for record in run.all_records)


def accuracy(old, new, noise):
    [judgement] = [j for j in gate(old, new, noise=noise) if j.quantity == "accuracy"]
    return judgement


STORED = pytest.mark.parametrize(
    "stored", [lambda run: run, scores_alone], ids=["rows", "scores alone"]
)


@STORED
@pytest.mark.parametrize(
    ("old", "new", "changes", "deviations", "error", "verdict", "words"),
    [
        ([0], [100], {}, BOTH, 4 * ROOT_2, Verdict.WORSE, "of one seed, perturbed"),
        ([0], [100], OTHER, BOTH, 8 * ROOT_2, Verdict.CANNOT_TELL, "between seeds"),
        ([0], [100], {}, {"seeds": 8.0}, 8 * ROOT_2, Verdict.CANNOT_TELL, "between seeds"),
        # Pairs of one seed
        ([0] * 5, [40] * 4, {}, BOTH, 4 * (2 / 4) ** 0.5, Verdict.WORSE, "of one seed, perturbed"),
        (
            [0] * 5,
            [40] * 4,
            OTHER,
            BOTH,
            8 * (1 / 4 + 1 / 5) ** 0.5,
            Verdict.CANNOT_TELL,
            "between seeds",
        ),
        # variances of 10-row steps: 100 and 500 / 3 rows squared, with 2 and 3 degrees: (200 + 500)
        # / 5 = 140
        (
            [0, 10, 20],
            [0, 10, 20, 30],
            {},
            {},
            140**0.5 / 5.12 * (1 / 3 + 1 / 4) ** 0.5,
            Verdict.CANNOT_TELL,
            "between these seeds",
        ),
    ],
)
def test_the_narrowest_noise_that_is_known_applies(
    stored, old, new, changes, deviations, error, verdict, words
):
    judgement = accuracy(
        stored(make_run(old)), stored(make_run(new, **changes)), make_noise(deviations)
    )
    assert judgement.error == pytest.approx(error, rel=0.01)
    assert words in judgement.detail
    mean_lost = sum(new) / len(new) - sum(old) / len(old)
    assert judgement.effect == pytest.approx(-100 * mean_lost / 512)
    assert judgement.verdict is verdict


@STORED
def test_without_known_noise_nothing_can_be_told_of_two_trainings(stored):
    judgement = accuracy(stored(make_run([0])), stored(make_run([100], **OTHER)), make_noise({}))
    assert judgement.verdict is Verdict.CANNOT_TELL
    assert judgement.effect == pytest.approx(-100 * 100 / 512)
    assert judgement.error is None
    assert "give both runs --seeds 0-4" in judgement.detail


def test_rows_alone_tell_noise_between_runs_of_one_training():
    # 100 of 512 lost: a deviation of 39.6 points by row, over the root of 512
    judgement = accuracy(make_run([0]), make_run([100]), Noise())
    assert judgement.verdict == Verdict.WORSE
    assert judgement.error == pytest.approx(1.753, abs=1e-3)
    assert "100 rows lost, 0 gained of 512; noise of rows alone" in judgement.detail
    assert accuracy(make_run([0]), make_run([4]), Noise()).verdict is Verdict.CANNOT_TELL
    untold = accuracy(scores_alone(make_run([0])), scores_alone(make_run([4])), Noise())
    assert "no points per row to test" in untold.detail


def test_before_and_after_are_of_the_runs_that_were_paired():
    """Seeds 0 and 1 of the baseline lost 0 and 256 rows of 512: the run of seed 0 is held to seed 0
    alone.
    """
    old = make_run([0, 256])
    paired = accuracy(old, make_run([64]), make_noise(BOTH))
    assert paired.before == 50.0
    assert paired.after == 37.5  # 256 and 192 of 512
    unpaired = accuracy(old, make_run([64], **OTHER), make_noise(BOTH))
    assert unpaired.before == 25.0
    assert unpaired.after == 37.5  # 256 and 0 of 512


def test_what_is_equal_to_the_last_digit_is_the_same_if_its_rows_are_at_hand():
    for noise in (make_noise({"seeds": 40.0}), Noise()):
        judgement = accuracy(make_run([0]), make_run([0], **OTHER), noise)
        assert judgement.verdict == Verdict.SAME
        assert judgement.low == 0.0
        assert judgement.high == 0.0
    untold = accuracy(
        scores_alone(make_run([0])), scores_alone(make_run([0])), make_noise({"seeds": 40.0})
    )
    assert untold.verdict is Verdict.CANNOT_TELL
    baseline = Run.make(kinds.baseline(), kinds.BASELINE)
    verdicts = [judged.verdict for judged in gate(baseline, baseline) if judged.kind == "quality"]
    assert verdicts == [Verdict.SAME] * 81


def test_a_summary_that_changed_a_little_is_the_same_by_bertscore():
    """A row of 192 moved by two points: its noise is half of what a changed row moves by, not half
    of a hit.
    """

    def scored_run(*points):
        bounded = {"bounded_scores": ["bertscore_f1"]}
        return Run.make([get_record("t5_sum_sft", {"bertscore_f1": points}, **bounded)])

    old = scored_run(*[80.0] * 192)
    new = scored_run(*[80.0] * 191, 78.0)
    scores = {"perturbed": {("t5_sum_sft", "bertscore_f1"): [[80.0, 80.0]] * 9}}
    noise = Noise(profile="quick", rows={"sum": 192}, scores=scores)
    judged = gate(old, new, noise=noise)
    [judgement] = [j for j in judged if j.quantity == "bertscore_f1"]
    assert judgement.verdict == Verdict.SAME
    assert judgement.effect == pytest.approx(-2 / 192)


@pytest.mark.parametrize(
    ("p_values", "points", "worse"),
    [
        ({("a", "f1"): 0.022, ("b", "f1"): 0.5}, -5.0, {("a", "f1")}),  # of two, 0.044
        ({("a", "f1"): 0.023, ("b", "f1"): 0.5}, -5.0, set()),
        ({("a", "f1"): 0.5, ("a", "em"): 0.004}, -5.0, {("a", "em")}),
        ({("a", "f1"): 0.5, ("a", "em"): 0.004, ("b", "em"): 0.5}, -5.0, set()),
        ({("a", "f1"): 1e-9, ("a", "em"): 1e-9}, -0.9, set()),  # within the margin
    ],
)
def test_main_scores_share_nine_tenths_of_alpha_and_all_others_the_rest(p_values, points, worse):
    assert pytest.approx(0.045) == MAIN_ALPHA
    effect = by_training(50.0, 50.0 + points, 1.0, 1e6, POINT_SCALE)
    effects = {key: replace(effect, p_worse=p, p_better=1 - p) for key, p in p_values.items()}
    decisions = decide(effects, {"a": "f1", "b": "f1"}, {"other": 1.0})
    assert {key for key, (verdict, *_) in decisions.items() if verdict is Verdict.WORSE} == worse
