"""Real bugs are put back into the installed libraries, and must be named; harmless changes must not be.

A cell trains and is scored as users run it, over the changed library. Then four may object: its bounds, its audits, and the
gate against the committed baseline, by quality or memory and by numerics. A bug in a module must be named with it, by the first
updates of the cell with the bug and without.
"""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.library_bugs import BUGS, HARMLESS, LATER, nothing
from benchmarks.library_invariants import INVARIANTS
from benchmarks.library_patches.planting import Planting
from benchmarks.test_equivalent import ROWS, bench, unequal  # noqa: F401 # a fixture
from fixtures.session import session_of
from tunegrid.data.splits import load_splits
from tunegrid.errors import InputError
from tunegrid.grid.cells import study
from tunegrid.record.wrong import below_bounds
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.judgements import Verdict
from tunegrid.results.modules import Moved, modules_of
from tunegrid.results.numerics import FINE, Pair, changes, load_tolerances, tolerance_of
from tunegrid.results.outcomes import FAILED_BY, failing
from tunegrid.run.audits import Evidence, trained
from tunegrid.run.audits.ranks import ranks_end_alike
from tunegrid.run.metrics import Metrics
from tunegrid.run.probe import before_training
from tunegrid.tests.ranked import on_ranks
from tunegrid.tests.small import silent, train_rows, trainer_for, trainer_of

pytestmark = pytest.mark.library_bugs

ALL = (*BUGS, *LATER)
ROWS_READ = 256  # of training, where only first updates are taken
BASELINE = Path(__file__).parents[1] / "reports" / "baselines" / "quick-cpu.json"


@pytest.fixture
def plant(monkeypatch):
    return Planting(monkeypatch)


@pytest.fixture
def cell(request, change, cell_id, monkeypatch, plant, tmp_path):
    """The cell over the changed library: everything else is set up after it, and no rows are shared with cells over another."""
    monkeypatch.setattr("tunegrid.codecs.features._shared", {})
    if "without_its_bug" not in request.node.name:
        change.patch(plant)
    return change.grid().cell(cell_id, change.setting(session_of(request.config).profile("quick"), tmp_path))


@pytest.fixture
def objections(audit_before, trainer, course, validate, splits, score, progress, record, bounds, benchmark, change, plant):
    """What objects to the run, or to its first updates, and in which words."""
    findings = audit_before()
    training = benchmark.pedantic(course, args=(progress, validate), rounds=1)
    row = record(findings, training, None if training.stopped or trainer.paused else score(splits.test))
    named = objecting(row, bounds)
    benchmark.group = "library bugs"
    benchmark.extra_info.update(change=change.id, of=row.cell, named=named, acts=plant.acts)
    return named


def objecting(record, bounds):
    """Sentences of each of the four that objects: bound, audit, gate, numerics."""
    judged, refusal = judgements(record)
    sentences = {
        "bound": below_bounds(record.scores, bounds) if record.evaluation else [],
        "audit": [f"{finding.name}: {finding.detail}" for finding in record.audits if not finding.passed],
        "gate": [f"{j.quantity}: {j.detail}" for j in failing(judged, FAILED_BY)],
        "numerics": [f"{j.quantity}: {j.detail}" for j in judged if j.verdict is Verdict.CHANGED],
    }
    sentences["gate"] += [refusal] if refusal else []
    return {name: "; ".join(some) for name, some in sentences.items() if some}


def judgements(record):
    """The gate's verdicts on a record, against the first seed of the committed baseline; or the sentence that refuses it."""
    run, baseline = Run.of([record]), read_run(BASELINE)
    if not run.records:
        return [], f"the run did not finish: {record.status}"
    if record.profile != "quick" or record.cell not in baseline.records:
        return [], ""
    try:
        return gate(baseline.only(run.records), run), ""
    except InputError as error:
        return [], str(error)


def in_a_cell(bug):
    return not (bug.refusal or bug.breaks or bug.on_ranks)


def cases(changes):
    return [pytest.param(change, cell, id=f"{change.id}-{cell}") for change in changes for cell in change.cells]


@pytest.mark.parametrize(("change", "cell_id"), cases(bug for bug in BUGS if bug.refusal))
def test_a_bug_of_rows_is_refused_before_training(change, cell):
    with pytest.raises(InputError, match=change.refusal):
        load_splits(cell.task, cell.profile)


@pytest.mark.parametrize(("change", "cell_id"), cases(bug for bug in ALL if in_a_cell(bug)))
def test_a_bug_is_named(change, objections, plant):
    assert plant.acts, f"{change.id}, {change.library}: {change.what}: it never acted in this cell, so nothing is proven"
    assert objections, f"{change.id}, {change.library}: {change.what}: not named by bound, audit, gate or numerics"


