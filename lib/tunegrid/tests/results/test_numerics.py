"""Two trainings of one seed are held to each other by their first losses."""

import tomllib
from dataclasses import replace

import pytest

from tunegrid.commands.gate import main
from tunegrid.results.gate import Run, gate
from tunegrid.results.judgements import Verdict
from tunegrid.results.numerics import arithmetic, pair_of
from tunegrid.results.numerics import compared as judgement_and_course
from tunegrid.results.thresholds import TOLERANCES as TOLERANCES_FILE
from tunegrid.results.thresholds import load_tolerances, tolerance_of
from tunegrid.results.verdict import failing
from tunegrid.tests.records import altered, complete, run_file

BY_GROUP = {"curve": 1e-3, "weights": 1e-4, "probe_gradients": 1e-3, "gradients": 1e-3, "moved": 1e-2, "moved_alone": 1e-3}
TOLERANCES = {
    "fp32": {"first": 1e-6, "later": 1e-5, "decoded": 1e-4} | BY_GROUP,
    "nf4 fp32": {"first": 1e-3, "later": 1e-2, "decoded": 5e-2} | BY_GROUP,
}
DRAWN = [0.5] * 10 + [0.4] * 10  # one more random number before each update from the eleventh on: other masks of dropout
LOSSES = [0.7, 0.5, 0.4, 0.3]


def record(losses=LOSSES, cell="bert_sa_sft", **changes):
    """A finished record with these losses; `changes` are fields of its training."""
    made = complete(cell)
    return replace(made, training=replace(made.training, **{"losses": list(losses), "updates": len(losses)} | changes))


def compared(old, new, tolerances):
    """The verdict and its evidence."""
    judgement, _ = judgement_and_course(old, new, tolerances)
    return judgement.verdict, judgement.detail


def one_training(old, new, tolerances=TOLERANCES):
    return judgement_and_course(old, new, tolerances)[1]


def moved(index, gap):
    return [loss + gap * (i == index) for i, loss in enumerate(LOSSES)]


@pytest.mark.parametrize(
    ("losses", "verdict", "words"),
    [
        (LOSSES, Verdict.EQUAL, "all losses are equal"),
        (moved(0, 9e-7), Verdict.ROUNDING, "differ by at most 9.0e-07"),
        (moved(0, 1.1e-6), Verdict.CHANGED, "forward with dropout: the loss of update 1 is 0.700001, it was 0.7"),
        (moved(2, 9e-6), Verdict.ROUNDING, "losses of the first 4 updates differ by at most 9.0e-06"),
        (moved(2, 1.1e-5), Verdict.CHANGED, "backward or optimizer: losses part by 1.1e-05 at update 3, not at update 1"),
    ],
)
def test_the_first_stage_that_changed_is_named(losses, verdict, words):
    quantized = [record(own, cell="bert_sa_qlora") for own in (LOSSES, moved(0, 9e-4))]
    assert (arithmetic(quantized[0]), compared(*quantized, TOLERANCES)[0]) == ("nf4 fp32", Verdict.ROUNDING)
    answer, detail = compared(record(), record(losses), TOLERANCES)
    assert answer is verdict
    assert words in detail


def with_step(cell="bert_sa_sft", **figures):
    """A record whose first step has these figures in place of the complete one's."""
    made = record(cell=cell)
    return altered(made, "training.first_step", replace(made.training.first_step, **figures))


