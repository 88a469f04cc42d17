"""The top of the page: the answer, and what made it so, by cause."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from tunegrid.grid.cells import study_place
from tunegrid.grid.tasks import score_title
from tunegrid.page.cells import CellView
from tunegrid.record import Record
from tunegrid.results.answer import RunAnswer
from tunegrid.results.cell_answer import place_of
from tunegrid.results.failures import AUDIT, BOUND, FIGURES, Failure, failures_of, said_of
from tunegrid.results.judgements import GRAVEST_FIRST, Judgement, Verdict
from tunegrid.results.outcomes import FLOWS
from tunegrid.results.table import signed

ALIKE = (BOUND, FIGURES)  # each cell has figures of its own; of any other cause, what cells say tells causes apart
TOLD = (Verdict.CHANGED, Verdict.TOO_GOOD)  # whether they fail the run or not
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What went wrong or changed, and in which cells.

    Attributes:
        verdict: a status, or the gate's verdict.
        name: of the cause, as the answer has it; of changed numerics with the stage.
        sentence: what the first of its cells says, of each cause; empty where the figures behind the cells say all.
        cells: each with its own figure, or the module that changed first; empty where it has neither.
    """

    verdict: str
    name: str
    sentence: str
    cells: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The answer.

    Attributes:
        state: of the answer.
        answer: its first sentence.
        more_sentences: its others, and why nothing was compared.
        causes: what made it so: audits, bounds and errors first, then what the gate says, the gravest first.
    """

    state: str
    answer: str
    more_sentences: Sequence[str]
    causes: Sequence[Cause]


def headline(answer: RunAnswer, cells: Sequence[CellView], judged: Sequence[Judgement], remarks: Sequence[str]) -> Headline:
    """The answer with its causes; `remarks` say what was not compared."""
    first, *others = [minus(sentence) for sentence in answer.sentences]
    told = [*answer.failing, *(j for j in judged if j.verdict in TOLD and j not in answer.failing)]
    return Headline(
        state=answer.state,
        answer=first,
        more_sentences=[*others, *(f"{begun(remark)}." for remark in remarks if cells)],
        causes=[*_of_cells(cells), *_of_gate(told, {cell.id: cell for cell in cells})],
    )


def begun(sentence: str) -> str:
    """The sentence with a capital at its start, unless a name of a file or a cell begins it."""
    first = sentence.partition(" ")[0]
    return f"{sentence[0].upper()}{sentence[1:]}" if first.isalpha() else sentence


# Cells


def _of_cells(cells: Sequence[CellView]) -> list[Cause]:
    by_id = {cell.id: cell for cell in cells}
    causes = []
    for failure in failures_of(record for cell in cells for record in cell.records):
        alike = any(cause in ALIKE or cause.startswith(AUDIT) for cause in failure.causes)
        groups = [failure.records] if alike else _grouped(failure.records, partial(_kind, cause=failure.causes[0]))
        causes += [_of_failure(replace(failure, records=group), by_id) for group in groups]
    return causes


def _of_failure(failure: Failure, cells: Mapping[str, CellView]) -> Cause:
    """One failure, the cells that are furthest below their bound first."""
    own, below = [cells[name] for name in failure.cells], BOUND in failure.causes
    if below:
        own.sort(key=lambda cell: 0.0 if cell.above is None else cell.above)
    first = next(record for record in failure.records if record.cell == own[0].id)
    notes = [(cell.id, _note(cell, failure.records, below=below)) for cell in own]
    sentences = [_sample(first, failure.records, cause) for cause in failure.causes]
    return Cause(verdict=first.status, name=failure.name, sentence=" · ".join(sentences), cells=notes)


def _sample(first: Record, records: Sequence[Record], cause: str) -> str:
    """What the first record says of a cause, with its cell where others say something else."""
    said = _short(first, cause)
    return f"{first.cell}: {said}" if any(_short(record, cause) != said for record in records) else said


def _note(cell: CellView, records: Sequence[Record], *, below: bool) -> str:
    """A cell's distance to its bound, and of several seeds how many are meant."""
    far = minus(signed(cell.above, 1)) if below and cell.above is not None else ""
    count = sum(record.cell == cell.id for record in records)
    return " ".join(filter(None, [far, f"({count} of {len(cell.records)} seeds)" if len(cell.records) > 1 else ""]))