@pytest.mark.parametrize(("change", "cell_id"), cases(bug for bug in ALL if bug.module and not bug.unseen))
def test_a_bug_names_its_module(change, cell_id, request, monkeypatch, tmp_path):
    monkeypatch.setattr("tunegrid.codecs.features._shared", {})
    profile = session_of(request.config).profile("quick")
    cell = change.grid().cell(cell_id, change.setting(profile, tmp_path))
    old, before = first_updates(cell)
    change.patch(plant := Planting(monkeypatch))
    new, after = first_updates(cell)
    assert plant.acts
    kind = f"nf4 {old.precision}" if cell.quantization else old.precision
    tolerance = tolerance_of(cell_id, kind, load_tolerances())
    sentence = next(
        changes(Pair(old=old, new=new, tolerance=tolerance, fine=kind == FINE, modules=lambda: (before, after))),
        "nothing changed",
    )
    print(f"{change.id}, in {change.module}: {sentence}")
    assert change.module in named_module(sentence, after), sentence


def first_updates(cell):
    """A cell's first three updates: the record's part, and the figures of modules."""
    kept = []
    short = replace(cell, recipe=replace(cell.recipe, max_steps=3))
    rows = load_splits(short.task, short.profile).train[:ROWS_READ]
    trainer = trainer_for(short, rows)
    trainer.start_from(before_training(trainer, Metrics(), [*rows[:1]], kept.append))
    return trainer.run(silent()), modules_of(*kept)


def named_module(sentence, modules):
    """The module that a sentence names first, and the one around it, each as library and class."""
    calls = [
        (Moved(calls, {}), index, one) for calls in modules.values() for index, one in calls.items() if one.words in sentence
    ]
    around, index, first = min(calls, key=lambda call: sentence.index(call[2].words), default=(None, 0, None))
    both = [first, *(around.calls[outer] for outer in islice(around.outside(index), 1))] if first else []
    return [f"{one.library}.{one.kind}" for one in both]


@pytest.mark.parametrize(("change", "cell_id"), cases(bug for bug in ALL if in_a_cell(bug) and bug.grid is not study))
def test_a_cell_that_is_not_the_studys_is_sound_without_its_bug(objections):
    assert objections == {}


@pytest.mark.parametrize("change", [bug for bug in ALL if bug.on_ranks], ids=lambda bug: bug.id)
def test_a_bug_of_ranks_is_named(change):
    for acts, findings in on_ranks(2, findings_on, change.patch):
        assert acts
        assert not findings["gradients_clipped"]
    for _, findings in on_ranks(2, findings_on, nothing):
        assert all(findings.values()), findings


def findings_on(ranks, patch):
    """How often a patch acted on a rank, and what audits of updates say of a few updates under FSDP."""
    from tunegrid.run.sharded import Sharded

    with pytest.MonkeyPatch.context() as monkeypatch:
        patch(plant := Planting(monkeypatch))
        cell_id, own = "gpt2_sum_sft", Sharded(ranks.rank, ranks.count)
        trainer = trainer_of(cell_id, train_rows(cell_id)[:24], ranks=own, max_steps=3)
        trainer.run(silent())
    evidence = Evidence(cell=trainer.cell, codec=trainer.codec, trainer=trainer)
    audits = (trained.gradients_clipped, trained.schedule_counts_updates, ranks_end_alike)
    return plant.acts, {audit.__name__: audit(evidence)[0] for audit in audits}


@pytest.mark.parametrize("invariant", INVARIANTS.values(), ids=INVARIANTS)
def test_an_invariant_holds(invariant):
    assert invariant(), f"the installed libraries break it: {invariant.__doc__}"


@pytest.mark.parametrize("change", [bug for bug in ALL if bug.breaks], ids=lambda bug: bug.id)
def test_a_bug_breaks_an_invariant(change, plant):
    change.patch(plant)
    held = INVARIANTS[change.breaks]()
    assert plant.acts, f"{change.id}, {change.library}: {change.what}: it never acted, so nothing is proven"
    assert not held, f"{change.id}, {change.library}: {change.what}: {change.breaks} holds all the same"


@pytest.mark.parametrize(("change", "cell_id"), cases(bug for bug in ALL if bug.seen_by))
def test_a_bug_breaks_a_row_of_equal_settings(change, bench, plant):  # noqa: F811
    [row] = [row for row in ROWS if row.id == change.seen_by]
    assert unequal(row, bench), f"{change.id}: {change.what}: {row.id} holds all the same"
    assert plant.acts


@pytest.mark.parametrize(("change", "cell_id"), cases(HARMLESS))
def test_a_harmless_change_is_not_named(change, objections, plant):
    assert plant.acts or change.patch is nothing
    assert objections == {}
