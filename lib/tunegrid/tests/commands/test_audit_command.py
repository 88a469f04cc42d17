"""Audits of saved figures, and the command that runs them."""

import json
from dataclasses import replace

import pytest

from tunegrid import ROOT
from tunegrid.commands import audit
from tunegrid.record import AuditFinding
from tunegrid.results.alike import unlike
from tunegrid.results.status import cross_cell_audits
from tunegrid.tests.records import MEASURED, altered, complete, complete_json, saved

STUDY = ROOT / "reports" / "study.json"


def cell(name, score, losses=(0.5,), **changes):
    evaluation = MEASURED["evaluation"] | {"loss": losses[-1]}
    training = MEASURED["training"] | {"losses": list(losses)}
    return complete(name, scores={"accuracy": score}, training=training, evaluation=evaluation, **changes)


def failed(*records):
    by_cell = cross_cell_audits(records)
    return {name: [f.name for f in findings if not f.passed] for name, findings in by_cell.items()}


def test_a_whole_course_may_not_be_shared_and_rows_are_compared_within_a_triple_only():
    assert failed(cell("t5_sa_lora", 100.0, [0.5, 0.2]), cell("t5_sa_sft", 100.0, [0.5, 0.3])) == {
        "t5_sa_lora": [],
        "t5_sa_sft": [],
    }
    copied = failed(cell("t5_sa_lora", 99.0), cell("t5_sa_sft", 99.0))
    assert copied == {"t5_sa_lora": ["distinct_results"], "t5_sa_sft": ["distinct_results"]}
    apart = {"t5_sa_lora": 90.0, "t5_sa_qlora": 91.0, "t5_qa_lora": 90.0, "t5_sa_sft": 90.0}
    details = {name: found.detail for name, [found, *_] in cross_cell_audits([cell(*pair) for pair in apart.items()]).items()}
    assert details == {
        "t5_sa_lora": "the results are those of t5_sa_sft",
        "t5_sa_qlora": "none other",
        "t5_qa_lora": "the results are those of t5_sa_sft",
        "t5_sa_sft": "the results are those of t5_qa_lora",
    }
    other = {"data": MEASURED["data"] | {"fingerprint": "f" * 16}}
    assert failed(cell("t5_sa_lora", 1.0), cell("bert_sa_lora", 2.0, **other)) == {"t5_sa_lora": [], "bert_sa_lora": []}
    apart = cross_cell_audits([cell("t5_sa_lora", 1.0), cell("t5_sa_sft", 2.0, **other)])
    assert apart["t5_sa_sft"][1] == AuditFinding(name="same_rows_in_triple", passed=False, detail="other rows than t5_sa_lora")
    assert failed(cell("t5_sa_lora", 9.0), cell("t5_sa_lora", 9.0, profile="full")) == {"t5_sa_lora": []}


LEARNED = [{"name": "learned_something", "passed": True, "detail": ""}]
TEST_ROWS = MEASURED["data"] | {"rows": MEASURED["data"]["rows"] | {"test": 300}}
FILE = {"file": "a" * 16 + ".parquet", "rows_hash": "b" * 16}


def predicted(name, score, losses, file=FILE, audits=LEARNED):
    return cell(name, score, losses, data=TEST_ROWS, examples=file, audits=audits)


@pytest.mark.parametrize(
    ("score", "losses", "other", "changes", "copied"),
    [
        (90.0, [0.5, None], [0.4, None], {}, True),  # 30 rows are wrong; a text has no loss of evaluation
        (90.0, [0.5, None], [0.4, None], {"file": FILE | {"file": "c" * 16 + ".parquet"}}, False),
        (90.0, [0.5, 0.2], [0.5, 0.3], {}, False),  # alike methods may agree on every label
        (100.0, [0.5, 0.2], [0.5, 0.3], {}, False),
        (98.0, [0.5, 0.2], [0.5, 0.3], {}, False),  # healthy cells may be wrong on the same few rows, 6 of 300
        (50.0, [0.5, 0.2], [0.5, 0.3], {"audits": []}, False),  # as may those that learned nothing
        (100.0, [0.5, 0.2], [0.4, 0.2], {}, True),  # scores and the loss of evaluation
    ],
)
def test_copied_predictions_are_told_from_those_that_are_alike(score, losses, other, changes, copied):
    audits = {"audits": changes.get("audits", LEARNED)}
    pair = predicted("t5_sa_lora", score, losses, **audits), predicted("t5_sa_sft", score, other, **audits | changes)
    assert failed(*pair) == dict.fromkeys(("t5_sa_lora", "t5_sa_sft"), ["distinct_results"] * copied)


