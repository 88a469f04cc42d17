"""Two training runs of one seed are compared by their first figures and their losses."""

from dataclasses import replace

import pytest

from tunegrid.commands.gate import main
from tunegrid.gate.judgements import Verdict, find_worse
from tunegrid.gate.numerics import BACKWARD, Pair, compare_pair
from tunegrid.record.record import RanksRecord
from tunegrid.runs.examples import write
from tunegrid.tests.records import FIRST_STEP, altered, complete, get_record, run_file

BY_GROUP = {
    "curve": 1e-3,
    "weights": 1e-4,
    "probe_gradients": 1e-3,
    "gradients": 1e-3,
    "moved": 1e-2,
    "moved_alone": 1e-3,
}
TOLERANCES = {
    "fp32": {"first": 1e-6, "later": 1e-5, "decoded": 1e-4} | BY_GROUP,
    "nf4 fp32": {"first": 1e-3, "later": 1e-2, "decoded": 5e-2} | BY_GROUP,
}
LOSSES = [0.7, 0.5, 0.4, 0.3]
HALF = [0.5] * 20
LAST_ROUNDED = [*HALF[:-1], 0.500009]
ROUNDED = [0.5000001] * 10
# One more random number before each update from the eleventh on: other masks of dropout
DRAWN = [0.5] * 10 + [0.4] * 10
ATTENTION = "layer 0 attention"  # as in `complete`
EQUAL = Verdict.EQUAL
ROUNDING = Verdict.ROUNDING
CHANGED = Verdict.CHANGED


def record(losses=LOSSES, cell="bert_sa_sft", **changes):
    """A finished record with these losses; `changes` are fields of its training."""
    made = complete(cell)
    figures = {"losses": list(losses), "updates": len(losses)} | changes
    return replace(made, training=replace(made.training, **figures))


def add_step(cell="bert_sa_sft", **figures):
    """A record whose first step has these figures in place of the complete one's."""
    made = record(cell=cell)
    known = {"generated": "0" * 16}
    return altered(
        made, "training.first_step", replace(made.training.first_step, **known | figures)
    )


def get_verdict(old, new, tolerances=TOLERANCES):
    judgement, _ = compare_pair(old, new, tolerances)
    return judgement.verdict, judgement.detail


def shifted(index, gap):
    losses = list(LOSSES)
    losses[index] += gap
    return losses


@pytest.mark.parametrize(
    ("old", "new", "verdict", "words"),
    [
        (LOSSES, LOSSES, EQUAL, "all losses are equal"),
        (LOSSES, shifted(0, 9e-7), ROUNDING, "differ by at most 9.0e-07"),
        (
            LOSSES,
            shifted(0, 1.1e-6),
            CHANGED,
            "forward with dropout: the loss of update 1 is 0.700001, it was 0.7",
        ),
        (
            LOSSES,
            shifted(2, 9e-6),
            ROUNDING,
            "losses of the first 4 updates differ by at most 9.0e-06",
        ),
        (
            LOSSES,
            shifted(2, 1.1e-5),
            CHANGED,
            "backward or optimizer: losses differ by 1.1e-05 at update 3, not at update 1",
        ),
        (
            [0.1] * 11,
            [0.1] * 10 + [0.100009],
            ROUNDING,
            "losses are equal up to update 10, then differ",
        ),
        (
            [0.1] * 11,
            [0.1] * 10 + [0.1004],
            CHANGED,
            "curve: losses are equal before update 11, and differ by 4.0e-04 there",
        ),
        ([0.1] * 11, [0.1] * 9 + [0.9, 0.1], CHANGED, "at update 10"),
        # five updates after the eleventh on average 0.4 in place of 0.5
        (
            HALF,
            [*ROUNDED, *DRAWN[10:]],
            CHANGED,
            "losses diverge from update 11: curves differ by 0.2 of the mean loss, not by",
        ),
        # More than 5e-4 nats
        (
            HALF,
            [*ROUNDED, *[0.5003] * 3, *[0.4] * 7],
            CHANGED,
            "curve: losses diverge from update 14",
        ),
    ],
)
def test_losses_of_the_first_updates_round_or_name_the_stage_that_changed(old, new, verdict, words):
    answer, detail = get_verdict(record(old), record(new))
    assert answer == verdict, detail
    assert words in detail


