"""Ten kinds of runs, most of them compared with an older run.

They are made from the committed baseline, so that every machine judges them alike. Each function
returns the older records, the new records, the gate's judgements, and the kinds of figures that
fail the run.
"""

import re
from dataclasses import replace
from functools import cache
from html import unescape
from pathlib import Path

from tunegrid import ROOT
from tunegrid.gate.gate import Run, gate
from tunegrid.gate.judgements import DEFAULT_KINDS, Judgement, Verdict
from tunegrid.grid.recipes import CONFIRMING
from tunegrid.page import render
from tunegrid.page.view import PageRun, make_page
from tunegrid.record import AuditFinding
from tunegrid.report.verdict import run_verdict
from tunegrid.runs.files import read_saved
from tunegrid.runs.status import locate, weigh_misses

BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
COMMAND = "pytest -m quick -n 2 --grid own.py --device=cpu --gate=old.json"
SIX = ("bert_qa_lora", "bert_qa_sft", "bert_sa_sft", "t5_qa_lora", "t5_sum_sft", "gpt2_sa_sft")
NUMERICS = ("numerics", *DEFAULT_KINDS)


@cache
def baseline(cells=(), seeds=(0,)):
    known = read_saved(BASELINE).records
    return [
        record
        for record in known
        if record.seeds.seed in seeds and (record.cell in cells or not cells)
    ]


def judged(old, new):
    return gate(Run.make(old), Run.make(new))


def passed():
    old = baseline(SIX)
    new = [replace(record, device=replace(record.device, contended=True)) for record in old]
    return old, new, judged(old, new), DEFAULT_KINDS


def one_cause():
    """LoRA's scale is wrong in all 18 cells with adapters; two of them also miss their bounds."""
    old = baseline()
    new = [broken(record) if record.recipe.adapter else record for record in old]
    return old, new, judged(old, new), DEFAULT_KINDS


def broken(record):
    finding = AuditFinding(
        name="adapters_add_as_declared",
        passed=False,
        detail="LoRA's scale is 8/9 of what is declared",
    )
    missed = [locate(record, f"audit {finding.name}: {finding.detail}")]
    status = "audit"
    scores = dict(record.scores)
    if record.cell in ("t5_qa_lora", "t5_qa_qlora"):
        scores["f1"] = record.bounds["f1"] - 1
        missed.append(locate(record, f"f1 {scores['f1']:.1f} is below {record.bounds['f1']:.1f}"))
        status = "missed"
    audits = [finding if one.name == finding.name else one for one in record.audits]
    return replace(
        record, audits=audits, missed=missed, status=status, scores=scores, examples=None
    )


def changed_module():
    """Five cells change in different layers of the same class; a sixth names another class."""
    old = baseline()
    new = [
        replace(record, versions={**record.versions, "transformers": "5.25.0"}) for record in old
    ]
    kinds = {f"h.{layer}.attn.c_attn": ("Conv1D", "transformers") for layer in range(5)} | {
        "lm_head": ("Linear", "torch")
    }
    cells = [record.cell for record in old if record.backbone == "gpt2"]
    changes = {}
    for cell, (name, (kind, library)) in zip(cells, kinds.items(), strict=False):
        detail = f"forward: the output of {name} ({kind}, {library}) moves, by 2.3e-01; with transformers 5.25.0, it was 5.24.0"
        evidence = {"stage": "forward", "modules": ((name, kind, library),), "detail": detail}
        changes[cell] = Judgement(
            cell=cell, main_score="f1", quantity="numerics", verdict=Verdict.CHANGED, **evidence
        )
    return (
        old,
        new,
        [changes.get(j.cell, j) if j.quantity == "numerics" else j for j in judged(old, new)],
        NUMERICS,
    )


def other_cpus():
    """On another CPU, rounding moves every loss and, with them, a score measured on few rows."""
    old = baseline(SIX)
    new = [
        replace(rounded(record), device=replace(record.device, name="AMD EPYC")) for record in old
    ]
    moved = [record.cell for record in new].index("t5_qa_lora")
    scores = new[moved].scores
    new[moved] = replace(
        new[moved], scores={**scores, "f1": scores["f1"] - 0.7}, bounds={}, examples=None
    )
    return old, new, judged(old, new), DEFAULT_KINDS


def rounded(record):
    return replace(
        record,
        training=replace(
            record.training, losses=[loss * (1 + 1e-7) for loss in record.training.losses]
        ),
    )


def five_seeds():
    """Every seed of one cell scores three points less."""
    old = baseline(SIX, (0, 1, 2, 3, 4))
    fewer = [
        replace(
            one, scores={name: points - 3 for name, points in one.scores.items()}, examples=None
        )
        for one in old
    ]
    new = [low if one.cell == "bert_qa_sft" else one for one, low in zip(old, fewer, strict=True)]
    return old, new, judged(old, new), DEFAULT_KINDS


