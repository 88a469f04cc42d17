"""The sentence of an upgrade, by judgements written by hand."""

from tunegrid.commands.upgrade import failures, sentence
from tunegrid.results.judgements import Judgement, Verdict
from tunegrid.tests.records import complete

KINDS = ("quality", "memory")
STAGE = "backward: gradients of lora_B x 2 at update 1, forward equal"


def numerics(cell, verdict, detail="", main_score="f1"):
    return Judgement(cell=cell, main_score=main_score, quantity="numerics", verdict=verdict, detail=detail)


def score(cell, verdict, effect, name="f1", main_score="f1"):
    return Judgement(cell=cell, main_score=main_score, quantity=name, verdict=verdict, effect=effect)


def equal(*cells):
    return [
        numerics(cell, Verdict.EQUAL, "all losses and predictions are equal; with peft 0.22.0, it was 0.21.2") for cell in cells
    ]


def test_equal_cells_are_counted_and_the_one_that_changed_is_named_with_stage_and_score():
    changed = numerics("gpt2_qa_lora", Verdict.CHANGED, f"{STAGE}; with peft 0.22.0, it was 0.21.2")
    judged = [*equal(*(f"c{n}" for n in range(26))), changed, score("gpt2_qa_lora", Verdict.WORSE, -2.1)]
    assert sentence("peft 0.21.2 -> 0.22.0", judged, KINDS) == (
        "peft 0.21.2 -> 0.22.0: 26 cells equal, "
        "1 changed (gpt2_qa_lora: backward: gradients of lora_B x 2 at update 1; f1 -2.1, worse)"
    )


def test_cells_that_are_equal_or_differ_by_rounding_have_no_names():
    judged = [*equal("a", "b"), numerics("c", Verdict.ROUNDING, "losses of the first 10 updates differ by at most 1e-6")]
    assert sentence("x", judged, KINDS) == "x: 2 cells equal, 1 rounding"
    assert sentence("x", equal("a"), KINDS) == "x: 1 cell equal"


def test_a_changed_cell_without_a_score_says_its_stage_alone():
    assert (
        sentence("x", [numerics("a", Verdict.CHANGED, "forward: the loss")], KINDS)
        == "x: 1 cell changed (a: forward: the loss)"
    )


def test_what_is_worse_is_named_though_its_first_updates_are_equal():
    bytes_ = Judgement(cell="b", main_score="f1", quantity="weights_bytes", verdict=Verdict.WORSE, effect=0.25)
    judged = [*equal("a", "b", "c"), score("a", Verdict.WORSE, -3.25), bytes_]
    assert sentence("x", judged, KINDS) == "x: 1 cell equal, 2 worse (a: f1 -3.2, worse, b: weights_bytes +25.0 %, worse)"


def test_another_score_than_the_main_one_is_named_only_where_it_fails():
    judged = [numerics("a", Verdict.CHANGED, "forward: y"), score("a", Verdict.SAME, 0.0, "em"), score("a", Verdict.SAME, 0.5)]
    assert sentence("x", judged, KINDS) == "x: 1 cell changed (a: forward: y; f1 +0.5, same)"


def test_three_cells_are_named_and_the_others_counted():
    judged = [numerics(cell, Verdict.CHANGED, "forward: y") for cell in "abcde"]
    assert sentence("x", judged, KINDS) == "x: 5 cells changed (a: forward: y, b: forward: y, c: forward: y and 2 more)"


def test_missing_cells_and_those_that_cannot_be_compared_are_named():
    gone = Judgement(cell="b", main_score="f1", quantity="cell", verdict=Verdict.MISSING)
    judged = [*equal("a"), gone, numerics("c", Verdict.NOT_COMPARABLE, "another recipe")]
    assert sentence("x", judged, KINDS) == "x: 1 cell equal, 1 not comparable (c: another recipe), 1 missing (b)"


def test_without_a_judgement_no_cell_finishes():
    assert sentence("x", [], KINDS) == "x: no cell finishes"
    assert sentence("x", [], KINDS, {"a": "broke off", "b": "broke off"}) == "x: no cell finishes (broke off)"


def test_a_cell_that_failed_by_itself_is_named_in_its_group():
    judged = [*equal("a", "b"), numerics("c", Verdict.CHANGED, "forward: y")]
    assert sentence("x", judged, KINDS, {"a": "failed audit base_frozen", "c": "missed a bound"}) == (
        "x: 1 cell equal, 1 changed (c: forward: y; missed a bound), 1 failed (a: failed audit base_frozen)"
    )


def test_a_failure_that_was_there_before_says_so():
    below = {"status": "missed", "missed": ["accuracy 10.0 is below 88.0"], "scores": {"accuracy": 10.0, "f1_macro": 91.0}}
    good, bad, stopped = complete(), complete(**below), complete(status="stopped", missed=["the loss is nan"])
    assert failures([good], [good]) == {}
    assert failures([good], [bad]) == {"bert_sa_lora": "missed a bound"}
    assert failures([bad], [bad]) == {"bert_sa_lora": "missed a bound, as before"}
    assert failures([bad], [stopped]) == {"bert_sa_lora": "stopped early"}


def test_of_several_causes_the_first_is_told_and_the_others_counted():
    audits = [{"name": name, "passed": False, "detail": "x"} for name in ("base_frozen", "head_trains", "rows_learned")]
    missed = [f"audit {audit['name']}: x" for audit in audits]
    record = complete(status="missed", audits=audits, missed=missed)
    assert failures([complete()], [record]) == {"bert_sa_lora": "failed audit base_frozen and 2 more"}