ATTENTION = "layer 0 attention"  # as in `complete`


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"tokens": "f" * 16}, "text: token ids or targets of the training rows are others"),
        ({"types": {ATTENTION: "bfloat16", "head": "float32"}}, f"loading: weights of {ATTENTION} are bfloat16, they were"),
        ({"computed": {ATTENTION: "float32"}}, f"loading: {ATTENTION} computes in float32, it did in bfloat16"),
        ({"weights": {ATTENTION: 10.01, "head": 1.0}}, f"start: weights before training, {ATTENTION} x 1.001"),
        ({"probe_loss": 0.8}, "forward: the loss before training is 0.8, it was 0.7"),
        (
            {"probe_gradients": {ATTENTION: 0.4, "head": 2.0}},
            f"backward without dropout: gradients of {ATTENTION} x 2 before training, forward equal",
        ),
        (
            {"probe_reached": {ATTENTION: 3, "head": 2}},
            f"backward without dropout: tensors of {ATTENTION} that get a gradient: 3, before 4",
        ),
        ({"stream": "f" * 16}, "random numbers: the generator gives others from the same seed"),
        ({"drawn": "f" * 16}, "random numbers: the first update draws others"),
        ({"gradients": {ATTENTION: 0.1, "head": 0.5}}, "backward: gradients of head x 0.5 at update 1, forward equal"),
        ({"gradients": {ATTENTION: 0.1}}, "backward: gradients of head no number, before 1 at update 1"),
        (
            {"reached": {ATTENTION: 4}, "moved": {ATTENTION: 0.01, "head": 0.0}},
            "backward: tensors of head that get a gradient at update 1: 0, before 2",
        ),
        ({"decoded": 0.01}, "generation: scores of a search with a cache are off by 0.01 of the largest logit, they "),
        ({"moved": {ATTENTION: 0.01, "head": 0.0}}, "optimizer: head x 0 moved by update 3, first gradients equal"),
        ({"generated": "f" * 16}, "generation: the untrained model generates another text"),
        ({"metrics": {"accuracy": 56.25, "f1_macro": 50.0}}, "scoring: accuracy of fixed answers is 56.25, it was 50"),
        ({"moved": {ATTENTION: 1.0, "head": 1.0}, "probe_loss": 0.8, "metrics": {}}, "forward: "),  # the first of several
    ],
)
def test_figures_of_the_first_step_name_the_stage(figures, words):
    answer, detail = compared(with_step(generated="0" * 16), with_step(**{"generated": "0" * 16} | figures), TOLERANCES)
    assert answer is Verdict.CHANGED
    assert detail.startswith(words)


def test_libraries_that_differ_are_named_whatever_the_verdict():
    old, new = record(), record(moved(0, 1.1e-6))
    assert compared(old, replace(old, libraries={}), TOLERANCES)[1] == "all losses are equal"  # an older file does not know
    known = {"peft": "0" * 16, "torch": "1" * 16}
    new = replace(new, libraries=old.libraries | known, versions=old.versions | {"torch": "9"})
    libraries = f"with torch 9, it was {old.versions['torch']}; peft {old.versions['peft']} of other code"
    assert compared(old, new, TOLERANCES)[1].endswith(f" is 0.700001, it was 0.7; {libraries}")
    new = replace(new, training=old.training)
    assert compared(old, new, TOLERANCES) == (Verdict.EQUAL, f"all losses are equal; {libraries}")


def test_figures_within_their_tolerance_are_rounding_and_what_begins_bit_for_bit_alike_has_a_smaller_one():
    new = with_step(weights={ATTENTION: 10.0005, "head": 1.0}, moved={ATTENTION: 0.01009, "head": 0.05})
    new.training.losses[0] += 1e-7
    assert compared(record(), new, TOLERANCES)[0] is Verdict.ROUNDING
    new = with_step(moved={ATTENTION: 0.01002, "head": 0.05})  # 2e-3 more: less than 1e-2, more than 1e-3
    said = f"optimizer: {ATTENTION} x 1.002 moved by update 3, first gradients equal"
    assert compared(record(), new, TOLERANCES) == (Verdict.CHANGED, said)
    new.training.losses[0] += 1e-7  # rounding came in before the optimizer
    assert compared(record(), new, TOLERANCES)[0] is Verdict.ROUNDING
    # 1e-9 in place of 0 is no change beside a group of 2.0; 0.01 is: more than a thousandth of a thousandth of it.
    old = with_step(probe_gradients={"lora_A": 0.0, "head": 2.0})
    near, far = (with_step(probe_gradients={"lora_A": value, "head": 2.0}) for value in (1e-9, 0.01))
    assert compared(old, near, TOLERANCES)[0] is Verdict.EQUAL
    assert compared(old, far, TOLERANCES)[1] == (
        "backward without dropout: gradients of lora_A 0.01, before 0 before training, forward equal"
    )


