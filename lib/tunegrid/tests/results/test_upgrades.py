"""The sentence of an upgrade, by judgements written by hand."""

import pytest

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
    return [numerics(cell, Verdict.EQUAL, "all losses are equal; with peft 0.22.0, it was 0.21.2") for cell in cells]


def changed(*cells, detail="forward: y"):
    return [numerics(cell, Verdict.CHANGED, detail) for cell in cells]


BYTES = Judgement(cell="b", main_score="f1", quantity="weights_bytes", verdict=Verdict.WORSE, effect=0.25)
GONE = Judgement(cell="b", main_score="f1", quantity="cell", verdict=Verdict.MISSING)


@pytest.mark.parametrize(
    ("judged", "words"),
    [
        (
            [*equal("b", "c"), *changed("a", detail=f"{STAGE}; with peft 0.22.0"), score("a", Verdict.WORSE, -2.1)],
            "2 cells equal, 1 changed (a: backward: gradients of lora_B x 2 at update 1; f1 -2.1, worse)",
        ),
        ([*equal("a", "b"), numerics("c", Verdict.ROUNDING)], "2 cells equal, 1 rounding"),
        (
            [*equal("a", "b", "c"), score("a", Verdict.WORSE, -3.25), BYTES],
            "1 cell equal, 2 worse (a: f1 -3.2, worse, b: weights_bytes +25.0 %, worse)",
        ),
        (
            [*changed("a"), score("a", Verdict.SAME, 0.0, "em"), score("a", Verdict.SAME, 0.5)],
            "1 cell changed (a: forward: y; f1 +0.5, same)",
        ),
        (changed(*"abcde"), "5 cells changed (a: forward: y, b: forward: y, c: forward: y and 2 more)"),
        (
            [*equal("a"), GONE, numerics("c", Verdict.NOT_COMPARABLE, "another recipe")],
            "1 cell equal, 1 not comparable (c: another recipe), 1 missing (b)",
        ),
    ],
)
def test_cells_are_counted_and_those_that_matter_named(judged, words):
    assert sentence("x", judged, KINDS) == f"x: {words}"


def test_a_cell_that_failed_by_itself_is_named_in_its_group():
    assert sentence("x", [], KINDS) == "x: no cell finishes"
    assert sentence("x", [], KINDS, {"a": "broke off", "b": "broke off"}) == "x: no cell finishes (broke off)"
    judged = [*equal("a", "b"), numerics("c", Verdict.CHANGED, "forward: y")]
    assert sentence("x", judged, KINDS, {"a": "failed audit base_frozen", "c": "missed a bound"}) == (
        "x: 1 cell equal, 1 changed (c: forward: y; missed a bound), 1 failed (a: failed audit base_frozen)"
    )


def test_a_failure_that_was_there_before_says_so_and_of_several_causes_all_are_told():
    below = {"status": "missed", "missed": ["accuracy 10.0 is below 88.0"], "scores": {"accuracy": 10.0, "f1_macro": 91.0}}
    good, bad, stopped = complete(), complete(**below), complete(status="stopped", missed=["the loss is nan"])
    assert failures([good], [good]) == {}
    assert failures([good], [bad]) == {"bert_sa_lora": "missed a bound"}
    assert failures([bad], [bad]) == {"bert_sa_lora": "missed a bound, as before"}
    assert failures([bad], [stopped]) == {"bert_sa_lora": "stopped early"}
    audits = [{"name": name, "passed": False, "detail": "x"} for name in ("base_frozen", "head_trains", "rows_learned")]
    missed = [f"audit {audit['name']}: x" for audit in audits]
    record = complete(status="missed", audits=audits, missed=missed)
    assert failures([complete()], [record]) == {"bert_sa_lora": "failed audits base_frozen, head_trains and rows_learned"}
