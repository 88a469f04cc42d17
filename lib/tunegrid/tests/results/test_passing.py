"""What decides passed or missed: a table of cases, and the cells together."""

import pytest

from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FOOTPRINT_PROFILE, FULL_PROFILE, QUICK_PROFILE
from tunegrid.record import AuditFinding
from tunegrid.results.status import (
    Extent,
    compared_together,
    contradicts,
    excuses,
    too_short,
    why_not_to_train,
    with_status,
)
from tunegrid.tests.records import MEASURED, complete

GOOD = AuditFinding(name="base_frozen", passed=True, detail="")
BROKEN = AuditFinding(name="base_frozen", passed=False, detail="3 tensors changed")
UNLEARNED = AuditFinding(name="learned_something", passed=False, detail="accuracy 51.2, without a model 50.9")
FAILED = "audit base_frozen: 3 tensors changed"
CHANCE = "audit learned_something: accuracy 51.2, without a model 50.9"
BELOW = "f1 1.0 is below 2.0"
LOW = {"scores": {"f1": 1.0}, "bounds": {"f1": 2.0}}
UNEXPECTED = ["the ledger holds 5 bytes, the device 6"]


@pytest.mark.parametrize(
    ("changes", "status", "sentences"),
    [
        ({}, "passed", []),
        ({"audits": [GOOD]}, "passed", []),
        ({"audits": [GOOD, BROKEN]}, "audit", [FAILED]),
        ({"audits": [UNLEARNED]}, "audit", [CHANCE]),
        ({"audits": [UNLEARNED], "updates": 99}, "passed", []),
        ({"audits": [BROKEN, UNLEARNED], "updates": 99}, "audit", [FAILED]),
        (LOW, "missed", [BELOW]),
        (LOW | {"evaluation": None}, "passed", []),  # a footprint scores nothing
        (LOW | {"audits": [BROKEN]}, "missed", [FAILED, BELOW]),
        (LOW | {"audits": [BROKEN], "unexpected": UNEXPECTED}, "missed", [FAILED, *UNEXPECTED, BELOW]),
        (LOW | {"audits": [BROKEN, UNLEARNED], "updates": 99, "stopped": "loss is nan"}, "stopped", ["loss is nan"]),
    ],
    ids=str,
)
def test_a_cell_passes_where_nothing_is_wrong(changes, status, sentences):
    changes = dict(changes)
    run, unexpected = extent(changes.pop("updates", 300)), changes.pop("unexpected", [])
    training = MEASURED["training"] | {"stopped": changes.pop("stopped", None)}
    audits = [vars(finding) for finding in changes.pop("audits", [])]
    ended = with_status(complete(training=training, audits=audits, **changes), run, unexpected)
    assert (ended.status, ended.missed) == (status, [f"{sentence} (bert_sa_lora, quick, seed 0)" for sentence in sentences])
    short = run.updates == 99 and status != "stopped"
    assert ended.excused.keys() == ({"learned_something"} if short else set())


# Runs that the command line shortens: the recipe plans 300 updates, three passes over the rows


def extent(updates, test_rows=None):
    return Extent(updates=updates, planned=300, one_pass=100, test_rows=test_rows)


@pytest.mark.parametrize(
    ("audit", "run", "reason"),
    [
        ("learned_something", extent(99), "a run of 99 of 300 planned updates may be too short to meet it"),
        ("learned_something", extent(100), None),  # it has seen each row once
        ("learned_something", extent(300, test_rows=8), "8 test rows may be too few to meet it"),
        ("learned_something", extent(300, test_rows=100), None),
        ("generation_not_truncated", extent(99), "a run of 99 of 300 planned updates may be too short to meet it"),
        ("generation_not_truncated", extent(100, test_rows=8), None),
        ("weights_moved", extent(9), "a run of 9 of 300 planned updates may be too short to meet it"),
        ("weights_moved", extent(10), None),
        ("weights_moved", Extent(updates=3, planned=3, one_pass=3), None),  # as long as the recipe says
        ("base_frozen", extent(1, test_rows=1), None),
    ],
)
def test_an_audit_is_excused_where_the_run_is_shorter_than_it_needs(audit, run, reason):
    failed = AuditFinding(name=audit, passed=False, detail="")
    assert excuses([failed], run) == ({audit: reason} if reason else {})
    assert excuses([AuditFinding(name=audit, passed=True, detail="")], run) == {}


def test_what_a_short_run_failed_is_named_with_its_cell():
    record = complete(
        audits=[vars(UNLEARNED)], excused={"learned_something": "a run of 3 of 40 planned updates may be too short"}
    )
    assert too_short(record) == [f"{CHANCE}; a run of 3 of 40 planned updates may be too short (bert_sa_lora, quick, seed 0)"]
    assert too_short(complete()) == []


def scored(cell, score, **changes):
    return complete(cell, **{"scores": {"accuracy": score}, "audits": []} | changes)


def test_copied_results_turn_both_cells_to_audit_and_in_other_company_cells_are_told_anew():
    records = [scored("t5_sa_lora", 99.0), scored("t5_sa_sft", 99.0), scored("bert_sa_lora", 90.0)]
    together = compared_together(records)
    assert [record.status for record in together] == ["audit", "audit", "passed"]
    assert [contradicts(record) for record in together] == [True, True, False]
    assert together[0].missed == ["audit distinct_results: the results are those of t5_sa_sft (t5_sa_lora, quick, seed 0)"]
    assert [(f.name, f.passed) for f in together[0].audits] == [("distinct_results", False), ("same_rows_in_triple", True)]
    assert [f.passed for f in together[2].audits] == [True, True]
    assert [record.status for record in records] == ["passed"] * 3  # what comes in stays as it is
    together = compared_together([scored("t5_sa_lora", 99.0), scored("t5_sa_sft", 99.0)])
    assert compared_together(together) == together
    assert [(r.status, r.missed) for r in compared_together(together[:1])] == [("passed", [])]


def test_other_profiles_are_not_compared_and_a_fault_is_added_to_what_a_cell_missed_already():
    records = [
        scored("t5_sa_lora", 99.0),
        scored("t5_sa_sft", 99.0, profile="full"),
        scored("t5_sa_qlora", 99.0, status="stopped", missed=["loss is nan"]),
    ]
    together = compared_together(records)
    assert [record.status for record in together] == ["passed", "passed", "stopped"]
    assert together[2].audits == []
    other = MEASURED["data"] | {"fingerprint": "f" * 16}
    records = [scored("t5_sa_lora", 9.0, status="missed", missed=[BELOW]), scored("t5_sa_sft", 8.0, data=other)]
    together = compared_together(records)
    assert [record.status for record in together] == ["missed", "missed"]
    assert together[0].missed == [BELOW, "audit same_rows_in_triple: other rows than t5_sa_sft (t5_sa_lora, quick, seed 0)"]


def test_a_full_cell_that_is_wrong_from_the_start_must_not_train_and_one_that_takes_no_hours_does():
    cells = [STUDY.cell("bert_sa_lora", profile) for profile in (FULL_PROFILE, QUICK_PROFILE, FOOTPRINT_PROFILE)]
    assert [why_not_to_train(cell, [GOOD, BROKEN]) for cell in cells] == [f"not trained, {FAILED}", None, None]
    assert why_not_to_train(cells[0], [GOOD]) is None