@pytest.mark.parametrize(
    ("figure", "value", "words"),
    [
        ("tokens", "f" * 16, "text: token ids or targets of the training rows differ"),
        ("test_tokens", "f" * 16, "text: token ids of the test rows differ"),
        ("probe_loss", 0.8, "forward: the loss before training is 0.8, it was 0.7"),
        (
            "stream",
            "f" * 16,
            "random numbers: the generator gives other numbers from the same seed",
        ),
        ("drawn", "f" * 16, "random numbers: the first update draws other random numbers"),
        ("gradients", {ATTENTION: 0.1}, "backward: gradients of head none, before 1 at update 1"),
        (
            "reached",
            {ATTENTION: 4},
            "backward: tensors of head that get a gradient at update 1: none, before 2",
        ),
        (
            "tokens_read",
            260,
            "generation: a search reads 260 tokens, before 52: a cache is used differently",
        ),
        (
            "decoded",
            0.01,
            "generation: with a cache, a search's scores are off by 0.01 of the largest logit, ",
        ),
        ("generated", "f" * 16, "generation: the untrained model generates another text"),
    ],
)
def test_a_figure_of_the_first_step_names_the_stage(figure, value, words):
    answer, detail = get_verdict(add_step(), add_step(**{figure: value}))
    assert answer is CHANGED
    assert detail.startswith(words)


@pytest.mark.parametrize(
    ("figure", "group", "value", "words"),
    [
        (
            "types",
            ATTENTION,
            "bfloat16",
            f"loading: weights of {ATTENTION} are bfloat16, they were",
        ),
        (
            "computed",
            ATTENTION,
            "float32",
            f"loading: {ATTENTION} computes in float32, before in bfloat16",
        ),
        ("weights", ATTENTION, 10.01, f"start: weights before training, {ATTENTION} x 1.001"),
        (
            "probe_reached",
            ATTENTION,
            3,
            f"{BACKWARD}: tensors of {ATTENTION} that get a gradient: 3, before 4",
        ),
        (
            "probe_gradients",
            ATTENTION,
            0.4,
            f"{BACKWARD}: gradients of {ATTENTION} x 2 before training, the loss",
        ),
        (
            "reached",
            "head",
            0,
            "backward: tensors of head that get a gradient at update 1: 0 (all are",
        ),
        ("gradients", "head", 0.5, "backward: gradients of head x 0.5 at update 1, the loss equal"),
        (
            "moved",
            "head",
            0.0,
            "optimizer: movement of head x 0 by update 3, first gradients equal",
        ),
        # All before is equal
        ("moved", ATTENTION, 0.01002, f"optimizer: movement of {ATTENTION} x 1.002"),
        ("metrics", "accuracy", 56.25, "scoring: accuracy of fixed answers is 56.25, it was 50"),
    ],
)
def test_a_figure_of_one_group_names_the_stage(figure, group, value, words):
    answer, detail = get_verdict(
        add_step(), add_step(**{figure: FIRST_STEP[figure] | {group: value}})
    )
    assert answer is CHANGED
    assert detail.startswith(words)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (
            {"digits": {ATTENTION: "bfloat16", "head": "float32"}, "weights": {ATTENTION: 9.0}},
            f"start: weights of {ATTENTION} start with bfloat16 precision, before with float32",
        ),
        ({"moved": {ATTENTION: 1.0, "head": 1.0}, "probe_loss": 0.8, "metrics": {}}, "forward: "),
    ],
)
def test_the_first_of_several_stages_is_named(figures, words):
    assert get_verdict(add_step(), add_step(**figures))[1].startswith(words)


@pytest.mark.parametrize(
    "figures",
    [
        {"test_tokens": None},  # an older record's are not known
        # Another probe's are not compared
        {"probe": "f" * 16, "probe_loss": 0.8, "generated": "f" * 16},
        # Not looked at
        dict.fromkeys(("digits", "computed", "reached", "decoded", "generated", "tokens_read")),
        {"weights": {ATTENTION: 10.0005, "head": 1.0}},
        {"moved": {ATTENTION: 0.01002, "head": 0.05}, "weights": {ATTENTION: 10.0005, "head": 1.0}},
    ],
)
def test_unknown_figures_and_rounding_are_no_change(figures):
    assert get_verdict(add_step(), add_step(**figures))[0] is EQUAL


def test_no_gradient_is_told_from_gradients_of_zero():
    old = add_step(reached={ATTENTION: 4, "head": 0})
    new = add_step(reached={ATTENTION: 4})
    assert "get a gradient at update 1: none, before 0 (all are zeros)" in get_verdict(old, new)[1]


