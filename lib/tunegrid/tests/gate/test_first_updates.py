"""Cells that made only their first updates: what their records may say, and what every reader makes
of them.
"""

from dataclasses import replace
from itertools import permutations

import pytest

from fixtures.results import Journal
from fixtures.session import passed_rows
from tunegrid.errors import InputError
from tunegrid.gate.gate import Run, gate
from tunegrid.gate.judgements import DEFAULT_KINDS, LEDGER, Verdict
from tunegrid.gate.noise import Noise
from tunegrid.gate.numerics import compare_pair
from tunegrid.gate.thresholds import load_tolerances
from tunegrid.page.render import html
from tunegrid.page.view import make_page, read_page_run
from tunegrid.record import from_json, to_json
from tunegrid.report import compare
from tunegrid.report.verdict import run_verdict
from tunegrid.runs.status import Extent, add_status
from tunegrid.tests.records import FINDING, MEASURED, altered, begun, complete, make_seeds, run_file

LOSSES = [0.7, 0.5, 0.4, 0.3]
LORA = "bert_sa_lora"
SFT = "bert_sa_sft"


def whole(cell=LORA, losses=LOSSES, **changes):
    training = MEASURED["training"] | {"losses": losses, "updates": len(losses)}
    return complete(cell, **{"training": training} | changes)


def test_a_record_of_first_updates_is_sound_no_bound_counts_and_an_audit_does():
    assert from_json(to_json(begun())).first_updates == 2
    extent = Extent(updates=2, planned=40, one_pass=40)
    sound = add_status(begun(status="unfinished"), extent)
    assert sound.status == "begun"
    assert sound.missed == []
    finding = FINDING | {"name": "base_frozen", "passed": False}
    failed = add_status(begun(audits=[finding]), extent)
    assert failed.status == "failed"
    assert failed.missed[0].split(":")[0] == "audit base_frozen"


@pytest.mark.parametrize(
    ("losses", "verdict", "words"),
    [
        (LOSSES[:2], Verdict.EQUAL, "all losses of the first 2 updates are equal"),
        (
            [0.7, 0.5 + 1e-6],
            Verdict.ROUNDING,
            "losses of the first 2 updates differ by at most 1.0e-06",
        ),
        (
            [0.7, 0.6],
            Verdict.CHANGED,
            "backward or optimizer: losses differ by 1.0e-01 at update 2, not at update 1",
        ),
    ],
)
def test_first_updates_are_held_to_as_many_of_a_whole_run(losses, verdict, words):
    for old, new in permutations([whole(), begun(losses=losses)]):
        judgement, _ = compare_pair(old, new, load_tolerances())
        assert judgement.verdict == verdict
        assert judgement.detail == words
        assert judgement.first_updates == 2


@pytest.mark.parametrize(
    ("updates", "verdict", "stage"),
    [(2, Verdict.EQUAL, ""), (3, Verdict.CHANGED, "optimizer")],
)
def test_movement_is_compared_from_the_third_update_on(updates, verdict, stage):
    new = altered(begun(losses=LOSSES[:updates]), "training.first_step.moved", {"head": 5.0})
    judgement, _ = compare_pair(whole(), new, load_tolerances())
    assert judgement.verdict == verdict
    assert judgement.stage == stage


def answered(old, new, kinds=DEFAULT_KINDS):
    judged = gate(Run.make(old), Run.make(new))
    return judged, run_verdict(new, judged, kinds, baseline="before.json", before=old)


@pytest.mark.parametrize(
    ("old", "new", "kinds", "code", "words"),
    [
        (
            [whole(), whole(SFT), whole("gpt2_sa_sft")],
            [begun(), begun(SFT), begun("gpt2_sa_sft", [0.7, 0.5 + 1e-6])],
            DEFAULT_KINDS,
            0,
            "3 cells: 1 rounding, 2 equal by their first 2 updates.",
        ),
        (
            [whole()],
            [begun(SFT, [0.7, 0.6]), begun()],
            DEFAULT_KINDS,
            0,
            "1 cell: 1 equal by its first 2 updates.",
        ),
        (
            [whole(), whole(SFT)],
            [begun(), begun(SFT, [0.7, 0.6])],
            DEFAULT_KINDS,
            6,
            f"as in {SFT}); scores were not judged.",
        ),
        (
            [whole(), whole(SFT)],
            [begun(), begun(SFT, [0.7, 0.6])],
            ("memory",),
            0,
            "numerics do not count here",
        ),
        (
            [whole()],
            [begun(seeds=make_seeds(7))],
            DEFAULT_KINDS,
            6,
            "numerics of the one cell could not be compared, and first updates have no scores",
        ),
        ([begun()], [whole()], DEFAULT_KINDS, 6, "the baseline holds only its first updates"),
    ],
)
def test_begun_cells_are_judged_by_numerics_and_what_they_come_to(old, new, kinds, code, words):
    judged, verdict = answered(old, new, kinds)
    assert verdict.exit_code == code, verdict.sentences
    assert words in " ".join(verdict.sentences)
    begun_cells = {record.cell for record in new if record.first_updates}
    assert {j.quantity for j in judged if j.cell in begun_cells} <= {"numerics", "cell", *LEDGER}


@pytest.mark.parametrize(
    ("points", "weights", "code"),
    [(91.04, 4000, 6), (91.04, 6000, 1), (40.0, 4000, 6)],
    ids=[
        "only losses are others",
        "more bytes of weights",
        "other scores without noise that was calibrated",
    ],
)
def test_a_cell_that_trained_on_is_judged_as_any_cell(points, weights, code):
    scores = {"accuracy": points, "f1_macro": points}
    changed = whole(SFT, [0.7, 0.6, 0.4, 0.3], scores=scores, bounds={})
    changed = altered(changed, "memory.ledger.weights_bytes", weights)
    judged, verdict = answered([whole(), whole(SFT)], [begun(), changed])
    assert verdict.exit_code == code
    assert [j.first_updates for j in judged if j.quantity == "numerics"] == [2, None]


def test_a_page_shows_it_a_comparison_does_not_and_a_journal_gives_what_began_soundly(tmp_path):
    run = read_page_run(run_file(tmp_path / "run.json", [begun(), begun(SFT, [0.7, 0.55])]))
    older = replace(run, records=[whole(), whole(SFT, [0.7, 0.55, 0.5])])
    page = make_page(run, [older])
    assert page.answer.sentences[0] == "2 cells: 2 equal by their first 2 updates."
    assert page.changes == []
    assert "begun" in html(page)
    with pytest.raises(InputError, match="so there is nothing to compare"):
        compare.compare_methods([begun()], Noise())
    journal = Journal(tmp_path)
    journal.append("sound", {"extra_info": to_json(begun())})
    journal.append("failed", {"extra_info": to_json(begun(missed=["an audit failed"]))})
    assert list(passed_rows(tmp_path)) == ["sound"]
