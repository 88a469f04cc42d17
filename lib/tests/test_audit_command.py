"""Audits of saved figures, and the command that runs them."""

import json
from pathlib import Path

import pytest

from lib import audit
from lib.results.files import read_records
from lib.results.record_checks import across, invariants, unlike
from lib.tests.test_results import complete, saved

STUDY = Path(__file__).parents[2] / "reports" / "study.json"


def cell(name, score, losses=(0.5,), **changes):
    record = complete(name, scores={"accuracy": score}, **changes)
    return record | {"training": record["training"] | {"losses": list(losses)}}


def failed(*records):
    found = across(records)
    return {name: [f["name"] for f in findings if not f["passed"]] for name, findings in found.items()}


def test_a_score_alone_may_be_shared_a_whole_course_may_not():
    assert failed(cell("t5_sa_lora", 100.0, [0.5, 0.2]), cell("t5_sa_sft", 100.0, [0.5, 0.3])) == {
        "t5_sa_lora": [],
        "t5_sa_sft": [],
    }
    copied = failed(cell("t5_sa_lora", 99.0), cell("t5_sa_sft", 99.0))
    assert copied == {"t5_sa_lora": ["distinct_results"], "t5_sa_sft": ["distinct_results"]}


def test_rows_are_compared_within_a_triple_only():
    data = complete()["data"]
    other = {"data": data | {"fingerprint": "f" * 16}}
    assert failed(cell("t5_sa_lora", 1.0), cell("bert_sa_lora", 2.0, **other)) == {"t5_sa_lora": [], "bert_sa_lora": []}
    apart = across([cell("t5_sa_lora", 1.0), cell("t5_sa_sft", 2.0, **other)])
    assert apart["t5_sa_sft"][1] == {"name": "same_rows_in_triple", "passed": False, "detail": "other rows than t5_sa_lora"}


def test_the_cells_of_two_profiles_are_not_compared():
    assert failed(cell("t5_sa_lora", 9.0), cell("t5_sa_lora", 9.0, profile="full")) == {"t5_sa_lora": []}


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ({"exact_match": 62.6, "f1": 62.1}, "exact_match 62.6 is above f1 62.1"),
        ({"rouge1": 20.0, "rougeL": 21.0}, "rougeL 21.0 is above rouge1 20.0"),
        ({"rouge1": 20.0, "rouge2": 21.0}, "rouge2 21.0 is above rouge1 20.0"),
        ({"accuracy": 101.0}, "accuracy is 101.0"),
        ({"accuracy": None}, "accuracy is not a number"),
        (
            {"bertscore_precision": 55.14, "bertscore_recall": 55.68, "bertscore_f1": 56.23},
            "bertscore_f1 56.23 is above the mean of precision 55.14 and recall 55.68",
        ),
    ],
)
def test_scores_that_cannot_be_are_told(scores, sentence):
    assert invariants(complete(scores=scores)) == [sentence]


def test_scores_that_can_be_are_not():
    fine = {"exact_match": 62.1, "f1": 62.1, "rouge1": 30.0, "rouge2": 10.0, "rougeL": 30.0}
    assert (
        invariants(complete(scores=fine | {"bertscore_precision": 50.0, "bertscore_f1": 54.5, "bertscore_recall": 60.0})) == []
    )


def test_methods_that_are_not_like_for_like_say_in_what():
    one, other = cell("bert_sa_lora", 1.0), cell("bert_sa_sft", 2.0)
    assert unlike({"bert_sa_lora": one, "bert_sa_sft": other}) == [
        "bert_sa_lora and bert_sa_sft: bert_sa_lora adapts its head alone"
    ]
    longer = other | {"training": other["training"] | {"updates": 9}}
    found = unlike({"t5_sa_lora": cell("t5_sa_lora", 1.0), "t5_sa_sft": longer | {"cell": "t5_sa_sft", "backbone": "t5"}})
    assert found == ["t5_sa_lora and t5_sa_sft: updates"]


# The command


def test_it_finds_the_studys_impossible_numbers_and_copied_rows(capsys):
    assert audit.main([str(STUDY)]) == 1
    page = capsys.readouterr().out
    assert page == STUDY.with_name("study-findings.md").read_text()
    impossible = {cell for cell, sentences in audit.faults(read_records(STUDY)).items() if "bertscore" in sentences[0]}
    assert impossible == {"bert_sum_lora", "bert_sum_qlora", "bert_sum_sft"}  # F13
    assert "`bert_qa_lora`: distinct_results: the results are those of bert_qa_sft" in page  # F14
    assert "`t5_sum_lora`: distinct_results: the results are those of t5_sum_sft" in page  # F14
    assert page.count("* `") == 7


def test_a_sound_run_has_no_findings(tmp_path, capsys):
    assert audit.main([str(saved(tmp_path / "run.json", complete()))]) == 0
    assert "1 cells, 0 with findings." in capsys.readouterr().out


def test_a_failed_audit_and_a_broken_schema_are_findings(tmp_path):
    finding = {"name": "weights_moved", "passed": False, "detail": "unchanged: lora_B"}
    record = complete(audits=[finding]) | {"seeds": {}}
    found = audit.faults({"bert_sa_lora": record})["bert_sa_lora"]
    assert "audit weights_moved: unchanged: lora_B" in found
    assert any(sentence.startswith("schema: $.seeds ") for sentence in found)


def test_a_file_that_is_no_run_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        audit.main([str(tmp_path / "absent.json")])
    assert "absent.json does not exist" in capsys.readouterr().err


def test_an_older_schema_is_named(tmp_path, capsys):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"benchmarks": [{"extra_info": complete() | {"schema_version": 1}}]}))
    with pytest.raises(SystemExit):
        audit.main([str(path)])
    assert "holds records of schema version 1, this tunegrid reads 2; run its cells again" in capsys.readouterr().err
