"""What decides passed or missed: a table of cases, and the cells together."""

from types import SimpleNamespace

import pytest

from lib.results.passing import audit_together, judged, located
from lib.tests.test_record import MEASURED, complete

GOOD = SimpleNamespace(name="base_frozen", passed=True, detail="", of_learning=False)
BROKEN = SimpleNamespace(name="base_frozen", passed=False, detail="3 tensors changed", of_learning=False)
LEARNED_NOTHING = SimpleNamespace(name="weights_moved", passed=False, detail="unchanged: lora_B", of_learning=True)
FAILED = "audit base_frozen: 3 tensors changed"
UNMOVED = "audit weights_moved: unchanged: lora_B"
BELOW = "f1 1.0 is below 2.0"


@pytest.mark.parametrize(
    ("changes", "status", "sentences"),
    [
        ({}, "passed", []),
        ({"findings": [GOOD]}, "passed", []),
        ({"findings": [GOOD, BROKEN]}, "missed", [FAILED]),
        ({"findings": [LEARNED_NOTHING]}, "missed", [UNMOVED]),
        ({"findings": [LEARNED_NOTHING], "limited": True}, "passed", []),
        ({"findings": [BROKEN, LEARNED_NOTHING], "limited": True}, "missed", [FAILED]),
        ({"below": [BELOW]}, "missed", [BELOW]),
        ({"findings": [BROKEN], "below": [BELOW]}, "missed", [FAILED, BELOW]),
        ({"unexpected": ["the ledger holds 5 bytes, the device 6"]}, "missed", ["the ledger holds 5 bytes, the device 6"]),
        ({"stopped": "loss is nan", "findings": [BROKEN], "below": [BELOW]}, "stopped", ["loss is nan"]),
        ({"stopped": "loss is nan", "limited": True}, "stopped", ["loss is nan"]),
    ],
    ids=str,
)
def test_a_cell_passes_where_nothing_is_wrong(changes, status, sentences):
    nothing_wrong = {"stopped": None, "findings": [], "below": [], "unexpected": [], "limited": False}
    assert judged(**nothing_wrong | changes) == (status, sentences)


def scored(cell, score, **changes):
    return complete(cell, scores={"accuracy": score}, **changes)


def test_copied_results_turn_both_cells_to_missed():
    records = [scored("t5_sa_lora", 99.0), scored("t5_sa_sft", 99.0), scored("bert_sa_lora", 90.0)]
    assert audit_together(records) == records[:2]
    assert [record.status for record in records] == ["missed", "missed", "passed"]
    assert records[0].missed == ["audit distinct_results: the results are those of t5_sa_sft (t5_sa_lora, quick, seed 0)"]
    assert [(f.name, f.passed) for f in records[0].audits] == [("distinct_results", False), ("same_rows_in_triple", True)]
    assert [f.passed for f in records[2].audits] == [True, True]


def test_profiles_and_cells_that_did_not_finish_are_not_compared():
    records = [
        scored("t5_sa_lora", 99.0),
        scored("t5_sa_sft", 99.0, profile="full"),
        scored("t5_sa_qlora", 99.0, status="stopped", missed=["loss is nan"]),
    ]
    assert audit_together(records) == []
    assert [record.status for record in records] == ["passed", "passed", "stopped"]
    assert records[2].audits == []


def test_a_fault_is_added_to_what_a_cell_missed_already():
    other = MEASURED["data"] | {"fingerprint": "f" * 16}
    records = [scored("t5_sa_lora", 9.0, status="missed", missed=[BELOW]), scored("t5_sa_sft", 8.0, data=other)]
    assert audit_together(records) == records
    assert records[0].missed == [BELOW, "audit same_rows_in_triple: other rows than t5_sa_sft (t5_sa_lora, quick, seed 0)"]


def test_a_sentence_names_its_cell_and_profile():
    assert located(complete("t5_qa_sft"), BELOW) == "f1 1.0 is below 2.0 (t5_qa_sft, quick, seed 0)"
