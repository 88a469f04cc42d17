"""What decides a cell's status: by itself, and beside the other cells of its run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest

from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import CONFIRMING, FOOTPRINT_PROFILE, FULL_PROFILE, QUICK_PROFILE
from tunegrid.record import AuditFinding
from tunegrid.runs.status import (
    Extent,
    add_status,
    audit_sentences,
    cell_status,
    compare_cells,
    contradicts,
    cross_cell_audits,
    known_faults,
    reason_not_to_train,
    too_short,
    unconfirmed_misses,
    weigh_misses,
)
from tunegrid.tests.records import MEASURED, complete
from tunegrid.tests.records import scored as scored_on_many_rows

GOOD = {"name": "base_frozen", "passed": True, "detail": ""}
BROKEN = {"name": "base_frozen", "passed": False, "detail": "3 tensors changed"}
UNLEARNED = {
    "name": "learned_something",
    "passed": False,
    "detail": "accuracy 51.2, without a model 50.9",
}
FAILED = "audit base_frozen: 3 tensors changed"
CHANCE = "audit learned_something: accuracy 51.2, without a model 50.9"
BELOW = "f1 1.0 is below 2.0"
SHORT = "a run of 99 of 300 planned updates may be too short to pass it"
UNEXPECTED = "the ledger holds 5 bytes, the device 6"
OTHER_DATA = {"data": MEASURED["data"] | {"fingerprint": "f" * 16}}


def extent(updates, test_rows=None):
    """Of a recipe that plans 300 updates, three passes over the rows."""
    return Extent(updates=updates, planned=300, one_pass=100, test_rows=test_rows)


class Ended(NamedTuple):
    """A cell that ended, and what it comes to."""

    status: str
    sentences: Sequence[str] = ()
    audits: Sequence[dict] = ()
    updates: int = 300
    excuse: str | None = None  # why failing `learned_something` does not count
    score: float = 2.0  # its bound is 2
    is_scored: bool = True
    unexpected: Sequence[str] = ()
    stopped: str | None = None


@pytest.mark.parametrize(
    "cell",
    [
        Ended("passed"),
        Ended("audit", [FAILED], audits=[GOOD, BROKEN]),
        Ended("audit", [CHANCE], audits=[UNLEARNED]),
        Ended("passed", audits=[UNLEARNED], updates=99, excuse=SHORT),
        Ended("audit", [FAILED], audits=[BROKEN, UNLEARNED], updates=99, excuse=SHORT),
        Ended("missed", [BELOW], score=1.0),
        Ended("passed", score=1.0, is_scored=False),  # a footprint scores nothing
        Ended("missed", [UNEXPECTED], unexpected=[UNEXPECTED]),
        Ended(
            "missed",
            [FAILED, UNEXPECTED, BELOW],
            audits=[BROKEN],
            score=1.0,
            unexpected=[UNEXPECTED],
        ),
        Ended(
            "stopped",
            ["loss is nan"],
            audits=[BROKEN, UNLEARNED],
            score=1.0,
            updates=99,
            stopped="loss is nan",
        ),
    ],
    ids=str,
)
def test_a_cell_passes_if_nothing_is_wrong(cell):
    record = complete(
        training=MEASURED["training"] | {"stopped": cell.stopped},
        evaluation=MEASURED["evaluation"] if cell.is_scored else None,
        audits=list(cell.audits),
        scores={"f1": cell.score},
        bounds={"f1": 2.0},
    )
    ended = add_status(record, extent(cell.updates), list(cell.unexpected))
    assert ended.status == cell.status
    where = "(bert_sa_lora, quick, seed 0)"
    assert ended.missed == [f"{sentence} {where}" for sentence in cell.sentences]
    excused = {"learned_something": cell.excuse} if cell.excuse else {}
    assert ended.excused == excused
    assert too_short(ended) == [f"{CHANCE}; {excuse} {where}" for excuse in excused.values()]


@pytest.mark.parametrize(
    ("cell", "profile", "advice"),
    [
        (
            "bert_faq_lora",
            "quick",
            '; it may need more than 200 updates (quick={"max_steps": 400} in its task or recipe), '
            "another learning rate, or correct labels",
        ),
        (
            "bert_faq_lora",
            "full",
            "; it may need more epochs (num_train_epochs=2 in its recipe), "
            "another learning rate, or correct labels",
        ),
        ("bert_sa_lora", "quick", ""),  # of the study
    ],
)
def test_a_users_cell_that_learned_nothing_is_told_how_to_train_longer(cell, profile, advice):
    twin = UNLEARNED | {"name": "predictions_not_collapsed"}
    audits = [BROKEN, UNLEARNED, twin]
    training = MEASURED["training"] | {"updates": 200, "losses": [0.7] * 200}
    record = complete(
        cell=cell, task=cell.split("_")[1], profile=profile, audits=audits, training=training
    )
    repeated = CHANCE.replace(UNLEARNED["name"], twin["name"])
    assert audit_sentences(record) == [FAILED, CHANCE + advice, repeated]  # advice once


@pytest.mark.parametrize(
    ("audit", "run", "reason"),
    [
        ("learned_something", extent(99), SHORT),
        ("learned_something", extent(100), ""),  # it has seen each row once
        ("learned_something", extent(300, test_rows=8), "8 test rows may be too few to pass it"),
        ("learned_something", extent(300, test_rows=100), ""),
        ("generation_not_truncated", extent(99), SHORT),
        ("generation_not_truncated", extent(100, test_rows=8), ""),
        (
            "weights_moved",
            extent(9),
            "a run of 9 of 300 planned updates may be too short to pass it",
        ),
        ("weights_moved", extent(10), ""),
        # As long as the recipe says
        ("weights_moved", Extent(updates=3, planned=3, one_pass=3), ""),
        ("base_frozen", extent(1, test_rows=1), ""),
    ],
)
def test_an_audit_is_excused_if_the_run_is_shorter_than_it_needs(audit, run, reason):
    assert run.excuse(audit) == reason


SURVIVES = {
    "name": "gradients_survive_evaluation",
    "passed": False,
    "detail": "gradients differ by 1.0e+00 of their norm",
}
LOST = "audit gradients_survive_evaluation: gradients differ by 1.0e+00 of their norm"
ISSUE = "pytorch#158232, torch<2.11"


@pytest.mark.parametrize(
    ("cell", "torch", "audits", "status", "missed"),
    [
        ("gpt2_sa_lora", "2.6.0", [SURVIVES], "known", []),
        ("gpt2_sa_lora", "2.10.1+cpu", [GOOD, SURVIVES], "known", []),
        ("gpt2_sa_lora", "2.6.0", [SURVIVES, UNLEARNED], "known", []),  # excused, as it is short
        # Another cell, another version, another audit beside it
        ("gpt2_qa_lora", "2.6.0", [SURVIVES], "audit", [LOST]),
        ("gpt2_sa_lora", "2.11.0", [SURVIVES], "audit", [LOST]),
        ("gpt2_sa_lora", "2.11.0+cpu", [SURVIVES], "audit", [LOST]),
        ("gpt2_sa_lora", None, [SURVIVES], "audit", [LOST]),
        ("gpt2_sa_lora", "2.6.0", [SURVIVES, BROKEN], "audit", [FAILED]),
        ("gpt2_sa_lora", "2.6.0", [BROKEN], "audit", [FAILED]),
        ("gpt2_sa_lora", "2.6.0", [SURVIVES | {"passed": True}], "passed", []),
    ],
)
def test_a_known_fault_of_a_library_does_not_fail_its_cell_in_its_versions(
    cell, torch, audits, status, missed
):
    record = complete(cell, audits=audits, versions={"torch": torch}, bounds={})
    ended = add_status(record, extent(99))
    where = f"({cell}, quick, seed 0)"
    assert ended.status == status
    assert ended.missed == [f"{sentence} {where}" for sentence in missed]
    in_range = cell == "gpt2_sa_lora" and torch in ("2.6.0", "2.10.1+cpu")
    is_known = in_range and SURVIVES in audits
    assert ended.known == ({SURVIVES["name"]: ISSUE} if is_known else {})
    assert known_faults(ended) == ([f"{LOST}; known: {ISSUE} {where}"] if is_known else [])


def test_a_known_fault_is_no_pass_and_stays_in_other_company():
    record = complete("gpt2_sa_lora", audits=[SURVIVES], versions={"torch": "2.6.0"}, bounds={})
    known = add_status(record, extent(300))
    assert not known.unharmed
    assert cell_status([replace(known, status="passed"), known]) == "known"
    assert cell_status([known, replace(known, status="unconfirmed")]) == "known"
    assert cell_status([known, replace(known, status="audit")]) == "audit"
    [compared] = compare_cells([known])
    assert (compared.status, compared.missed) == ("known", [])
    stopped = replace(record.training, stopped="loss is nan")
    assert add_status(replace(record, training=stopped), extent(300)).known == {}


def test_a_full_cell_that_is_wrong_from_the_start_must_not_train_and_one_that_takes_no_hours_does():
    findings = [AuditFinding(**GOOD), AuditFinding(**BROKEN)]
    full = STUDY.cell("bert_sa_lora", FULL_PROFILE)
    assert reason_not_to_train(full, findings) == f"not trained, {FAILED}"
    assert reason_not_to_train(full, findings[:1]) is None
    for profile in (QUICK_PROFILE, FOOTPRINT_PROFILE):
        assert reason_not_to_train(STUDY.cell("bert_sa_lora", profile), findings) is None


# Cells together


def scored(cell, score, **changes):
    return complete(cell, **{"scores": {"accuracy": score}, "audits": []} | changes)


def test_copied_results_turn_both_cells_to_audit_and_in_other_company_cells_are_told_anew():
    records = [scored("t5_sa_lora", 99.0), scored("t5_sa_sft", 99.0), scored("bert_sa_lora", 90.0)]
    together = compare_cells(records)
    assert [record.status for record in together] == ["audit", "audit", "passed"]
    assert [contradicts(record) for record in together] == [True, True, False]
    copied = together[0]
    assert copied.missed == [
        "audit distinct_results: the results equal those of t5_sa_sft (t5_sa_lora, quick, seed 0)"
    ]
    passed = {finding.name: finding.passed for finding in copied.audits}
    assert passed == {"distinct_results": False, "same_rows_in_triple": True}
    assert [record.status for record in records] == ["passed"] * 3  # what comes in stays as it is
    pair = compare_cells(together[:2])
    assert compare_cells(pair) == pair
    [alone] = compare_cells(pair[:1])
    assert alone.status == "passed"
    assert alone.missed == []


def test_other_profiles_are_not_compared_and_a_fault_is_added_to_what_a_cell_missed_already():
    stopped = scored("t5_sa_qlora", 99.0, status="stopped", missed=["loss is nan"])
    together = compare_cells(
        [scored("t5_sa_lora", 99.0), scored("t5_sa_sft", 99.0, profile="full"), stopped]
    )
    assert [record.status for record in together] == ["passed", "passed", "stopped"]
    assert together[2] == stopped
    missed = scored("t5_sa_lora", 9.0, status="missed", missed=[BELOW])
    together = compare_cells([missed, scored("t5_sa_sft", 8.0, **OTHER_DATA)])
    assert [record.status for record in together] == ["missed", "missed"]
    assert together[0].missed == [
        BELOW,
        "audit same_rows_in_triple: rows differ from t5_sa_sft (t5_sa_lora, quick, seed 0)",
    ]


def failed(*records):
    """The details of the failed cross-cell audits of each cell."""
    details = {}
    for name, findings in cross_cell_audits(records).items():
        details[name] = [finding.detail for finding in findings if not finding.passed]
    return details


def test_results_are_compared_over_all_cells():
    records = [
        scored("t5_sa_lora", 90.0),
        scored("t5_sa_qlora", 91.0),
        scored("t5_qa_lora", 90.0),
        scored("t5_sa_sft", 90.0),
    ]
    assert failed(*records) == {
        "t5_sa_lora": ["the results equal those of t5_sa_sft"],
        "t5_sa_qlora": [],
        "t5_qa_lora": ["the results equal those of t5_sa_sft"],
        "t5_sa_sft": ["the results equal those of t5_qa_lora"],
    }


def test_rows_are_compared_within_a_triple():
    records = [
        scored("t5_sa_lora", 1.0),
        scored("t5_sa_sft", 2.0, **OTHER_DATA),
        scored("bert_sa_lora", 3.0, **OTHER_DATA),
    ]
    assert failed(*records) == {
        "t5_sa_lora": ["rows differ from t5_sa_sft"],
        "t5_sa_sft": ["rows differ from t5_sa_lora"],
        "bert_sa_lora": [],
    }


TEST_ROWS = MEASURED["data"] | {"rows": MEASURED["data"]["rows"] | {"test": 300}}


class Twin(NamedTuple):
    """The scores of two cells, which are equal, and the facts by which copies are known."""

    copied: bool
    score: float = 90.0  # 30 rows are wrong
    evaluation_losses: Sequence[float | None] = (None, None)  # a text has none
    same_predictions: bool = True
    learned: bool = True


@pytest.mark.parametrize(
    "twin",
    [
        Twin(copied=True),
        Twin(copied=False, same_predictions=False),
        Twin(copied=False, score=98.0),  # healthy cells may be wrong on the same few rows, 6 of 300
        Twin(copied=False, score=50.0, learned=False),  # as may those that learned nothing
        Twin(copied=False, evaluation_losses=(0.2, 0.3)),  # alike methods may agree on every label
        Twin(copied=True, score=100.0, evaluation_losses=(0.2, 0.2)),
    ],
    ids=str,
)
def test_copied_predictions_are_told_from_those_that_are_alike(twin):
    audits = [{"name": "learned_something", "passed": twin.learned, "detail": ""}]
    records = []
    for number, cell in enumerate(("t5_sa_lora", "t5_sa_sft")):
        predictions = 0 if twin.same_predictions else number
        record = scored(
            cell,
            twin.score,
            data=TEST_ROWS,
            training=MEASURED["training"] | {"losses": [0.5 + number]},
            evaluation=MEASURED["evaluation"] | {"loss": twin.evaluation_losses[number]},
            examples={"file": f"{predictions:016}.parquet", "rows_hash": "b" * 16},
            audits=audits,
        )
        records.append(record)
    assert [bool(details) for details in failed(*records).values()] == [twin.copied] * 2


def twice(first, second, seed=43):
    """A cell whose bound is 50, and its second training run; below 0 an audit fails, too."""
    whole = Extent(updates=2, planned=2, one_pass=1)
    trained = scored_on_many_rows("bert_sa_lora", first, seed)
    again = scored_on_many_rows("bert_sa_lora", second, seed + CONFIRMING, confirms=seed)
    return [add_status(trained, whole), add_status(again, whole)]


@pytest.mark.parametrize(
    ("scores", "statuses", "sentences"),
    [
        (
            (49.0, 99.0),
            ["unconfirmed", "passed"],
            [
                "bert_sa_lora missed a bound at seed 43 (accuracy 49.0 is below 50.0), "
                "reached at 10043: not confirmed"
            ],
        ),
        (
            (99.0, 49.0),
            ["passed", "unconfirmed"],
            [
                "bert_sa_lora missed a bound at seed 10043 (accuracy 49.0 is below 50.0), "
                "reached at 43: not confirmed"
            ],
        ),
        ((49.0, 49.0), ["missed", "missed"], []),
        ((-49.0, 99.0), ["missed", "passed"], []),  # an audit is no noise
        ((49.0, -99.0), ["missed", "audit"], []),
    ],
)
def test_a_miss_counts_unless_the_other_training_passed(scores, statuses, sentences):
    records = weigh_misses(twice(*scores))
    assert [record.status for record in records] == statuses
    assert weigh_misses(records) == records  # as a merge weighs them again
    assert list(unconfirmed_misses(records)) == sentences


def test_misses_that_no_second_training_confirmed_are_counted_over_older_runs():
    older = weigh_misses(twice(49.0, 99.0, seed=44)) + weigh_misses(twice(99.0, 99.0, seed=45))
    [sentence] = unconfirmed_misses(weigh_misses(twice(49.0, 99.0)), older)
    assert sentence.endswith("not confirmed; 2 of 3 seeds")
