"""What JUnit files and annotations say of a cell."""

import pytest

from tunegrid.grid.cells import STUDY_IDS
from tunegrid.results.answer import answer_of
from tunegrid.results.cell_answer import MOST, annotate, annotations, cell_answer, place_of
from tunegrid.results.judgements import Judgement, Verdict
from tunegrid.terminal import annotation
from tunegrid.tests.outputs import obeyed
from tunegrid.tests.records import complete

MODULE = "bert.encoder.layer.1.attention.self"
MOVED = f"forward: {MODULE} (BertSdpaSelfAttention, transformers) is the first whose output moved, by 3.2e-3; with peft 0.21.2"


def judgement(quantity, verdict, detail="", cell="bert_sa_lora", **evidence):
    return Judgement(cell=cell, main_score="accuracy", quantity=quantity, verdict=verdict, detail=detail, **evidence)


WORSE = judgement("accuracy", Verdict.WORSE, "20 rows lost", effect=-3.90625)
MISSED = "accuracy 80.0 is below 88.0 (bert_sa_lora, quick, seed 0)"


def failed(cell="bert_sa_lora", **changes):
    missed = [f"accuracy 80.0 is below 88.0 ({cell}, quick, seed 0)"]
    return complete(
        cell, **{"status": "missed", "missed": missed, "scores": {"accuracy": 80.0}, "bounds": {"accuracy": 88.0}} | changes
    )


def test_a_cell_that_passed_has_the_gravest_verdict_its_cause_and_one_verdict_a_kind():
    judged = [
        judgement("numerics", Verdict.ROUNDING),
        WORSE,
        judgement("step_seconds", Verdict.WORSE),
        judgement("weights_bytes", Verdict.SAME),
    ]
    properties = cell_answer(complete(), judged).properties
    assert properties == {
        "verdict": "worse",
        "cause": "bert_sa_lora accuracy -3.91 points (20 rows lost)",
        "numerics": "rounding",
        "quality": "worse",
        "memory": "same",
        "speed": "worse",
        "scores.accuracy": "91.04",
        "scores.f1_macro": "91",
    }
    judged = [judgement("numerics", Verdict.EQUAL), judgement("step_seconds", Verdict.WORSE, "margin 15%", effect=0.2)]
    assert cell_answer(complete(), judged).verdict == "equal"
    counted = cell_answer(complete(), judged, ("quality", "speed"))
    assert (counted.verdict, counted.cause) == ("worse", "bert_sa_lora step_seconds +20.0 % (margin 15%)")


def test_a_cell_that_did_not_pass_has_its_status_and_what_it_missed_and_one_without_a_gate_no_cause():
    answer = cell_answer(failed(), [WORSE])
    assert (answer.verdict, answer.cause) == ("missed", MISSED)
    properties = cell_answer(complete(scores={"accuracy": None})).properties
    assert properties == {"verdict": "passed"}  # a score that is no number is left out


@pytest.mark.parametrize(
    ("detail", "place"),
    [
        (MOVED, ("forward", MODULE)),
        ("forward: classifier (Linear, torch) is the first whose output moved", ("forward", "classifier")),
        ("backward: gradients of lora_B x 2 at update 1, forward equal", ("backward", "")),
        ("rows: the same rows in another order, or in other batches", ("rows", "")),
    ],
)
def test_a_change_has_its_stage_and_its_module_where_one_is_named(detail, place):
    assert place_of([WORSE, judgement("numerics", Verdict.ROUNDING, "losses differ")]) == ("", "")
    assert place_of([judgement("numerics", Verdict.CHANGED, detail)]) == place


def test_a_failed_run_has_the_answer_and_one_annotation_a_cause_with_its_cells():
    records = [failed(), failed("t5_sa_lora"), complete("gpt2_sa_lora")]
    answer = answer_of(
        records, [judgement("accuracy", Verdict.WORSE, "why", "gpt2_sa_lora", effect=-5.0)], baseline="before.json"
    )
    [whole, bounds, worse] = annotations(answer, records)
    assert whole.startswith(
        "::error title=tunegrid%3A failed::Failed: 2 of 3 cells missed a bound.%0ACause: accuracy 80.0 is below 88.0"
    )
    assert bounds == (
        "::error title=2 cells missed a bound::accuracy 80.0 is below 88.0 (bert_sa_lora, quick, seed 0)"
        "%0Aaccuracy 80.0 is below 88.0 (t5_sa_lora, quick, seed 0)"
    )
    assert worse == "::error title=1 cell worse::worse: gpt2_sa_lora accuracy -5.00 points (why)"


def test_a_run_that_passed_has_none_and_no_run_more_than_github_shows():
    passed = [complete()]
    assert annotations(answer_of(passed), passed) == []
    audits = [{"name": f"audit_{n}", "passed": False, "detail": "why"} for n in range(2 * MOST)]
    missed = [f"audit {audit['name']}: why" for audit in audits]
    records = [failed(cell, audits=[one], missed=[why]) for cell, one, why in zip(STUDY_IDS, audits, missed, strict=False)]
    assert len(annotations(answer_of(records), records)) == MOST
    record = failed(audits=audits[:2], missed=missed[:2], bounds={})
    assert annotations(answer_of([record]), [record])[1:] == [
        "::error title=1 cell failed audits audit_0 and audit_1::audit audit_0: why; audit audit_1: why"
    ]


def test_texts_of_a_file_cannot_end_an_annotation_or_begin_another():
    line = annotation("error", "a,b: 50 %\n::error::x", "first 5 %\n::error::x\x1b[2J")
    assert line == "::error title=a%2Cb%3A 50 %25\\n%3A%3Aerror%3A%3Ax::first 5 %25%0A\\::error::x\\x1b[2J"
    assert not obeyed(line.removeprefix("::error"))


@pytest.mark.parametrize(("variables", "printed"), [({"GITHUB_ACTIONS": "true"}, 2), ({"GITHUB_ACTIONS": ""}, 0)])
def test_annotations_are_printed_in_github_actions_alone(monkeypatch, capsys, variables, printed):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    annotate(answer_of([failed()]), [failed()])
    assert capsys.readouterr().out.count("::error title=") == printed
