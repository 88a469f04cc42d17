"""What cells show beside each other: copied results, other rows, what is not like for like."""

import pytest

from tunegrid import ROOT
from tunegrid.record import AuditFinding
from tunegrid.record.checks import impossible
from tunegrid.results.files import read_list
from tunegrid.results.status import cross_cell_audits
from tunegrid.tests.records import MEASURED, complete


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


def test_the_studys_impossible_numbers_and_copied_rows_are_found():
    listed, records = (ROOT / "reports" / "study-findings.md").read_text(), read_list(ROOT / "reports" / "study.json")
    found = [sentence for record in records for sentence in impossible(record.scores)]
    found += [one.detail for own in cross_cell_audits(records).values() for one in own if not one.passed]
    assert [sentence for sentence in found if sentence not in listed] == []
    assert len(found) == listed.count("* `") == 7  # F13 and F14
