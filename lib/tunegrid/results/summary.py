"""Words a run and its verdict: the tables of cells and of a gate, remarks, JUnit's properties, annotations, the step summary.

Nothing here decides: `tunegrid.results.verdict` did. pandas is imported when a table is made.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tunegrid.grid.cells import STUDY_IDS, study_place
from tunegrid.record import Record
from tunegrid.results.alike import unlike_pairs
from tunegrid.results.judgements import (
    FAILED_BY,
    GRAVEST_FIRST,
    KINDS,
    Judgement,
    Verdict,
    by_cell,
    evidence_of,
    in_words,
    worst,
)
from tunegrid.results.report import NAMED, Section, count, markdown, some, text_table
from tunegrid.results.status import Failure, failures_of, said_of, status_of, too_short
from tunegrid.results.verdict import RunVerdict, moved_by_rounding
from tunegrid.terminal import annotation, say

MIB = 2**20
MOST_CELLS = 30  # that a line of a cause names
# Columns and their formats. Cells of several seeds show the spread in place of speed and size, footprints what tensors take.
SCORES = {"cell": "", "score": "", "points": ".1f", "bound": ".1f", "train s": ".1f", "samples/s": ".0f", "peak GiB": ".2f"}
SCORES |= {"trainable": ".2%", "status": ""}
SPREADS = {"cell": "", "score": "", "seeds": "d", "points": ".1f", "sd": ".2f", "lowest": ".1f", "bound": ".1f"}
SPREADS |= {"train s": ".1f", "peak GiB": ".2f", "status": ""}
TENSORS = {"weights": "weights", "grads": "gradients", "optim.": "optimizer", "activ.": "activations", "MiB peak": "peak"}
FOOTPRINT = {"cell": "", **dict.fromkeys(("step ms", "tokens/s", "gen/s", *TENSORS), ".0f"), "MFU %": ".1f", "status": ""}
GATE = {"cell": "", "main score": "", "change": "+.1f", "95 % interval": "", "p": ".3f", "sees": ".1f"}
GATE |= dict.fromkeys(KINDS, "")
QUIET = (Verdict.SAME, Verdict.EQUAL, Verdict.ROUNDING, Verdict.NOT_COMPARABLE)  # not worth a sentence of their own
ANNOTATIONS = 10  # of one level that GitHub shows of a step


def table(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]], sentences: Sequence[str] = ()) -> Section:
    """A section of these columns."""
    import pandas as pd

    frame = pd.DataFrame(([row[name] for name in columns] for row in rows), columns=list(columns), dtype=object)
    return Section(frame=frame, formats={name: form for name, form in columns.items() if form}, sentences=sentences)


# After a run


def cell_lines(
    records: Iterable[Record], cells: Sequence[str] = STUDY_IDS, seconds: float | None = None
) -> Iterator[tuple[str, str]]:
    """Lines with their colours, if any: one per cell over its seeds, in this order, and what was missed by its cause."""
    order = {cell: index for index, cell in enumerate(cells)}
    records = sorted(records, key=lambda r: (r.profile, order.get(r.cell, len(order)), r.cell, r.seeds.seed or 0))
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.profile, record.cell), []).append(record)
    scored, footprints = ([seeds for seeds in groups.values() if (seeds[0].flops is None) is own] for own in (True, False))
    columns = SPREADS if any(seeds[1:] for seeds in scored) else SCORES
    for shown, rows in ((columns, scored), (FOOTPRINT, footprints)):
        colours = ["", *({"passed": "green", "begun": ""}.get(status_of(seeds), "red") for seeds in rows)]
        yield from zip(text_table(table(shown, map(_row, rows))) if rows else (), colours, strict=False)
    if records:
        yield footer(records, len(groups), seconds), ""
        yield from ((line, "") for line in mixture(records))
    yield from ((line, "red") for line in failure_lines(records))
    yield from ((sentence, "yellow") for record in records for sentence in too_short(record))
    if pairs := unlike_pairs(records):
        more = f"; {count(len(pairs) - 1, 'more pair')}" if pairs[1:] else ""
        yield f"not like for like: {pairs[0]}{more}", ""


def _row(seeds: Sequence[Record]) -> dict[str, Any]:
    """What tables show of a cell: of its seeds mean, deviation and lowest of the main score, seconds, and the highest peak."""
    first, speed, ledger = seeds[0], seeds[0].throughput, seeds[0].memory and seeds[0].memory.ledger
    scores = [score for record in seeds if (score := record.scores.get(first.main_score)) is not None]
    seconds = [record.training.seconds for record in seeds if record.training]
    passed = sum(record.status == "passed" for record in seeds)
    status = first.status if len({record.status for record in seeds}) == 1 else f"{passed} of {len(seeds)} passed"
    if status == "passed" and not first.flops:
        status = "too short" if any(record.excused for record in seeds) else "passed" if first.bounds else "no bound yet"
    sizes = {name: getattr(ledger, f"{field}_bytes", None) for name, field in TENSORS.items()}
    return {
        "cell": first.cell,
        "score": first.main_score,
        "seeds": len(seeds),
        "points": fmean(scores) if scores else None,
        "sd": stdev(scores) if scores[1:] else None,
        "lowest": min(scores, default=None),
        "bound": first.bounds.get(first.main_score),
        "train s": fmean(seconds) if seconds else None,
        "samples/s": speed and speed.train_samples_per_second,
        "peak GiB": max((peak for record in seeds if (peak := record.peak_gib) is not None), default=None),
        "trainable": first.parameters and first.parameters.trainable_percent / 100,
        "step ms": speed and speed.step_seconds_median and 1000 * speed.step_seconds_median,
        "tokens/s": speed and speed.train_tokens_per_second,
        "gen/s": speed and speed.generated_tokens_per_second,
        **{name: None if size is None else size / MIB for name, size in sizes.items()},
        "MFU %": first.flops and first.flops.mfu_percent,
        "status": status,
    }


def footer(records: Sequence[Record], cells: int, seconds: float | None = None) -> str:
    """How many passed, how long it took, on what; and whether starts were perturbed."""
    what = count(cells, "cell") if cells == len(records) else f"{len(records)} runs of {count(cells, 'cell')}"
    passed, time = sum(record.status == "passed" for record in records), "" if seconds is None else f" in {seconds:.0f} s"
    devices = ", ".join(sorted({record.device.name for record in records if record.device})) or "no device"
    draws = sorted({f"{draw}" for record in records if (draw := record.seeds.perturbation) is not None})
    note = f"; starts perturbed by draw {', '.join(draws)}: this run cannot be a baseline" if draws else ""
    return f"{passed} of {what} passed{time} on {devices}{note}"


def mixture(records: Iterable[Record]) -> list[str]:
    """Which devices and libraries a run mixes, as if nodes of a cluster differ; empty if all cells had the same."""
    facts: dict[str, set[str]] = {}
    for record in (one for one in records if one.device):
        codes = {f"the code of {name}": digest for name, digest in record.libraries.items()}
        for name, fact in {"the device": record.device and record.device.name, **record.versions, **codes}.items():
            facts.setdefault(name, set()).add(f"{fact}")
    unlike = [f"{name} ({', '.join(sorted(seen))})" for name, seen in facts.items() if len(seen) > 1]
    advice = "compare speed and memory only between like cells, as the gate does"
    return [f"a mixed run, by {', '.join(unlike)}: {advice}"] if unlike else []


def failure_lines(records: Iterable[Record]) -> Iterator[str]:
    """Lines on what failed: cells with their causes, and below them what they say; of more than three what one says."""
    for failure in failures_of(sorted(records, key=lambda record: study_place(record.cell))):
        yield from _lines_of(failure)


def _lines_of(failure: Failure) -> Iterator[str]:
    yield f"{failure.title}: {some(failure.cells, MOST_CELLS)}"
    few, most = (failure.records, None) if len(failure.records) <= NAMED else (failure.records[:1], 1)
    for record in few:
        yield from (f"  {said}" for cause in failure.causes for said in said_of(record, cause)[:most])


# A gate


def gate_section(judged: Sequence[Judgement], failing: Sequence[Judgement]) -> Section:
    """A row for each cell with its main score's change and a verdict on each kind of figure; what is not the same below."""
    rows = []
    for cell, judgements in by_cell(judged).items():
        own = [judgement for judgement in judgements if judgement.decides]
        main = next((j for j in own if j.quantity == j.main_score), own[0])
        interval = None if main.low is None else f"{main.low:+.1f} to {main.high:+.1f}"
        kinds = [worst(j for j in own if j.kind == kind) for kind in KINDS]
        row = (cell, main.main_score, main.effect, interval, main.p, main.smallest, *kinds)
        rows.append(dict(zip(GATE, row, strict=True)))
    return table(GATE, rows, [*remarks(judged, failing), counted(judged)])


