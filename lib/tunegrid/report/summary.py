"""Words a run and its verdict: the tables of cells and of a gate, remarks, annotations, the step summary.

Nothing here decides: `tunegrid.report.verdict` did. pandas is imported when a table is made.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any

from tunegrid.gate.judgements import (
    GRAVEST_FIRST,
    KINDS,
    NEVER_FAILING,
    Judgement,
    Verdict,
    by_cell,
    describe,
    tally,
    verdict_text,
    worst,
)
from tunegrid.grid.cells import STUDY_IDS, study_place
from tunegrid.record import Record
from tunegrid.report.tables import Section, markdown, text_table
from tunegrid.report.verdict import RunVerdict
from tunegrid.runs.frame import figure_frame
from tunegrid.runs.status import cause_sentences, cell_status, find_failed_cells, too_short, unconfirmed_misses
from tunegrid.terminal import annotation, say
from tunegrid.words import NAMED, count, some

COLOURS = {"passed": "green", "unconfirmed": "yellow", "begun": ""}  # by status; of others red
MOST_CELLS = 30  # that a line of a cause names
# Columns of cells and of a gate, with their formats; those that nothing is in are left out.
CELLS = {
    "cell": "",
    "score": "",
    "seeds": "d",
    "points": ".1f",
    "sd": ".2f",
    "lowest": ".1f",
    "bound": ".1f",
    "train s": ".1f",
    "samples/s": ".0f",
    "peak GiB": ".2f",
    "trainable": ".2%",
    "step ms": ".0f",
    "tokens/s": ".0f",
    "gen/s": ".0f",
    "weights": ".0f",
    "grads": ".0f",
    "optim.": ".0f",
    "activ.": ".0f",
    "MiB peak": ".0f",
    "MFU %": ".1f",
    "status": "",
}
SCORE_COLUMNS = {
    "points": "score",
    "bound": "bound",
    "train s": "training.seconds",
    "peak GiB": "peak_gib",
    "samples/s": "throughput.train_samples_per_second",
    "trainable": "trainable_share",
}
FOOTPRINT_COLUMNS = {
    "weights": "memory.ledger.weights_mib",
    "grads": "memory.ledger.gradients_mib",
    "optim.": "memory.ledger.optimizer_mib",
    "activ.": "memory.ledger.activations_mib",
    "MiB peak": "memory.ledger.peak_mib",
    "MFU %": "flops.mfu_percent",
    "tokens/s": "throughput.train_tokens_per_second",
    "gen/s": "throughput.generated_tokens_per_second",
    "step ms": "step_ms",
}
GATE = {"cell": "", "main score": "", "change": "+.1f", "95 % interval": "", "p": ".3f", "min drop": ".1f"}
GATE |= dict.fromkeys(KINDS, "")
GATE_LEGEND = (
    "interval, p: of each cell by itself, before a verdict allows for all cells (Holm); "
    "min drop: the smallest that would be called worse, 4 times in 5"
)
QUIET = (Verdict.SAME, Verdict.EQUAL, Verdict.ROUNDING, Verdict.NOT_COMPARABLE)  # not worth a sentence of their own


def table(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]], sentences: Sequence[str] = ()) -> Section:
    """A section of those of these columns that something is in."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(columns), dtype=object).dropna(axis=1, how="all")
    return Section(frame=frame, formats={name: form for name, form in columns.items() if form}, sentences=sentences)


def cell_lines(
    records: Iterable[Record], cells: Sequence[str] = STUDY_IDS, seconds: float | None = None
) -> Iterator[tuple[str, str]]:
    """Lines with their colours, if any: one per cell over its seeds, in this order, and what was missed by its cause."""
    order = {cell: index for index, cell in enumerate(cells)}
    records = sorted(records, key=lambda r: (r.profile, order.get(r.cell, len(order)), r.cell, r.seeds.seed or 0))
    own_seeds = [record for record in records if record.seeds.confirms is None]
    groups = [list(seeds) for _, seeds in groupby(own_seeds, lambda record: (record.profile, record.cell))]
    scored, footprints = ([seeds for seeds in groups if (seeds[0].flops is None) is is_scored] for is_scored in (True, False))
    for part in filter(None, (scored, footprints)):
        colours = ["", *map(_colour, part)]
        yield from zip(text_table(table(CELLS, map(_row, part))), colours, strict=True)
    if records:
        yield footer(own_seeds, len(groups), seconds), ""
    yield from ((line, "red") for line in failure_lines(records))
    yield from ((sentence, "yellow") for record in records for sentence in too_short(record))
    yield from ((sentence, "yellow") for sentence in unconfirmed_misses(records))


