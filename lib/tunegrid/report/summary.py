"""Reports a run and its verdict: tables, remarks, annotations and the step summary.

`tunegrid.report.verdict` makes the decisions. pandas is imported only when a table is made.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
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
from tunegrid.report.verdict import RunVerdict, distinct_cells, size
from tunegrid.runs.frame import figure_frame
from tunegrid.runs.status import (
    cause_sentences,
    cell_status,
    find_failed_cells,
    first_trainings,
    known_faults,
    too_short,
    unconfirmed_misses,
)
from tunegrid.terminal import annotation, say
from tunegrid.words import NAMED, count, some

STATUS_COLOURS = {
    "passed": "green",
    "unconfirmed": "yellow",
    "known": "yellow",
    "begun": "",
}  # by status; all others are red
MOST_CELLS = 30  # cells named for one cause
# Columns of the tables of cells and of the gate, with formats. Empty columns are left out.
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
GATE = {
    "cell": "",
    "main score": "",
    "change": "+.1f",
    "95 % interval": "",
    "p": ".3f",
    "min drop": ".1f",
}
GATE |= dict.fromkeys(KINDS, "")
GATE_LEGEND = (
    "interval and p: of each cell alone; verdicts need a smaller p, as many cells are tested "
    "(Holm); min drop: the smallest drop that would be called worse, 4 times in 5"
)
# Verdicts that get no sentence of their own
QUIET = (Verdict.SAME, Verdict.EQUAL, Verdict.ROUNDING, Verdict.NOT_COMPARABLE)


def table(
    columns: Mapping[str, str],
    rows: Iterable[Mapping[str, Any]],
    sentences: Sequence[str] = (),
) -> Section:
    """A section with a table, whose empty columns are left out."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(columns), dtype=object).dropna(axis=1, how="all")
    formats = {name: form for name, form in columns.items() if form}
    return Section(frame=frame, formats=formats, sentences=sentences)


def cell_lines(
    records: Iterable[Record], cells: Sequence[str] = STUDY_IDS, seconds: float | None = None
) -> Iterator[tuple[str, str]]:
    """Yields lines and their colours, if any: tables of cells, a footer, failures and warnings."""
    order = {cell: index for index, cell in enumerate(cells)}

    def position(record: Record) -> tuple[object, ...]:
        cell = record.cell
        return record.profile, order.get(cell, len(order)), cell, record.seeds.seed or 0

    records = sorted(records, key=position)
    own_seeds = first_trainings(records)
    scored: list[list[Record]] = []
    footprints: list[list[Record]] = []
    for _, group in groupby(own_seeds, lambda record: (record.profile, record.cell)):
        seeds = list(group)
        kind = scored if seeds[0].flops is None else footprints
        kind.append(seeds)
    for rows in (scored, footprints):
        if rows:
            colours = ["", *map(_colour, rows)]
            yield from zip(text_table(table(CELLS, map(_row, rows))), colours, strict=True)
    if records:
        yield footer(own_seeds, len(scored) + len(footprints), seconds), ""
    for line in failure_lines(records):
        yield line, "red"
    for record in records:
        for sentence in (*too_short(record), *known_faults(record)):
            yield sentence, "yellow"
    for sentence in unconfirmed_misses(records):
        yield sentence, "yellow"


def _row(seeds: Sequence[Record]) -> dict[str, Any]:
    """A cell's row in the table.

    With several seeds, it has the main score's mean, standard deviation and minimum, the mean
    training time and the highest peak.
    """
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
    row["samples/s"] = row["trainable"] = None  # make room for the three new columns
    return row


def _colour(seeds: Sequence[Record]) -> str:
    """The colour of a cell's line."""
    status = cell_status(seeds)
    if status == "passed" and any(record.is_short for record in seeds):
        return "yellow"
    return STATUS_COLOURS.get(status, "red")


def _status(seeds: Sequence[Record]) -> str:
    """A cell's status: the one shared by all seeds, how many passed, or why a pass says little."""
    first = seeds[0]
    if any(record.status != first.status for record in seeds):
        passes = sum(record.status == "passed" for record in seeds)
        return f"{passes} of {len(seeds)} passed"
    if first.status == "known":
        return f"known: {some(list(dict.fromkeys(first.known.values())))}"
    if first.status != "passed" or first.flops:
        return first.status
    if any(record.is_short for record in seeds):
        return "too short"
    return "passed" if first.bounds else "no bound"


def footer(records: Sequence[Record], cells: int, seconds: float | None = None) -> str:
    """A line with the number of cells that passed, the time, the devices and any perturbation."""
    subject = count(cells, "cell")
    if cells != len(records):
        subject = f"{len(records)} runs of {subject}"
    passed = [record for record in records if record.unharmed]
    short = sum(record.is_short for record in passed)
    text = f"{len(passed) - short} of {subject} passed"
    if short:
        text += f", {short} too short to judge"
    known = sum(record.status == "known" for record in records)
    if known:
        text += f", {known} with a known fault"
    if seconds is not None:
        text += f" in {seconds:.0f} s"
    devices = sorted({record.device.name for record in records if record.device})
    if devices:
        text += f" on {', '.join(devices)}"
    draws = sorted({f"{r.seeds.perturbation}" for r in records if r.seeds.perturbation is not None})
    if draws:
        numbers = ", ".join(draws)
        text += f"; initial weights perturbed (draw {numbers}): this run cannot be a baseline"
    return text