@pytest.mark.parametrize(
    ("factor", "text"), [(1.00003, "+0.003 %"), (0.99998, "-0.002 %"), (1.5, "x 1.5")]
)
def test_a_rounded_norm_is_not_told_as_the_same(factor, text):
    old = add_step(moved={ATTENTION: 0.01, "head": 0.05})
    new = add_step(moved={ATTENTION: 0.01, "head": 0.05 * factor})
    detail = get_verdict(old, new, {"fp32": TOLERANCES["fp32"] | {"moved_alone": 1e-6}})[1]
    assert detail == f"optimizer: movement of head {text} by update 3, first gradients equal"


@pytest.mark.parametrize(("near", "verdict"), [(1e-9, EQUAL), (0.01, CHANGED)])
def test_a_norm_of_zero_but_for_rounding_is_held_to_the_largest(near, verdict):
    old = add_step(probe_gradients={"lora_A": 0.0, "head": 2.0})
    new = add_step(probe_gradients={"lora_A": near, "head": 2.0})
    assert get_verdict(old, new)[0] is verdict


@pytest.mark.parametrize(
    ("figures", "verdict"), [({"generated": "f" * 16}, EQUAL), ({"decoded": 0.1}, CHANGED)]
)
def test_a_text_of_a_quantized_base_may_round_and_its_scores_have_a_tolerance(figures, verdict):
    old = add_step("bert_sa_qlora")
    new = add_step("bert_sa_qlora", **figures)
    assert get_verdict(old, new)[0] is verdict


def test_records_without_figures_are_held_to_losses_and_order_and_libraries_are_named():
    old = record(first_step=None)
    assert get_verdict(old, record())[0] is EQUAL
    assert get_verdict(record(), record(order="f" * 16))[1].startswith("rows: ")
    known = {"peft": "0" * 16, "torch": "1" * 16}
    new = replace(old, libraries=old.libraries | known, versions=old.versions | {"torch": "9"})
    libraries = (
        f"with torch 9, it was {old.versions['torch']}; peft {old.versions['peft']} with other code"
    )
    assert get_verdict(old, new) == (EQUAL, f"all losses are equal; {libraries}")


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ({"bertscore_f1": 90.0 + 4e-7}, ROUNDING),  # another CPU
        # One text of 200 lost its full stop, which ROUGE does not see
        ({"bertscore_f1": 90.0 + 5e-4}, CHANGED),
        ({"bertscore_f1": 90.0 + 4e-7, "rougeLsum": 80.0 + 4e-7}, CHANGED),  # texts differ
        ({}, CHANGED),  # points of rows differ, and their means do not
    ],
)
def test_equal_losses_with_other_predictions_are_the_evaluations_doing(scores, verdict):
    known = {"rougeLsum": 80.0, "bertscore_f1": 90.0}
    old = altered(record(), "examples.file", "0" * 16 + ".parquet")
    new = altered(record(), "examples.file", "1" * 16 + ".parquet")
    answer, detail = get_verdict(replace(old, scores=known), replace(new, scores=known | scores))
    assert answer == verdict
    assert detail.startswith("evaluation: ") == (verdict is CHANGED)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("tolerated", "changed_rows", "losses", "verdict"),
    [
        # of 400 rows rounding changes 0.2: three or more would be a chance of 1.1e-3, four or more
        # of 5.7e-5
        ({"rows": 5e-4}, 3, LAST_ROUNDED, ROUNDING),
        ({"rows": 5e-4}, 4, LAST_ROUNDED, CHANGED),
        ({"rows": 5e-4}, 1, HALF, CHANGED),  # of equal weights none may be others
        # 20: 37 or more would be a chance of 4.2e-4
        ({"rows": 5e-2}, 37, LAST_ROUNDED, ROUNDING),
        ({}, 400, LAST_ROUNDED, ROUNDING),  # never measured
    ],
)
def test_test_rows_with_other_predictions_are_held_to_how_many_rounding_changes(
    tolerated, changed_rows, losses, verdict
):
    points = {"accuracy": [100.0] * 400}
    old = replace(get_record("bert_sa_sft", points), training=record(HALF).training)
    answers = ["2"] * changed_rows + [str(row % 2) for row in range(changed_rows, 400)]
    examples = write([f"r{row}" for row in range(400)], points, answers)
    new = replace(old, training=record(losses).training, examples=examples)
    judgement, one_training = compare_pair(old, new, {"fp32": TOLERANCES["fp32"] | tolerated})
    assert judgement.verdict == verdict
    assert judgement.stage == ("evaluation" if verdict is CHANGED else "")
    assert one_training


