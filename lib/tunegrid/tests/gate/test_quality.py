"""Verdicts on scores: which noise applies, several seeds, one error rate."""

from dataclasses import replace

import pytest

from tunegrid import ROOT
from tunegrid.gate.gate import Run, gate, read_run
from tunegrid.gate.judgements import Verdict
from tunegrid.gate.noise import POINT_SCALE, Noise
from tunegrid.gate.quality import MAIN_ALPHA, decide
from tunegrid.gate.statistics import by_training
from tunegrid.report.verdict import Rank, run_verdict
from tunegrid.tests.records import MEASURED, draws, get_record, hits

CELL = "bert_sa_lora"
BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
SUMS = {
    "bounded_scores": ["bertscore_f1"],
    "data": MEASURED["data"] | {"rows": MEASURED["data"]["rows"] | {"test": 192}},
}
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
    changes = {"training": training, "bounded_scores": ["accuracy"]}
    points = [{"accuracy": hits(512, 256, lost)} for lost in lost_by_seed]
    return Run.make(
        get_record(CELL, by_row, seed=seed, **changes) for seed, by_row in enumerate(points)
    )


def scores_alone(run):
    """The run without its points by row, as a CI that keeps only the JSON has it."""
    records = []
    for record in run.records[CELL].values():
        record.data.rows["test"] = 512
        records.append(replace(record, examples=None))
    return Run.make(records)


def accuracy(old, new, noise):
    return next(
        judgement for judgement in gate(old, new, noise=noise) if judgement.quantity == "accuracy"
    )


@pytest.mark.parametrize("stored", [lambda run: run, scores_alone], ids=["rows", "scores alone"])
@pytest.mark.parametrize(
    ("old", "new", "other", "deviations", "error", "verdict", "words"),
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
        ([0], [100], OTHER, {}, None, Verdict.CANNOT_TELL, "give both runs --seeds 0-4"),
    ],
)
def test_the_narrowest_noise_that_is_known_applies(
    stored, old, new, other, deviations, error, verdict, words
):
    judgement = accuracy(
        stored(make_run(old)), stored(make_run(new, **other)), make_noise(deviations)
    )
    assert judgement.error == (error and pytest.approx(error, rel=0.01))
    assert words in judgement.detail
    mean_lost = sum(new) / len(new) - sum(old) / len(old)
    assert judgement.effect == pytest.approx(-100 * mean_lost / 512)
    assert judgement.verdict is verdict


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
    new = make_run([64])
    same = accuracy(old, new, make_noise(BOTH))
    other = accuracy(old, make_run([64], **OTHER), make_noise(BOTH))
    assert same.before == 50.0
    assert same.after == 37.5  # 256 and 192 of 512
    assert other.before == 25.0
    assert other.after == 37.5  # 256 and 0 of 512


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
    run = read_run(BASELINE)
    run = Run(records={cell: {0: own[0]} for cell, own in run.records.items()}, path=BASELINE)
    judged = [judgement.verdict for judgement in gate(run, run) if judgement.kind == "quality"]
    assert judged == [Verdict.SAME] * 81


def test_a_summary_that_changed_a_little_is_the_same_by_bertscore():
    """A row of 192 moved by two points: its noise is half of what a changed row moves by, not half
    of a hit.
    """
    old = get_record("t5_sum_sft", {"bertscore_f1": [80.0] * 192}, **SUMS)
    new = get_record("t5_sum_sft", {"bertscore_f1": [80.0] * 191 + [78.0]}, **SUMS)
    scores = {"perturbed": {("t5_sum_sft", "bertscore_f1"): [[80.0, 80.0]] * 9}}
    noise = Noise(profile="quick", rows={"sum": 192}, scores=scores)
    judged = gate(Run.make([old]), Run.make([new]), noise=noise)
    judgement = next(judgement for judgement in judged if judgement.quantity == "bertscore_f1")
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


def test_a_run_is_worse_unknown_or_no_worse():
    """What cannot be told counts if no main score could be tested; with `cannot-tell`, if any main
    score cannot be.
    """
    tested = accuracy(make_run([0]), make_run([30]), make_noise({"seeds": 8.0}))
    assert tested.verdict is Verdict.CANNOT_TELL
    untested = replace(tested, cell="t5_sa_lora", p=None)
    same = replace(tested, cell="gpt2_sa_lora", verdict=Verdict.SAME)
    worse = replace(tested, cell="gpt2_sa_lora", verdict=Verdict.WORSE)
    other_score = replace(tested, quantity="f1_macro")
    other_recipe = replace(tested, cell="t5_sa_sft", verdict=Verdict.NOT_COMPARABLE, p=None)
    quality = ["quality"]
    doubts = ["quality", "cannot-tell"]
    for judged, kinds, rank in (
        ([untested], quality, Rank.CANNOT_TELL),
        ([untested, tested], quality, Rank.OPEN),
        ([untested, same], quality, Rank.OPEN),
        ([untested, worse], quality, Rank.FAILED),
        ([untested], ["memory"], Rank.CANNOT_TELL),  # nothing of memory was compared
        ([same, tested], doubts, Rank.CANNOT_TELL),
        ([same, other_score], doubts, Rank.NOTE),
        ([worse, tested], doubts, Rank.FAILED),
        ([same, other_recipe], quality, Rank.CANNOT_TELL),
    ):
        assert run_verdict((), judged, kinds, judges_cells=False).rank is rank
    exit_codes = {rank: rank.exit_code for rank in Rank if rank.exit_code}
    assert exit_codes == {Rank.FAILED: 1, Rank.CHANGED: 6, Rank.CANNOT_TELL: 6, Rank.UNJUDGED: 6}