@pytest.mark.parametrize(
    ("cell", "figure", "old", "new", "verdict"),
    [
        ("bert_sa_qlora", "generated", "0" * 16, "f" * 16, Verdict.EQUAL),  # over a quantized base it may be rounding
        ("bert_sa_sft", "generated", "0" * 16, None, Verdict.EQUAL),  # a search that did not fit
        ("bert_sa_qlora", "decoded", 1e-4, 4e-2, Verdict.EQUAL),
        ("bert_sa_qlora", "decoded", 1e-4, 0.1, Verdict.CHANGED),
    ],
)
def test_a_search_of_an_untrained_model(cell, figure, old, new, verdict):
    assert compared(*(with_step(cell, **{figure: value}) for value in (old, new)), TOLERANCES)[0] is verdict


def test_figures_of_another_probe_are_not_compared():
    """As those of a baseline that an older version wrote: its probe read other rows, and it counted and decoded nothing."""
    old = with_step(probe=None, computed=None, probe_reached=None, reached=None, decoded=None)
    new = with_step(probe_loss=0.8, probe_gradients={"head": 9.0}, generated="f" * 16)
    assert compared(old, new, TOLERANCES) == (Verdict.EQUAL, "all losses are equal")
    assert pair_of(old, new, TOLERANCES).figures("probe_gradients") == (None, None)
    new.training.first_step.gradients["head"] *= 2
    assert compared(old, new, TOLERANCES)[1].startswith("backward: gradients of head x 2")


def test_records_without_figures_are_held_to_their_losses_and_to_the_order_of_rows():
    old = record(first_step=None)
    assert compared(old, record(), TOLERANCES)[0] is Verdict.EQUAL
    assert compared(old, record(moved(0, 1.1e-6)), TOLERANCES)[0] is Verdict.CHANGED
    answer, detail = compared(record(), record(order="f" * 16), TOLERANCES)
    assert (answer, detail.split(":")[0]) == (Verdict.CHANGED, "rows")


PARTS_LATER = "losses are equal to update 10, then others"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ([0.1] * 11, [0.1] * 10 + [0.9], Verdict.ROUNDING),  # updates after the tenth may part
        ([0.1] * 11, [0.1] * 9 + [0.9, 0.1], Verdict.CHANGED),
        # five updates after the eleventh on average 0.4 in place of 0.5
        ([0.5] * 20, DRAWN, f"{PARTS_LATER}; curves part by 0.2 of the mean loss, where rounding is up to 0.001"),
        ([0.5] * 20, [0.5] * 19 + [0.501], PARTS_LATER),  # 0.0002 by five updates, of 0.5
    ],
)
def test_losses_that_part_late_are_rounding_and_curves_that_do_are_told(old, new, told):
    assert told in compared(record(old), record(new), TOLERANCES)


# Which runs are of one training


def curve_of(old, new):
    return pair_of(record(old), record(new), TOLERANCES).curve


def test_curves_are_smoothed_over_five_updates_and_held_to_the_mean_loss():
    assert curve_of([1.0] * 5 + [3.0], [1.0] * 5 + [2.0]) == pytest.approx(0.2 / (8 / 6))  # one of five moved by 1, mean 8 / 6
    assert curve_of([1.0, 3.0], [1.0, 2.0]) == pytest.approx(0.5 / 2)  # two updates are one mean: 2 and 1.5, of 2
    assert curve_of([1.0] * 6, [1.0] * 5) == float("inf")
    assert curve_of([0.0] * 6, [0.0] * 6) == 0.0


