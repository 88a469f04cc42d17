"""Real bugs are put back into the installed libraries, and must be named; harmless changes must not be.

A cell trains and is scored as users run it, over the changed library. Then four may object: its bounds, its audits, and the
gate against the committed baseline, by quality or memory and by numerics.
"""

from pathlib import Path

import pytest

from benchmarks.library_bugs import BUGS, HARMLESS
from fixtures.session import session_of
from tunegrid.data.splits import load_splits
from tunegrid.errors import InputError
from tunegrid.results.answer import FAILED_BY, failing
from tunegrid.results.gate import Run, gate, read_run
from tunegrid.results.judgements import Verdict
from tunegrid.results.passing import below_bounds

pytestmark = pytest.mark.library_bugs

BASELINE = Path(__file__).parents[1] / "reports" / "baselines" / "quick-cpu.json"


@pytest.fixture
def cell(request, change, cell_id, monkeypatch, tmp_path):
    """The cell over the changed library: everything else is set up after it, and no rows are shared with cells over another."""
    session = session_of(request.config)
    monkeypatch.setattr("tunegrid.codecs.features._shared", {})
    change.patch(monkeypatch)
    return session.grid.cell(cell_id, change.setting(session.profile("quick"), tmp_path))


@pytest.fixture
def objections(audit_before, trainer, validate, splits, score, progress, record, bounds, benchmark, change):
    """What objects to the run, and in which words."""
    findings = audit_before()
    training = benchmark.pedantic(trainer.run, args=(progress, validate), rounds=1)
    row = record(findings, training, None if training.stopped else score(splits.test))
    named = objecting(row, bounds)
    benchmark.group = "library bugs"
    benchmark.extra_info.update(change=change.id, of=row.cell, named=named)
    return named


def objecting(record, bounds):
    """Sentences of each of the four that objects: bound, audit, gate, numerics."""
    judged, refusal = judgements(record)
    sentences = {
        "bound": below_bounds(record.scores, bounds),
        "audit": [f"{finding.name}: {finding.detail}" for finding in record.audits if not finding.passed],
        "gate": [f"{j.quantity}: {j.detail}" for j in failing(judged, FAILED_BY)],
        "numerics": [f"{j.quantity}: {j.detail}" for j in judged if j.verdict is Verdict.CHANGED],
    }
    sentences["gate"] += [refusal] if refusal else []
    return {name: "; ".join(some) for name, some in sentences.items() if some}


def judgements(record):
    """The gate's verdicts on a record, against the first seed of the committed baseline; or the sentence that refuses it."""
    run = Run.of([record])
    if not run.records:
        return [], f"the run did not finish: {record.status}"
    try:
        return gate(read_run(BASELINE).only(run.records), run), ""
    except InputError as error:
        return [], str(error)


def cases(changes):
    return [pytest.param(change, cell, id=f"{change.id}-{cell}") for change in changes for cell in change.cells]


@pytest.mark.parametrize(("change", "cell_id"), cases(bug for bug in BUGS if bug.refusal))
def test_a_bug_of_rows_is_refused_before_training(change, cell):
    with pytest.raises(InputError, match=change.refusal):
        load_splits(cell.task, cell.profile)


@pytest.mark.parametrize(("change", "cell_id"), cases(bug for bug in BUGS if not bug.refusal))
def test_a_bug_is_named(change, objections):
    assert objections, f"{change.id}, {change.library}: {change.what}: not named by bound, audit, gate or numerics"


@pytest.mark.parametrize(("change", "cell_id"), cases(HARMLESS))
def test_a_harmless_change_is_not_named(objections):
    assert objections == {}