def counted(judged: Sequence[Judgement]) -> str:
    """How many cells have each verdict on numerics and on quality."""
    cells, parts = by_cell(j for j in judged if j.decides).values(), []
    for kind in KINDS[:2]:
        counts = Counter(worst(j for j in own if j.kind == kind) for own in cells)
        parts.append(f"{kind}: {', '.join(f'{counts[one]} {one}' for one in GRAVEST_FIRST if counts[one]) or 'none'}")
    return f"{count(len(cells), 'cell')}, {'; '.join(parts)}"


def remarks(judged: Sequence[Judgement], failing: Sequence[Judgement] = ()) -> list[str]:
    """Sentences on all that is not `same`: what fails the run first, then the gravest, speed last if it fails nothing.

    Each reason not to compare comes once. If more than three cells have one verdict on one quantity, and on one stage of
    numerics, the sentence is of the one that moved most: the table names the others.
    """
    alike: dict[tuple[bool, bool, int, str, str], list[Judgement]] = {}
    by_rounding = moved_by_rounding(judged)  # the verdict says so once
    for j in judged:
        untold = j.kind == "instruments" and j.verdict is Verdict.CANNOT_TELL
        if untold or j.verdict in QUIET or not j.decides or j in by_rounding:
            continue
        fails = j in failing
        order = (not fails, j.kind == "speed" and not fails, GRAVEST_FIRST.index(j.verdict))
        alike.setdefault((*order, j.quantity, j.stage), []).append(j)
    lines: list[str] = []
    for group in (alike[key] for key in sorted(alike, key=lambda key: key[:3])):
        cells, most = len({j.cell for j in group}), max(group, key=lambda j: abs(j.effect or 0.0))
        which = "as" if most.effect is None else "most of all"
        one = f"{most.verdict}: {most.quantity} of {cells} cells, {which} {evidence_of(most)}"
        lines += [one] if cells > NAMED else map(in_words, group)
    reasons = {j.detail: j.quantity for j in judged if j.verdict is Verdict.NOT_COMPARABLE}
    return lines + [f"{quantity} not compared: {detail}" for detail, quantity in reasons.items()]


