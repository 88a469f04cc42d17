"""All that is said of a run, as a person reads it: the gate's terminal, the step summary, JUnit's properties, annotations.

`TUNEGRID_SNAPSHOTS=write pytest lib/tunegrid/tests/results/test_summary.py` writes the files anew: read them before a commit.
"""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tunegrid import ROOT
from tunegrid.record import AuditFinding
from tunegrid.results.files import read_saved
from tunegrid.results.gate import Run, gate
from tunegrid.results.judgements import Judgement, Verdict
from tunegrid.results.report import Section, text
from tunegrid.results.status import located
from tunegrid.results.summary import annotate, cell_lines, failure_lines, gate_section, properties_of, summary
from tunegrid.results.verdict import FAILED_BY, verdict_of

BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
SNAPSHOTS = Path(__file__).parent / "snapshots"
COMMAND = "pytest -m quick -n 2 --grid own.py --device=cpu --gate=old.json"
SIX = ("bert_qa_lora", "bert_qa_sft", "bert_sa_sft", "t5_qa_lora", "t5_sum_sft", "gpt2_sa_sft")
NUMERICS = ("numerics", *FAILED_BY)


@cache
def saved(cells=(), seeds=(0,)):
    """Records of the committed baseline: every machine judges them alike."""
    known = read_saved(BASELINE).records
    return [record for record in known if record.seeds.seed in seeds and (record.cell in cells or not cells)]


def passed():
    old = saved(SIX)
    return old, [replace(record, device=replace(record.device, contended=True)) for record in old], None, FAILED_BY


def one_cause():
    """LoRA's scale is another in all 18 cells with adapters, of which two miss their bounds, too."""
    old = saved()
    return old, [broken(record) if record.recipe.adapter else record for record in old], None, FAILED_BY


def broken(record):
    finding = AuditFinding(name="adapters_add_as_declared", passed=False, detail="LoRA's scale is 8/9 of what is declared")
    missed, status = [located(record, f"audit {finding.name}: {finding.detail}")], "audit"
    scores = dict(record.scores)
    if record.cell in ("t5_qa_lora", "t5_qa_qlora"):
        scores["f1"] = record.bounds["f1"] - 1
        missed.append(located(record, f"f1 {scores['f1']:.1f} is below {record.bounds['f1']:.1f}"))
        status = "missed"
    audits = [finding if one.name == finding.name else one for one in record.audits]
    return replace(record, audits=audits, missed=missed, status=status, scores=scores, examples=None)


def changed_module():
    """Another layer in each of five cells, all of one class; a sixth names another."""
    old = saved()
    new = [replace(record, versions={**record.versions, "transformers": "5.25.0"}) for record in old]
    judged = gate(Run.of(old), Run.of(new))
    kinds = {f"h.{layer}.attn.c_attn": ("Conv1D", "transformers") for layer in range(5)} | {"lm_head": ("Linear", "torch")}
    cells = [record.cell for record in old if record.backbone == "gpt2"]
    changes = {}
    for cell, (name, (kind, library)) in zip(cells, kinds.items(), strict=False):
        detail = f"forward: the output of {name} ({kind}, {library}) moves, by 2.3e-01; with transformers 5.25.0, it was 5.24.0"
        evidence = {"stage": "forward", "modules": ((name, kind, library),), "detail": detail}
        changes[cell] = Judgement(cell=cell, main_score="f1", quantity="numerics", verdict=Verdict.CHANGED, **evidence)
    return old, new, [changes.get(j.cell, j) if j.quantity == "numerics" else j for j in judged], NUMERICS


def other_cpus():
    """Rounding moves all losses, and a score of few rows with them."""
    old = saved(SIX)
    new = [replace(rounded(record), device=replace(record.device, name="AMD EPYC")) for record in old]
    moved = [record.cell for record in new].index("t5_qa_lora")
    scores = new[moved].scores
    new[moved] = replace(new[moved], scores={**scores, "f1": scores["f1"] - 0.7}, bounds={}, examples=None)
    return old, new, None, FAILED_BY


def rounded(record):
    return replace(record, training=replace(record.training, losses=[loss * (1 + 1e-7) for loss in record.training.losses]))


def five_seeds():
    """Three points less of every seed of one cell."""
    old = saved(SIX, (0, 1, 2, 3, 4))
    fewer = [replace(one, scores={name: points - 3 for name, points in one.scores.items()}, examples=None) for one in old]
    return old, [low if one.cell == "bert_qa_sft" else one for one, low in zip(old, fewer, strict=True)], None, FAILED_BY


@pytest.mark.parametrize("run", [passed, one_cause, changed_module, other_cpus, five_seeds], ids=lambda run: run.__name__)
def test_all_that_is_said_of_a_run(run, monkeypatch, capsys):
    old, new, judged, kinds = run()
    judged = judged or gate(Run.of(old), Run.of(new))
    verdict = verdict_of(new, judged, kinds, baseline="old.json", before=old, command=COMMAND, files=("old.json", "new.json"))
    told = [line for line, _ in cell_lines(new, seconds=61.0)]
    terminal = text([Section(sentences=told), gate_section(judged, verdict.failing), Section(sentences=verdict.sentences)])
    cases = [(record, properties_of(record, [j for j in judged if j.cell == record.cell], kinds)) for record in new[:3]]
    junit = [f"{record.cell} seed {record.seeds.seed}: {properties}" for record, properties in cases]
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    annotate(verdict)
    parts = {
        "terminal": terminal,
        "step summary": summary(verdict, judged, [*failure_lines(new)]),
        "JUnit": "\n".join([f"{verdict.state}, exit code {verdict.exit_code}", *junit]),
        "annotations": capsys.readouterr().out.replace("%0A", "\n  "),
    }
    whole = "\n\n".join(f"## {name}\n\n{part.rstrip()}" for name, part in parts.items()) + "\n"
    path = SNAPSHOTS / f"{run.__name__}.txt"
    if os.environ.get("TUNEGRID_SNAPSHOTS") == "write":
        path.write_text(whole, encoding="utf-8")
    assert whole == path.read_text(encoding="utf-8")