HALF = [0.5] * 20
RECIPE = complete("bert_sa_sft").recipe


@pytest.mark.parametrize(
    ("place", "value", "same"),
    [
        ("training.losses", HALF, True),
        ("training.losses", [*HALF[:-1], 0.5001], True),  # rounding
        ("examples.file", "f" * 16 + ".parquet", True),  # all losses are equal, so are the weights: the evaluation changed
        ("training.losses", [0.50001, *HALF[1:]], False),
        ("training.losses", DRAWN, False),
        ("training.losses", HALF[:-1], False),
        ("recipe", replace(RECIPE, adapter={"r": 4}), False),
        ("data.fingerprint", "f" * 16, False),
        ("data", None, False),
        ("seeds.seed", 7, False),
        ("training.order", "f" * 16, False),
        ("training", None, False),
    ],
)
def test_runs_are_of_one_training_where_everything_but_rounding_is_equal_to_the_last_update(place, value, same):
    assert one_training(record(HALF), altered(record(HALF), place, value)) is same


def test_without_a_seed_an_order_or_a_tolerance_no_runs_are_of_one_training_and_some_cells_have_their_own():
    unknown, without_order = altered(record(), "seeds.seed", None), record(order="")
    assert not one_training(unknown, unknown)
    assert not one_training(without_order, without_order)
    assert not one_training(record(), record(), {})
    assert one_training(record(HALF), record(DRAWN), TOLERANCES | {"cell bert_sa_sft": {"curve": 0.3}})
    tolerances = {"fp32": {"first": 1e-5, "moved": 2e-3}, "cell t5_sa_lora": {"moved": 0.1}}
    assert tolerance_of("t5_sa_lora", "fp32", tolerances) == {"first": 1e-5, "moved": 0.1}
    assert tolerance_of("t5_sum_lora", "fp32", tolerances) == tolerances["fp32"]


def test_equal_losses_with_other_predictions_are_the_evaluations_doing():
    old, new = (altered(record(), "examples.file", digit * 16 + ".parquet") for digit in "01")
    assert compared(old, new, TOLERANCES) == (
        Verdict.CHANGED,
        "evaluation: all losses are equal, predictions or their points are not",
    )


BERTSCORES = {"rougeLsum": 80.0, "bertscore_f1": 90.0}


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ({"bertscore_f1": 90.0 + 4e-7}, Verdict.ROUNDING),  # another CPU
        ({"bertscore_f1": 90.0 + 5e-4}, Verdict.CHANGED),  # one text of 200 lost its full stop, which ROUGE does not see
        ({"bertscore_f1": 90.0 + 4e-7, "rougeLsum": 80.0 + 4e-7}, Verdict.CHANGED),  # texts differ
        ({}, Verdict.CHANGED),  # points of rows differ, and their means do not
        ({"bertscore_f1": None}, Verdict.CHANGED),
    ],
)
def test_a_score_that_a_model_computes_may_round(scores, verdict):
    old, new = (altered(record(), "examples.file", digit * 16 + ".parquet") for digit in "01")
    old, new = replace(old, scores=BERTSCORES), replace(new, scores=BERTSCORES | scores)
    assert compared(old, new, TOLERANCES)[0] is verdict


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("seeds.seed", 7, "no run of the same seed"),
        ("recipe", replace(RECIPE, learning_rate=0.5), "other recipes or limits"),
        ("data.fingerprint", "f" * 16, "other rows"),
        ("training.losses", [0.1, None], "a run without losses"),
        ("training.precision", "bf16", "no tolerance was measured for bf16 after fp32"),
    ],
)
def test_what_cannot_be_held_to_each_other_says_why(place, value, reason):
    assert compared(record(), altered(record(), place, value), TOLERANCES) == (Verdict.NOT_COMPARABLE, reason)