def _row(seeds: Sequence[Record]) -> dict[str, Any]:
    """What tables show of a cell: of its seeds mean, deviation and lowest of the main score, seconds, and the highest peak."""
    first = seeds[0]
    row: dict[str, Any] = {"cell": first.cell, "status": _status(seeds)}
    if first.flops:
        return row | dict(figure_frame([first], FOOTPRINT_COLUMNS).iloc[0])
    row["score"] = first.main_score
    frame = figure_frame(seeds, SCORE_COLUMNS)
    row |= dict(frame.iloc[0])
    if len(seeds) == 1:
        return row
    row["seeds"] = len(seeds)
    row["points"] = frame.points.mean()
    row["sd"] = frame.points.std()
    row["lowest"] = frame.points.min()
    row["train s"] = frame["train s"].mean()
    row["peak GiB"] = frame["peak GiB"].max()
    row["samples/s"] = row["trainable"] = None  # as many columns fit
    return row


def _colour(seeds: Sequence[Record]) -> str:
    """The colour of a cell's line."""
    status = cell_status(seeds)
    if status == "passed" and any(record.is_short for record in seeds):
        return "yellow"
    return COLOURS.get(status, "red")


def _status(seeds: Sequence[Record]) -> str:
    """The status of a cell's seeds, or how many passed; or why passing says little."""
    first = seeds[0]
    if any(record.status != first.status for record in seeds):
        passes = sum(record.status == "passed" for record in seeds)
        return f"{passes} of {len(seeds)} passed"
    if first.status != "passed" or first.flops:
        return first.status
    if any(record.is_short for record in seeds):
        return "too short"
    return "passed" if first.bounds else "no bound yet"


def footer(records: Sequence[Record], cells: int, seconds: float | None = None) -> str:
    """How many passed, how long it took, on what; and whether starts were perturbed."""
    subject = count(cells, "cell")
    if cells != len(records):
        subject = f"{len(records)} runs of {subject}"
    passed = [record for record in records if record.unharmed]
    short = sum(record.is_short for record in passed)
    text = f"{len(passed) - short} of {subject} passed"
    if short:
        text += f", {short} too short to judge"
    if seconds is not None:
        text += f" in {seconds:.0f} s"
    devices = sorted({record.device.name for record in records if record.device})
    text += f" on {', '.join(devices) or 'no device'}"
    draws = sorted({f"{r.seeds.perturbation}" for r in records if r.seeds.perturbation is not None})
    if draws:
        numbers = ", ".join(draws)
        text += f"; initial weights perturbed (draw {numbers}): this run cannot be a baseline"
    return text


def failure_lines(records: Iterable[Record]) -> Iterator[str]:
    """Lines on what failed: cells with their causes, and below them what they say, once; of more than three what one says."""
    for failure in find_failed_cells(sorted(records, key=lambda record: study_place(record.cell))):
        yield f"{failure.title}: {some(failure.cells, MOST_CELLS)}"
        few, most = (failure.records, None) if len(failure.records) <= NAMED else (failure.records[:1], 1)
        by_sentence: dict[str, str] = {}  # whichever of the cells says it
        for record, cause in product(few, failure.causes):
            for text in cause_sentences(record, cause)[:most]:
                by_sentence.setdefault(text.replace(record.cell, ""), text)
        yield from (f"  {text}" for text in by_sentence.values())


