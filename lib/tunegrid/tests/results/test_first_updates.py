"""Cells that made only their first updates: what their records may say, and what every reader makes of them."""

from dataclasses import replace

import pytest

from tunegrid.commands import export
from tunegrid.commands.merge import check_baseline
from tunegrid.errors import InputError
from tunegrid.page.render import html
from tunegrid.page.view import page_of, read_page_run
from tunegrid.record import from_json, to_json
from tunegrid.results import files
from tunegrid.results.compare import entries_of
from tunegrid.results.gate import Run, gate
from tunegrid.results.judgements import Verdict
from tunegrid.results.noise import Noise
from tunegrid.results.numerics import compared
from tunegrid.results.status import Extent, with_status
from tunegrid.results.thresholds import load_tolerances
from tunegrid.results.verdict import FAILED_BY, verdict_of
from tunegrid.tests.records import MEASURED, altered, begun, complete, run_file, seeds_as

LOSSES = [0.7, 0.5, 0.4, 0.3]


def whole(cell="bert_sa_lora", losses=LOSSES, **changes):
    made = complete(cell, **changes)
    return replace(made, training=replace(made.training, losses=list(losses), updates=len(losses)))


def test_a_record_of_first_updates_is_sound_no_bound_counts_and_an_audit_does():
    assert from_json(to_json(begun())).first_updates == 2
    extent = Extent(updates=2, planned=40, one_pass=40)
    sound = with_status(begun(status="unfinished"), extent)
    assert (sound.status, sound.missed) == ("begun", [])
    failed = [replace(sound.audits[-1], name="base_frozen", passed=False, detail="2 frozen ones changed")]
    assert with_status(replace(begun(), audits=failed), extent).missed == [
        "audit base_frozen: 2 frozen ones changed (bert_sa_lora, quick, seed 0)"
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scores": {"accuracy": 90.0}}, "scores is set, but after the first updates nothing is scored"),
        ({"bounds": {"accuracy": 90.0}}, "bounds is set, but after the first updates nothing is scored"),
        ({"status": "missed", "missed": ["why"], "evaluation": MEASURED["evaluation"]}, "first_updates is 2, but the status"),
        ({"first_updates": None}, "first_updates is null, but the status is 'begun'"),
        ({"first_updates": 3}, "first_updates is 3, but training.updates is 2"),
        ({"training": None}, "training is null, but the status is 'begun'"),
    ],
)
def test_a_record_of_first_updates_that_cannot_be_true_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        from_json(to_json(begun()) | change)


@pytest.mark.parametrize(
    ("losses", "verdict", "words"),
    [
        (LOSSES[:2], Verdict.EQUAL, "all losses of the first 2 updates are equal"),
        ([0.7, 0.5 + 1e-6], Verdict.ROUNDING, "losses of the first 2 updates differ by at most 1.0e-06"),
        ([0.7, 0.6], Verdict.CHANGED, "backward or optimizer: losses part by 1.0e-01 at update 2, not at update 1"),
    ],
)
@pytest.mark.parametrize("begun_first", [False, True])
def test_first_updates_are_held_to_as_many_of_a_whole_run(losses, verdict, words, begun_first):
    pair = (begun(losses=losses), whole()) if begun_first else (whole(), begun(losses=losses))
    judgement, _ = compared(*pair, load_tolerances())
    assert (judgement.verdict, judgement.detail) == (verdict, words)


def test_movement_is_compared_from_the_third_update_on():
    step = replace(whole().training.first_step, moved={"head": 5.0})
    early, late = begun(), begun(losses=LOSSES[:3])
    early, late = (replace(one, training=replace(one.training, first_step=step)) for one in (early, late))
    assert compared(whole(), early, load_tolerances())[0].verdict is Verdict.EQUAL
    assert compared(whole(), late, load_tolerances())[0].stage == "optimizer"


def answered(old, new, kinds=FAILED_BY):
    judged = gate(Run.of(old), Run.of(new))
    return judged, verdict_of(new, judged, kinds, baseline="before.json", before=old)