def _short(record: Record, cause: str) -> str:
    """What a record says, without what the line around it says: the cell, and the audit's name."""
    said = said_of(record, cause).replace(f" ({record.cell}, {record.profile}, seed {record.seeds.seed})", "")
    return said.removeprefix(f"audit {cause.removeprefix(AUDIT)}: ")


def _kind(record: Record, cause: str) -> str:
    """What a record says but for figures: errors that say the same have one cause."""
    return re.sub(r"\d+", "", _short(record, cause))


# The gate


def _of_gate(told: Sequence[Judgement], cells: Mapping[str, CellView]) -> list[Cause]:
    """What the gate says, but for cells that are missing because they broke off, as was said before."""
    new = [j for j in told if j.verdict is not Verdict.MISSING or j.cell not in cells]
    ordered = sorted(new, key=lambda j: (GRAVEST_FIRST.index(j.verdict), j.effect or 0.0, study_place(j.cell)))
    labels = {cell: view.first.labels for cell, view in cells.items()}
    return [_of_judgements(group, labels) for group in _grouped(ordered, lambda j: (j.verdict, _name(j)))]


def _name(judgement: Judgement) -> str:
    """What changed: of numerics, the stage."""
    if judgement.quantity in FLOWS:
        stage, _ = place_of([judgement])
        return f"{FLOWS[judgement.quantity][0]}, first at the stage {stage}" if stage else FLOWS[judgement.quantity][0]
    return "" if judgement.quantity == "cell" else judgement.kind


def _of_judgements(judged: Sequence[Judgement], labels: Mapping[str, Sequence[str]]) -> Cause:
    notes: dict[str, list[str]] = {}
    for j in judged:
        _, module = place_of([j])
        notes.setdefault(j.cell, []).append(change(j, labels.get(j.cell, ())) if j.effect is not None else tail(module))
    first = judged[0]
    detail = first.detail.partition(": ")[2] if first.quantity in FLOWS else first.detail
    sample = f"{first.cell}: " if len({j.detail for j in judged}) > 1 else ""
    cells = [(cell, ", ".join(filter(None, own))) for cell, own in notes.items()]
    sentence = f"{sample}{detail}" if first.effect is None else ""
    return Cause(verdict=str(first.verdict), name=_name(first), sentence=minus(sentence), cells=cells)


def tail(module: str) -> str:
    """The end of a module's name, where it is long."""
    parts = module.split(".")
    return module if len(parts) < 4 else f"…{'.'.join(parts[-3:])}"


def _grouped(items: Iterable[Item], key: Callable[[Item], object]) -> list[list[Item]]:
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def change(judgement: Judgement, labels: Sequence[str] = ()) -> str:
    """What changed and by how much; `labels` name the classes of its cell's task."""
    if judgement.effect is None:
        return judgement.detail
    name = score_title(judgement.quantity, labels)
    if judgement.kind == "instruments":
        return minus(f"{name} {judgement.effect:+.3f}")
    if judgement.kind != "quality":
        return minus(f"{name.replace('_', ' ')} {100 * judgement.effect:+.1f} %")
    low, high = judgement.low, judgement.high
    interval = "" if low is None or high is None else f" ({low:+.1f} to {high:+.1f})"
    return minus(f"{name} {judgement.effect:+.1f} points{interval}")


def minus(figures: str) -> str:
    """The text with a minus sign before its negative figures, which a hyphen is not."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", figures)