def failure_lines(records: Iterable[Record]) -> Iterator[str]:
    """Yields lines on failures: the causes and cells of each, then the distinct sentences on them.

    If more than three records share causes, each cause gets only the first record's first sentence.
    """
    for failure in find_failed_cells(sorted(records, key=lambda record: study_place(record.cell))):
        yield f"{failure.title}: {some(failure.cells, MOST_CELLS)}"
        few = failure.records
        most = None
        if len(few) > NAMED:
            few = few[:1]
            most = 1
        texts: dict[str, str] = {}  # keyed by the sentence without its cell
        for record in few:
            for cause in failure.causes:
                for text in cause_sentences(record, cause)[:most]:
                    texts.setdefault(text.replace(record.cell, ""), text)
        for text in texts.values():
            yield f"  {text}"


def gate_section(judged: Sequence[Judgement], failing: Sequence[Judgement]) -> Section:
    """A table with each cell's change in main score and verdicts by kind, followed by remarks."""
    rows = []
    for cell, judgements in by_cell(j for j in judged if j.decides).items():
        main = next((j for j in judgements if j.quantity == j.main_score), judgements[0])
        row = {
            "cell": cell,
            "main score": main.main_score,
            "change": main.effect,
            "p": main.p,
            "min drop": main.min_drop,
        }
        if main.low is not None:
            row["95 % interval"] = f"{main.low:+.1f} to {main.high:+.1f}"
        for kind in KINDS:
            row[kind] = worst(j for j in judgements if j.kind == kind)
        rows.append(row)
    sentences = [*remarks(judged, failing), count_verdicts(judged)]
    if any(row["p"] is not None for row in rows):
        sentences.append(GATE_LEGEND)
    return table(GATE, rows, sentences)


def count_verdicts(judged: Sequence[Judgement]) -> str:
    """A line with the number of cells for each verdict on numerics and on quality."""
    cells = by_cell(j for j in judged if j.decides).values()
    tallies = []
    for kind in KINDS[:2]:
        verdicts = []
        for judgements in cells:
            verdicts.append(worst(j for j in judgements if j.kind == kind))
        tallies.append(f"{kind}: {tally(verdicts) or 'none'}")
    return f"{count(len(cells), 'cell')}, {'; '.join(tallies)}"


def remarks(judged: Sequence[Judgement], failing: Sequence[Judgement] = ()) -> list[str]:
    """Sentences on changes and undecided figures, failures first, and on what was not compared.

    If a change affects more than three cells, only the largest change is described.
    """
    decisions = [j for j in judged if j.decides and j.verdict not in QUIET]
    decisions.sort(
        key=lambda j: (j not in failing, j.kind == "speed", GRAVEST_FIRST.index(j.verdict))
    )
    groups: dict[tuple[bool, Verdict, str, str], list[Judgement]] = {}
    for j in decisions:
        if (j.kind, j.verdict) != ("instruments", Verdict.CANNOT_TELL):
            groups.setdefault((j in failing, j.verdict, j.quantity, j.stage), []).append(j)
    lines: list[str] = []
    for group in groups.values():
        cells = len(distinct_cells(group))
        if cells <= NAMED:
            lines += map(verdict_text, group)
            continue
        most = max(group, key=size)
        degree = "e.g." if most.effect is None else "most of all"
        lines.append(f"{most.verdict}: {most.quantity} of {cells} cells, {degree} {describe(most)}")
    peaks = [j for j in judged if j.quantity in NEVER_FAILING and j.verdict is Verdict.WORSE]
    if peaks:
        most = max(peaks, key=size)
        number = count(len(peaks), "cell")
        lines.append(
            f"higher, which fails no run: {most.quantity} of {number}, most of all {describe(most)}"
        )
    reasons = {j.detail: j.quantity for j in judged if j.verdict is Verdict.NOT_COMPARABLE}
    for detail, quantity in reasons.items():
        lines.append(f"{quantity} not compared: {detail}")
    return lines


def summary(
    verdict: RunVerdict,
    judged: Sequence[Judgement] = (),
    causes: Sequence[str] = (),
    evidence: Iterable[Section] = (),
) -> str:
    """The answer, causes, gate table and evidence as Markdown for GitHub."""
    answer, *details = verdict.sentences
    sections = [Section(heading=answer, sentences=[*details, *causes])]
    if judged:
        sections.append(gate_section(judged, verdict.failing))
    return markdown([*sections, *evidence])


def write_step_summary(words: str) -> None:
    """Append text to GitHub's step summary, if there is one.

    If the file cannot be written, only an error is printed.
    """
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if not target:
        return
    try:
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(words + "\n")
    except OSError as error:
        reason = error.strerror or error
        say(
            f"no step summary: GITHUB_STEP_SUMMARY={target} cannot be written ({reason})",
            error=True,
        )


def annotate(verdict: RunVerdict) -> None:
    """In GitHub Actions, print the verdict as an error annotation if its exit code is not 0."""
    if os.environ.get("GITHUB_ACTIONS") == "true" and verdict.exit_code:
        say(
            annotation("error", f"tunegrid: {verdict.rank}", "\n".join(verdict.sentences)),
            runner=True,
        )