# Which runs can be compared, and which are the same training run


@pytest.mark.parametrize(
    ("path", "value", "same"),
    [
        ("training.losses", HALF, True),
        ("training.losses", LAST_ROUNDED, True),
        # All losses are equal, so are the weights
        ("examples.file", "f" * 16 + ".parquet", True),
        ("training.losses", [0.50001, *HALF[1:]], False),
        ("training.losses", DRAWN, False),
        ("training.losses", HALF[:-1], False),
        ("training.order", "f" * 16, False),
        ("data", None, False),
    ],
)
def test_runs_are_of_one_training_if_everything_but_rounding_is_equal_to_the_last_update(
    path, value, same
):
    judgement, one_training = compare_pair(
        record(HALF), altered(record(HALF), path, value), TOLERANCES
    )
    assert one_training is same
    assert judgement.verdict is not Verdict.NOT_COMPARABLE


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("seeds.seed", 7, "no run of the same seed"),
        ("recipe.learning_rate", 0.5, "the recipes differ in learning_rate"),
        # Dropout draws others
        ("ranks", RanksRecord(count=2, backend="gloo", each=[{}, {}]), "other ranks"),
        ("data.fingerprint", "f" * 16, "other rows"),
        ("training.losses", [0.1, None], "a run without losses"),
        ("training", None, "a run without losses"),
        ("training.precision", "bf16", "no tolerance was measured from fp32 to bf16"),
    ],
)
def test_unlike_runs_are_not_compared_and_not_of_one_training(path, value, reason):
    judgement, one_training = compare_pair(
        record(HALF), altered(record(HALF), path, value), TOLERANCES
    )
    assert judgement.verdict is Verdict.NOT_COMPARABLE
    assert judgement.detail == reason
    assert one_training is False


@pytest.mark.parametrize(
    "unknown", [altered(record(), "seeds.seed", None), record(order="")], ids=["seed", "order"]
)
def test_without_a_seed_or_an_order_no_runs_are_of_one_training(unknown):
    assert not compare_pair(unknown, unknown, TOLERANCES)[1]


def test_a_cell_may_have_tolerances_of_its_own():
    rounded = record([*ROUNDED, *DRAWN[10:]])
    assert compare_pair(record(HALF), rounded, TOLERANCES | {"cell bert_sa_sft": {"curve": 0.3}})[1]


def test_curves_are_smoothed_over_five_updates_and_held_to_the_mean_loss():
    old = record([1.0] * 5 + [3.0]).training
    new = record([1.0] * 5 + [2.0]).training
    curve = Pair(old=old, new=new, tolerance={}, fine=True).curve
    assert curve == pytest.approx(0.2 / (8 / 6))  # one of five moved by 1, the mean is 8 / 6


# In the gate


def test_changed_numerics_are_worse_only_if_numerics_count():
    numerics, _ = compare_pair(record(), record(shifted(0, 0.1)), TOLERANCES)
    assert find_worse([numerics], ("quality", "memory")) == []
    assert find_worse([numerics], ("numerics",)) == [numerics]


def test_the_gravest_seed_is_listed_and_fails_a_run_only_if_asked(capsys, tmp_path):
    equal = record(cell="t5_sa_lora")
    seed_0 = altered(record(), "seeds.seed", 0)
    seed_1 = altered(record([1.7, 1.5, 1.4, 1.3]), "seeds.seed", 1)
    changed = altered(seed_1, "training.order", "f" * 16)
    old = str(run_file(tmp_path / "old.json", [equal, seed_0, seed_1]))
    new = str(run_file(tmp_path / "new.json", [equal, seed_0, changed]))
    assert main([old, new, "--numerics"]) == 6
    titles, *rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[:3]]
    assert titles == ["cell", "numerics", "what"]
    assert rows == [
        ["bert_sa_sft", "changed", "rows: the same rows in another order, or in other batches"],
        ["t5_sa_lora", "equal", "all losses are equal"],
    ]
    assert main([old, new, "--gate-on", "numerics"]) == 1
    assert main([old, new, "--gate-on", "quality,memory"]) == 0