def changed_numerics():
    """The gradient changes in all GPT-2 cells and nothing else does; the default kinds count."""
    old = baseline()
    stage = "backward without dropout"
    module = ("h.1.mlp.act", "NewGELUActivation", "transformers")
    words = f"{stage}: the gradient changes inside h.1.mlp.act (NewGELUActivation, transformers), by 79 % of its norm"
    evidence = {"stage": stage, "modules": (module,)}
    judgements = [
        replace(j, verdict=Verdict.CHANGED, detail=words, **evidence)
        if j.quantity == "numerics" and "gpt2" in j.cell
        else j
        for j in judged(old, old)
    ]
    new = [replace(record, device=replace(record.device, contended=True)) for record in old]
    return old, new, judgements, DEFAULT_KINDS


def fresh_seed():
    """Compares seed 1 of the baseline with seed 0.

    The two share no training run, so small drops cannot be seen.
    """
    # Another machine may hold other example rows.
    old = [replace(record, examples=None) for record in baseline()]
    new = [replace(record, examples=None) for record in baseline(seeds=(1,))]
    return old, new, judged(old, new), DEFAULT_KINDS


def low_score(record):
    """The record with a score below its bound, as the pipeline would have saved it."""
    scores = record.scores | {"f1": record.bounds["f1"] - 1}
    missed = [locate(record, f"f1 {scores['f1']:.1f} is below {record.bounds['f1']:.1f}")]
    return replace(record, scores=scores, missed=missed, status="missed", examples=None)


def second_training(record):
    return replace(
        record,
        seeds=replace(
            record.seeds, seed=record.seeds.seed + CONFIRMING, confirms=record.seeds.seed
        ),
    )


def confirmed_miss():
    """A cell that missed its bound with two seeds."""
    [record] = baseline(("bert_qa_lora",))
    new = [low_score(record), low_score(second_training(record))]
    return [], weigh_misses(new), [], DEFAULT_KINDS


def unconfirmed_miss():
    """A cell that missed its bound, but reached it when it was trained again."""
    [record] = baseline(("bert_qa_lora",))
    return [], weigh_misses([low_score(record), second_training(record)]), [], DEFAULT_KINDS


def too_short():
    """A cell that gives the same answer for all rows after 12 of 48 updates."""
    [record] = baseline(("bert_sa_lora",))
    name = "predictions_not_collapsed"
    audits = [finding for finding in record.audits if finding.name != name]
    audits.append(AuditFinding(name=name, passed=False, detail="one answer for all 400 rows"))
    excused = {name: "a run of 12 of 48 planned updates may be too short to pass it"}
    return [], [replace(record, audits=audits, excused=excused, bounds={})], [], DEFAULT_KINDS


KINDS = {
    kind.__name__: kind
    for kind in (
        *(passed, one_cause, changed_module, other_cpus, five_seeds),
        *(changed_numerics, fresh_seed, confirmed_miss, unconfirmed_miss, too_short),
    )
}


def kind_verdict(kind):
    old, new, judgements, counted = KINDS[kind]()
    named = {"baseline": "old.json", "files": ("old.json", "new.json")}
    return run_verdict(new, judgements, counted, before=old, command=COMMAND, **named)


def kind_page(kind):
    old, new, judgements, _ = KINDS[kind]()
    place = Path(BASELINE)  # its examples are beside it
    older = (
        [
            PageRun(
                name="old.json",
                records=old,
                when="2026-11-24T09:00:00",
                commit="0123456789",
                path=place,
            )
        ]
        if old
        else []
    )
    run = PageRun(
        name="new.json",
        records=new,
        when="2026-11-25T09:00:00",
        commit="9876543210",
        command=COMMAND,
        path=place,
    )
    return make_page(run, older, verdicts=judgements, answer=kind_verdict(kind))


def page_text(page, cells=False):
    """The text that a reader sees on a page, one line per table row.

    Leaves out what the page says about single cells unless `cells` is set.
    """
    html = re.sub(r"<(style|script|svg|title)[ >].*?</\1>", "", render.html(page), flags=re.S)
    html = html if cells else re.sub(r"<article.*?</article>", "", html, flags=re.S)
    html = re.sub(
        r"<(?=(?:tr|p|h\d|summary|li|caption|div|figure)[ >])", r"\n<", re.sub(r"\s+", " ", html)
    )
    lines = (
        re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", line)).strip() for line in html.splitlines()
    )
    return unescape("\n".join(filter(None, lines)))
