"""The top of the page: a headline, and what to look at first."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tunegrid.page.cells import CellView
from tunegrid.results.answer import RunAnswer
from tunegrid.results.judgements import GRAVEST_FIRST, Judgement

SHOWN = 8  # items below the answer; the grid has them all


@dataclass(frozen=True, kw_only=True)
class Highlight:
    """One thing to look at."""

    cell: str
    verdict: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The answer.

    Attributes:
        state: of the answer.
        answer: its first sentence.
        more_sentences: its others, and why nothing was compared.
        items: what got worse, and where, the gravest first.
        more: how many items are left out.
    """

    state: str
    answer: str
    more_sentences: Sequence[str]
    items: Sequence[Highlight]
    more: int


def headline(answer: RunAnswer, cells: Sequence[CellView], remarks: Sequence[str]) -> Headline:
    """The answer with what to look at; `remarks` say what was not compared."""
    items = [*_worse(answer.failing), *_missed(cells)]
    first, *others = [minus(sentence) for sentence in answer.sentences]
    return Headline(
        state=answer.state,
        answer=first,
        more_sentences=[*others, *(f"{remark[0].upper()}{remark[1:]}." for remark in remarks if cells)],
        items=items[:SHOWN],
        more=max(0, len(items) - SHOWN),
    )


def _worse(failing: Sequence[Judgement]) -> list[Highlight]:
    ordered = sorted(failing, key=lambda j: (GRAVEST_FIRST.index(j.verdict), j.effect or 0.0))
    return [Highlight(cell=j.cell, verdict=j.verdict, sentence=change(j)) for j in ordered]


def change(judgement: Judgement) -> str:
    """What changed and by how much."""
    if judgement.effect is None:
        return judgement.detail
    if judgement.kind == "calibration":
        return minus(f"{judgement.quantity} {judgement.effect:+.3f} nats")
    if judgement.kind != "quality":
        return minus(f"{judgement.quantity.replace('_', ' ')} {100 * judgement.effect:+.1f} %")
    low, high = judgement.low, judgement.high
    interval = "" if low is None or high is None else f" ({low:+.1f} to {high:+.1f})"
    return minus(f"{judgement.quantity} {judgement.effect:+.1f} points{interval}")


def minus(figures: str) -> str:
    """The text with a minus sign before its negative figures, which a hyphen is not."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", figures)


def _missed(cells: Sequence[CellView]) -> list[Highlight]:
    """One line per cell that did not pass: those that did not finish, then those furthest below their bound."""
    begun = [cell for cell in cells if cell.status == "begun" and not cell.sentences]
    bad = [cell for cell in cells if cell.status not in ("passed", "reported") and cell not in begun]
    ordered = sorted(bad, key=lambda cell: (cell.status == "missed", 0.0 if cell.above is None else cell.above))
    return [Highlight(cell=cell.id, verdict=cell.status, sentence=_short(cell.sentences)) for cell in ordered]


def _short(sentences: Sequence[str]) -> str:
    """The first sentence, and how many there are more."""
    more = f"; {len(sentences) - 1} more" if len(sentences) > 1 else ""
    return f"{sentences[0]}{more}" if sentences else "it never came to an end"
