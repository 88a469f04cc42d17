"""The answer in a sentence. In: cells with their judgements. Out: did it pass, what got worse, where."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lib.record import Status
from lib.results.gate_report import WEIGHT
from lib.results.gates import decides, kind_of
from lib.results.judgements import Judgement, Verdict

SHOWN = 8  # items below the answer; the grid has them all


class Cell(Protocol):
    """What the answer needs of a cell."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def status(self) -> Status:
        """How it ended."""

    @property
    def above(self) -> float | None:
        """How far its main score is above the bound."""

    @property
    def sentences(self) -> list[str]:
        """What it missed."""

    @property
    def failed_audits(self) -> int:
        """How many audits object."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to look at."""

    cell: str
    verdict: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The answer.

    Attributes:
        state: passed, failed, empty or reported.
        answer: one sentence.
        gate: a second one, on the comparison with an older run; empty without one.
        items: what got worse, and where, the gravest first.
        more: how many items are left out.
    """

    state: str
    answer: str
    gate: str
    items: Sequence[Item]
    more: int


def headline(
    cells: Sequence[Cell],
    baseline: str | None,
    judged: Sequence[Judgement],
    failing: Sequence[Judgement],
    remarks: Sequence[str],
) -> Headline:
    """The answer; `failing` are the judgements that count, `baseline` is the older run's name."""
    state, answer = _answer(cells, [judgement.cell for judgement in failing])
    items = [*_worse(failing), *_missed(cells)]
    gate = _gate(baseline, judged, failing, remarks) if baseline and cells else ""
    return Headline(state=state, answer=answer, gate=gate, items=items[:SHOWN], more=max(0, len(items) - SHOWN))


def _answer(cells: Sequence[Cell], worse: Sequence[str]) -> tuple[str, str]:
    if not cells:
        return "empty", "Nothing to show: this run holds no cell that was run."
    if all(cell.status == "reported" for cell in cells):
        return "reported", f"Reported: {_count(len(cells), 'result')} as published; nothing was run here."
    bad = [cell for cell in cells if cell.status != "passed"]
    if bad:
        return "failed", f"Failed: {_why(bad, len(cells))}."
    bounds = "reached every bound" if any(cell.above is not None for cell in cells) else "ran to the end, without bounds,"
    all_of = "the one cell" if len(cells) == 1 else f"all {len(cells)} cells"
    if worse:
        places = _count(len(set(worse)), "cell")
        return "failed", f"Worse: {places} got worse than before, though {all_of} {bounds} and passed every audit."
    return "passed", f"Passed: {all_of} {bounds} and passed every audit."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _why(bad: Sequence[Cell], total: int) -> str:
    """How many cells went wrong in which way."""
    unfinished = [cell for cell in bad if cell.status != "missed"]
    audits = [cell for cell in bad if cell.status == "missed" and cell.failed_audits]
    bounds = len(bad) - len(unfinished) - len(audits)
    parts = [(bounds, "missed a bound"), (len(audits), "failed an audit"), (len(unfinished), "did not finish")]
    (count, what), *others = [(count, what) for count, what in parts if count]
    return ", ".join([f"{count} of {_count(total, 'cell')} {what}", *(f"{count} {what}" for count, what in others)])


def _gate(baseline: str, judged: Sequence[Judgement], failing: Sequence[Judgement], remarks: Sequence[str]) -> str:
    if not judged:
        return remarks[0][0].upper() + remarks[0][1:] + "." if remarks else ""
    if failing:
        names = list(dict.fromkeys(judgement.cell for judgement in failing))
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"Worse than {baseline} in {some}."
    untold = sum(j.verdict is Verdict.CANNOT_TELL and decides(j) for j in judged)
    doubt = f", though the gate cannot tell for {_count(untold, 'main score')}" if untold else ""
    return f"No worse than {baseline}{doubt}."


def _worse(failing: Sequence[Judgement]) -> list[Item]:
    ordered = sorted(failing, key=lambda j: (WEIGHT.index(j.verdict), j.effect or 0.0))
    return [Item(cell=j.cell, verdict=j.verdict, sentence=change(j)) for j in ordered]


def change(judgement: Judgement) -> str:
    """What changed and by how much."""
    if judgement.effect is None:
        return judgement.detail
    if kind_of(judgement) != "quality":
        return minus(f"{judgement.quantity.replace('_', ' ')} {100 * judgement.effect:+.1f} %")
    low, high = judgement.low, judgement.high
    interval = "" if low is None or high is None else f" ({low:+.1f} to {high:+.1f})"
    return minus(f"{judgement.quantity} {judgement.effect:+.1f} points{interval}")


def minus(figures: str) -> str:
    """The text with a minus sign before its negative figures, which a hyphen is not."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", figures)


def _missed(cells: Sequence[Cell]) -> list[Item]:
    """A line a cell that did not pass: those that did not finish, then those furthest below their bound."""
    bad = [cell for cell in cells if cell.status not in ("passed", "reported")]
    ordered = sorted(bad, key=lambda cell: (cell.status == "missed", 0.0 if cell.above is None else cell.above))
    return [Item(cell=cell.id, verdict=cell.status, sentence=_short(cell.sentences)) for cell in ordered]


def _short(sentences: Sequence[str]) -> str:
    """The first sentence, and how many there are more."""
    more = f"; {len(sentences) - 1} more" if len(sentences) > 1 else ""
    return f"{sentences[0]}{more}" if sentences else "it never came to an end"