def test_methods_that_are_not_like_for_like_say_in_what():
    one, other = cell("bert_sa_lora", 1.0), cell("bert_sa_sft", 2.0)
    assert unlike({"bert_sa_lora": one, "bert_sa_sft": other}) == [
        "bert_sa_lora and bert_sa_sft: bert_sa_lora adapts its head alone"
    ]
    adapter = one.recipe.adapter | {"target_modules": ["fc1", "fc2", "query"]}
    one = replace(one, recipe=replace(one.recipe, adapter=adapter))
    assert unlike({"bert_sa_lora": one, "bert_sa_sft": other}) == []  # not every adapter is on the head
    longer = altered(cell("t5_sa_sft", 2.0), "training.updates", 9)
    assert unlike({"t5_sa_lora": cell("t5_sa_lora", 1.0), "t5_sa_sft": longer}) == ["t5_sa_lora and t5_sa_sft: updates"]


def test_it_finds_the_studys_impossible_numbers_and_copied_rows(capsys):
    assert audit.main([str(STUDY)]) == 1
    page = capsys.readouterr().out
    assert page == STUDY.with_name("study-findings.md").read_text()
    _, findings = audit.audited([row["extra_info"] for row in json.loads(STUDY.read_text())["benchmarks"]], "study.json")
    impossible = {cell for cell, sentences in findings.items() if "bertscore" in sentences[0]}
    assert impossible == {"bert_sum_lora", "bert_sum_qlora", "bert_sum_sft"}  # F13
    assert "`bert_qa_lora`: distinct_results: the results are those of bert_qa_sft" in page  # F14
    assert "`t5_sum_lora`: distinct_results: the results are those of t5_sum_sft" in page  # F14
    assert page.count("* `") == 7


def test_a_failed_audit_and_a_broken_schema_are_findings_and_every_seed_is_audited_by_itself(tmp_path):
    finding = {"name": "weights_moved", "passed": False, "detail": "unchanged: lora_B"}
    broken = complete_json("t5_qa_sft", seeds={"seed": 0, "perturbation": None})
    records, findings = audit.audited([complete_json(audits=[finding]), broken], "run.json")
    assert findings == {
        "bert_sa_lora": ["record: the status is 'passed', but audit weights_moved: unchanged: lora_B"],
        "t5_qa_sft": ["record: seeds.split_seed is missing"],
    }
    assert [record.cell for record in records] == ["bert_sa_lora"]
    twins = [
        complete_json(scores={"accuracy": 90.0, "f1_macro": 90.0}),
        complete_json(seeds={"seed": 1, "split_seed": 42, "perturbation": None}),
    ]
    assert audit.audited(twins, "run.json")[1] == {}  # the same cell with two seeds is no copy
    copied = [
        complete_json(scores={"accuracy": 101.0 - seed}, seeds={"seed": seed, "split_seed": 42, "perturbation": None})
        for seed in (0, 1)
    ]
    assert list(audit.audited(copied, "run.json")[1].values()) == [
        ["record: scores.accuracy is 101.0, but it should be less than or equal to 100.000001"]
    ]


def test_the_audits_share_of_the_time_is_told(tmp_path, capsys):
    phase = MEASURED["memory"]["phases"]["load"]  # 1.5 s
    phases = {"train": phase | {"seconds": 4.5}, "audit": phase | {"seconds": 0.5}}
    path = saved(tmp_path / "run.json", complete(memory=MEASURED["memory"] | {"phases": phases}))
    assert audit.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 cells, 0 with findings." in out
    assert "Audits took 10.00 % of the cells' time." in out