# Where it is read


def summary(verdict: RunVerdict, judged: Sequence[Judgement] = (), causes: Sequence[str] = ()) -> str:
    """The answer first, for a pull request or a step summary; what failed, and a table if anything was judged."""
    answer, *others = verdict.sentences
    sections = [Section(heading=answer, sentences=[*others, *causes])]
    sections += [gate_section(judged, verdict.failing)] if judged else []
    return markdown(sections)


def write_step_summary(words: str) -> None:
    """Append it to GitHub's step summary, if there is one."""
    if target := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(words + "\n")


def properties_of(record: Record, judged: Sequence[Judgement] = (), kinds: Sequence[str] = FAILED_BY) -> dict[str, str]:
    """What JUnit's file and trackers say of a record with the gate's judgements on its cell; speed decides if it counts.

    `verdict` is the status if the cell did not pass, else the gate's gravest; then its cause, where numerics changed, the
    verdict on each kind, and scores.
    """
    deciding = sorted((j for j in judged if j.decides), key=lambda j: GRAVEST_FIRST.index(j.verdict))
    gravest = next((j for j in deciding if j.kind != "speed" or "speed" in kinds), None)
    failed = bool(failures_of([record]))
    changed = next((j for j in deciding if j.kind == "numerics" and j.verdict is Verdict.CHANGED), None)
    said = evidence_of(gravest) if gravest and gravest.verdict not in QUIET else ""
    named = {
        "verdict": record.status if failed or not gravest else f"{gravest.verdict}",
        "cause": "; ".join(record.missed) if failed else said,
        "stage": changed.stage if changed else "",
        "module": changed.modules[0][0] if changed and changed.modules else "",
        **{kind: f"{verdict}" for kind in KINDS if (verdict := worst(j for j in deciding if j.kind == kind))},
        **{f"scores.{name}": f"{score:.6g}" for name, score in record.scores.items() if score is not None},
    }
    return {name: words for name, words in named.items() if words}


def annotate(verdict: RunVerdict) -> None:
    """Print annotations if GitHub Actions runs this, whose runner reads them: the verdict, and a line for each cause."""
    if os.environ.get("GITHUB_ACTIONS") == "true" and verdict.exit_code:
        lines = [(f"tunegrid: {verdict.state}", "\n".join(verdict.sentences))]
        lines += [(failure.title, "\n".join(_lines_of(failure))) for failure in verdict.failures]
        lines += [("the gate", "\n".join(remarks(verdict.failing)))] if verdict.failing else []
        say("\n".join(annotation("error", title, words) for title, words in lines[:ANNOTATIONS]), runner=True)