def gate_section(judged: Sequence[Judgement], failing: Sequence[Judgement]) -> Section:
    """A row for each cell with its main score's change and a verdict on each kind of figure; what is not the same below."""
    rows = []
    for cell, judgements in by_cell(j for j in judged if j.decides).items():
        main = next((j for j in judgements if j.quantity == j.main_score), judgements[0])
        row = {"cell": cell, "main score": main.main_score, "change": main.effect, "p": main.p, "min drop": main.min_drop}
        row["95 % interval"] = None if main.low is None else f"{main.low:+.1f} to {main.high:+.1f}"
        rows.append(row | {kind: worst(j for j in judgements if j.kind == kind) for kind in KINDS})
    sentences = [*remarks(judged, failing), count_verdicts(judged)]
    if any(row["p"] is not None for row in rows):
        sentences.append(GATE_LEGEND)
    return table(GATE, rows, sentences)


def count_verdicts(judged: Sequence[Judgement]) -> str:
    """How many cells have each verdict on numerics and on quality."""
    cells = by_cell(j for j in judged if j.decides).values()
    parts = [f"{kind}: {tally(worst(j for j in group if j.kind == kind) for group in cells) or 'none'}" for kind in KINDS[:2]]
    return f"{count(len(cells), 'cell')}, {'; '.join(parts)}"


def remarks(judged: Sequence[Judgement], failing: Sequence[Judgement] = ()) -> list[str]:
    """Sentences on all that is not `same`: what fails the run first; of more than three cells, one on that which moved most."""
    groups = dict[tuple[bool, Verdict, str, str], list[Judgement]]()
    decisions = [j for j in judged if j.decides and j.verdict not in QUIET]
    for j in sorted(decisions, key=lambda j: (j not in failing, j.kind == "speed", GRAVEST_FIRST.index(j.verdict))):
        if (j.kind, j.verdict) != ("instruments", Verdict.CANNOT_TELL):
            groups.setdefault((j in failing, j.verdict, j.quantity, j.stage), []).append(j)
    lines: list[str] = []
    for group in groups.values():
        cells, most = len({j.cell for j in group}), max(group, key=lambda j: abs(j.effect or 0.0))
        degree = "e.g." if most.effect is None else "most of all"
        one = f"{most.verdict}: {most.quantity} of {cells} cells, {degree} {describe(most)}"
        lines += [one] if cells > NAMED else map(verdict_text, group)
    peaks = [j for j in judged if j.quantity in NEVER_FAILING and j.verdict is Verdict.WORSE]
    if peaks:
        most = max(peaks, key=lambda j: abs(j.effect or 0.0))
        peak_cells = count(len(peaks), "cell")
        lines.append(f"higher, which fails no run: {most.quantity} of {peak_cells}, most of all {describe(most)}")
    reasons = {j.detail: j.quantity for j in judged if j.verdict is Verdict.NOT_COMPARABLE}
    return lines + [f"{quantity} not compared: {detail}" for detail, quantity in reasons.items()]


def summary(
    verdict: RunVerdict, judged: Sequence[Judgement] = (), causes: Sequence[str] = (), evidence: Iterable[Section] = ()
) -> str:
    """The answer first, for a pull request or a step summary; what failed, and a table if anything was judged."""
    answer, *others = verdict.sentences
    sections = [Section(heading=answer, sentences=[*others, *causes])]
    sections += [gate_section(judged, verdict.failing)] if judged else []
    return markdown([*sections, *evidence])


def write_step_summary(words: str) -> None:
    """Append it to GitHub's step summary, if there is one; a place that cannot be written costs the summary only."""
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if not target:
        return
    try:
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(words + "\n")
    except OSError as error:
        reason = error.strerror or error
        say(f"no step summary: GITHUB_STEP_SUMMARY={target} cannot be written ({reason})", error=True)


def annotate(verdict: RunVerdict) -> None:
    """Print the verdict as an annotation if GitHub Actions runs this, whose runner reads it, and the run did not pass."""
    if os.environ.get("GITHUB_ACTIONS") == "true" and verdict.exit_code:
        say(annotation("error", f"tunegrid: {verdict.rank}", "\n".join(verdict.sentences)), runner=True)