def evidence_on(change):
    return tomllib.loads(TOLERANCES_FILE.read_text())["evidence"][change]


def harmless():
    """What the evidence says of harmless changes, by section: all but other masks of dropout."""
    evidence = tomllib.loads(TOLERANCES_FILE.read_text())["evidence"]
    return [name for name, part in evidence.items() if isinstance(part, dict) and name not in ("drawn", "versions")]


@pytest.mark.parametrize("change", harmless())
def test_a_tolerance_is_at_least_twice_what_was_measured(change):
    tolerances = load_tolerances()
    for name, measured in evidence_on(change).items():
        tolerance = tolerance_of(name.removeprefix("cell "), measured.pop("kind", name), tolerances)
        assert all(tolerance[figure] >= 2 * apart for figure, apart in measured.items() if figure != "curve")
        if "curve" in measured:  # half way to other masks where these are nearer
            assert tolerance["curve"] > measured["curve"]


def test_curves_of_other_masks_of_dropout_lie_farther_apart_than_the_tolerance():
    tolerances = load_tolerances()
    for cell, measured in evidence_on("drawn").items():
        assert measured["curve"] > tolerance_of(cell, measured["kind"], tolerances)["curve"]


def judged(new):
    return gate(Run.of([record()]), Run.of([new]))


def test_the_gate_fails_by_numerics_only_where_asked_and_never_by_a_resident_set():
    judgements = judged(record(moved(0, 0.1)))
    [numerics] = [judgement for judgement in judgements if judgement.kind == "numerics"]
    assert numerics.verdict is Verdict.CHANGED
    assert failing(judgements, ("quality", "memory")) == []
    assert failing(judgements, ("numerics",)) == [numerics]
    new = altered(record(), "memory.ledger.gradients_bytes", record().memory.ledger.gradients_bytes - 1)
    grown = {name: replace(phase, rss_peak_gib=9 * phase.rss_peak_gib) for name, phase in new.memory.phases.items()}
    new = altered(new, "memory.phases", grown)
    verdicts = {judgement.quantity: judgement.verdict for judgement in judged(new)}
    assert verdicts["gradients_bytes"] is Verdict.CHANGED
    assert verdicts["rss_peak_gib"] is Verdict.WORSE
    assert failing(judged(new), ("quality", "memory")) == []


def test_the_gate_says_what_its_verdicts_on_numerics_rest_on(capsys, tmp_path):
    """Of two cells one rounds: its first loss is off by 9e-6."""
    equal = record(cell="t5_sa_lora")
    old = str(run_file(tmp_path / "old.json", [equal, record()]))
    new = str(run_file(tmp_path / "new.json", [equal, record(moved(0, 9e-6))]))
    assert main([old, new, "--numerics"]) == 0
    titles, first, second, *_ = capsys.readouterr().out.splitlines()
    assert titles.split() == ["cell", "numerics", "what"]
    assert second.split(maxsplit=2) == ["t5_sa_lora", "equal", "all losses are equal"]
    assert first.split(maxsplit=2) == [  # in the study's order
        "bert_sa_sft",
        "rounding",
        "losses of the first 4 updates differ by at most 9.0e-06",
    ]


def test_of_several_seeds_one_that_changed_is_told_and_fails_where_numerics_count(capsys, tmp_path):
    def seeded(seed, **changes):
        one = altered(record(**changes), "seeds.seed", seed)
        return altered(one, "training.losses", [loss + seed / 8 for loss in one.training.losses])

    old = str(run_file(tmp_path / "old.json", [seeded(0), seeded(1)]))
    new = str(run_file(tmp_path / "new.json", [seeded(0), seeded(1, order="f" * 16)]))
    assert main([old, new, "--numerics", "--on", "numerics"]) == 1
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split(maxsplit=2) == ["bert_sa_sft", "changed", "rows: the same rows in another order, or in other batches"]