def test_begun_cells_are_judged_by_numerics_and_by_bytes_of_tensors_alone():
    judged, _ = answered([whole()], [begun()])
    assert {j.quantity for j in judged} == {
        "numerics",
        *("weights_bytes", "gradients_bytes", "optimizer_bytes", "checkpoint_bytes"),
    }
    assert [j.first_updates for j in judged if j.quantity == "numerics"] == [2]
    old = [whole("bert_sa_lora"), whole("bert_sa_sft"), whole("gpt2_sa_sft")]
    new = [begun("bert_sa_lora"), begun("bert_sa_sft"), begun("gpt2_sa_sft", [0.7, 0.5 + 1e-6])]
    _, answer = answered(old, new)
    assert answer.sentences[0] == "3 cells: 1 rounding, 2 equal by their first 2 updates."
    assert answer.exit_code == 0


def test_a_changed_cell_without_scores_cannot_be_told_and_fails_if_numerics_count():
    old, other = [whole("bert_sa_lora"), whole("bert_sa_sft")], begun("bert_sa_sft", [0.7, 0.6])
    _, verdict = answered(old, [begun("bert_sa_lora"), other])
    assert (verdict.exit_code, verdict.answer) == (6, "Cannot tell whether the run is worse than before.json.")
    assert verdict.cause == "1 changed in first updates, without scores (bert_sa_sft)"
    assert verdict.next_step == "`pytest -m quick --cells bert_sa_sft` trains it to the end"
    assert any("scores have not been judged" in sentence for sentence in verdict.sentences)
    _, verdict = answered(old, [other], ("numerics",))
    assert (verdict.exit_code, verdict.findings[0].stage) == (1, "backward or optimizer")
    _, verdict = answered([whole()], [begun(seeds=seeds_as(7))])
    assert (verdict.exit_code, verdict.cause) == (6, "1 not comparable in first updates, without scores (bert_sa_lora)")
    judged, verdict = answered([begun()], [whole()])
    assert [(j.quantity, str(j.verdict)) for j in judged if j.kind == "quality"] == [("accuracy", "cannot tell")]
    assert verdict.exit_code == 6
    assert verdict_of([begun()]).sentences == (
        "The one cell came to its first 2 updates, without scores, and passed every audit.",
    )


@pytest.mark.parametrize(
    ("points", "weights", "code"),
    [(91.04, 4000, 0), (91.04, 6000, 1), (40.0, 4000, 6)],
    ids=["all equal", "more bytes of weights", "other scores without noise that was calibrated"],
)
def test_a_cell_that_trained_on_is_judged_as_any_cell(points, weights, code):
    old = [whole("bert_sa_lora"), whole("bert_sa_sft")]
    trained = whole("bert_sa_sft", [0.7, 0.6, 0.4, 0.3], scores={"accuracy": points, "f1_macro": points}, bounds={})
    trained = altered(trained, "memory.ledger.weights_bytes", weights)
    judged, verdict = answered(old, [begun("bert_sa_lora"), trained])
    assert verdict.exit_code == code
    assert [j.first_updates for j in judged if j.quantity == "numerics"] == [2, None]


@pytest.fixture
def file(tmp_path):
    return run_file(tmp_path / "run.json", [begun("bert_sa_lora"), begun("bert_sa_sft", losses=[0.7, 0.55])])


def test_page_and_export_take_it_and_baselines_and_comparisons_do_not(file, tmp_path, capsys):
    older = replace(read_page_run(file), records=[whole("bert_sa_lora"), whole("bert_sa_sft", losses=[0.7, 0.55, 0.5])])
    page = page_of(read_page_run(file), [older])
    assert page.answer.sentences[0] == "2 cells: 2 equal by their first 2 updates."
    assert not page.changes  # nothing went wrong
    assert "begun" in html(page)
    with pytest.raises(InputError, match="did not pass: begun"):
        check_baseline({}, [begun("bert_sa_lora", profile="full")])
    with pytest.raises(InputError, match="no cell finished with a score, so there is nothing to compare"):
        entries_of({file: [begun()]}, Noise())
    assert export.main([str(file), "-o", str(tmp_path / "table.csv")]) == 0
    assert "begun" in (tmp_path / "table.csv").read_text()


def test_a_journal_gives_what_began_soundly(tmp_path):
    kept = files.Journal(tmp_path)
    kept.append("sound", {"extra_info": to_json(begun())})
    kept.append("failed", {"extra_info": to_json(begun(missed=["an audit failed"]))})
    assert list(files.passed(tmp_path)) == ["sound"]
