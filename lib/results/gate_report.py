"""A gate's answer in words. In: judgements. Out: text, Markdown or JSON."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from lib.results.costs import LEDGER
from lib.results.gates import FAILED_BY, KINDS, decides, failing, kind_of
from lib.results.judgements import Judgement, Verdict, by_cell
from lib.results.table import Column, lines, markdown, number, signed

# The gravest first: a group of judgements is as bad as its worst.
WEIGHT = (
    Verdict.MISSING,
    Verdict.WORSE,
    Verdict.CHANGED,
    Verdict.TOO_GOOD,
    Verdict.CANNOT_TELL,
    Verdict.NEW,
    Verdict.BETTER,
    Verdict.ROUNDING,
    Verdict.SAME,
    Verdict.EQUAL,
    Verdict.NOT_COMPARABLE,
)
# Not worth a sentence of their own.
QUIET = (Verdict.SAME, Verdict.EQUAL, Verdict.ROUNDING, Verdict.NOT_COMPARABLE)
COLUMNS = (
    Column(title="cell", width=15),
    Column(title="main score", width=10),
    Column(title="change", width=6),
    Column(title="95 % interval", width=15),
    Column(title="p", width=6),
    Column(title="sees", width=5),
    *(Column(title=kind, width=12) for kind in KINDS),
)


def worst(judged: Sequence[Judgement]) -> Verdict | None:
    """The gravest verdict."""
    return min((j.verdict for j in judged), key=WEIGHT.index, default=None)


def rows(judged: Sequence[Judgement]) -> list[tuple[str, ...]]:
    """A row a cell: its main score's change, and one verdict on each kind of figure."""
    table = []
    for cell, judgements in by_cell(judged).items():
        own = [judgement for judgement in judgements if decides(judgement)]
        name = own[0].main_score
        main = next((j for j in own if j.quantity == name), own[0])
        table.append((cell, name, *_figures(main), *(str(worst([j for j in own if kind_of(j) == k]) or "-") for k in KINDS)))
    return table


def _figures(main: Judgement) -> tuple[str, ...]:
    interval = "-" if main.low is None else f"{main.low:+.1f} to {main.high:+.1f}"
    return (signed(main.effect, 1), interval, number(main.p, 3), number(main.smallest, 1))


def closing(judged: Sequence[Judgement], kinds: Sequence[str] = FAILED_BY) -> str:
    """One line: how many of each verdict on numerics and quality, and what the kinds that count say of the run."""
    cells = rows(judged)
    answer = "worse than the baseline" if failing(judged, kinds) else "no worse than the baseline, as far as it can be told"
    counts = f"numerics of {len(cells)} cells: {_counts(cells, 'numerics')}; quality: {_counts(cells, 'quality')}"
    return f"{counts}; by {' and '.join(kinds)} the run is {answer}"


def _counts(cells: Sequence[tuple[str, ...]], kind: str) -> str:
    """How many cells have each verdict on one kind of figure, the gravest first."""
    place = len(COLUMNS) - len(KINDS) + KINDS.index(kind)
    counts = {verdict: sum(row[place] == verdict for row in cells) for verdict in WEIGHT}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "none"


def remarks(judged: Sequence[Judgement]) -> list[str]:
    """A sentence for every judgement that is not `same`, the gravest first; each reason not to compare comes once."""
    told = [j for j in judged if j.verdict not in QUIET and decides(j)]
    sentences = [_sentence(judgement) for judgement in sorted(told, key=lambda j: WEIGHT.index(j.verdict))]
    reasons = {j.detail: j.quantity for j in judged if j.verdict is Verdict.NOT_COMPARABLE}
    return sentences + [f"{quantity} not compared: {detail}" for detail, quantity in reasons.items()]


def _sentence(judgement: Judgement) -> str:
    if judgement.effect is None:
        change = ""
    elif kind_of(judgement) == "quality":
        change = f" {judgement.effect:+.2f} points"
    else:
        digits = 3 if judgement.quantity in LEDGER else 1
        change = f" {100 * judgement.effect:+.{digits}f} %"
    sees = f"; sees drops from {judgement.smallest:.1f}" if judgement.smallest is not None else ""
    return f"{judgement.verdict}: {judgement.cell} {judgement.quantity}{change} ({judgement.detail}{sees})"


def as_text(judged: Sequence[Judgement], kinds: Sequence[str] = FAILED_BY) -> str:
    """A table, what is not the same, and one closing line."""
    return "\n".join([*lines(COLUMNS, rows(judged)), *remarks(judged), closing(judged, kinds)])


def as_markdown(judged: Sequence[Judgement], kinds: Sequence[str] = FAILED_BY) -> str:
    """The same for a pull request or a step summary."""
    table = [f"| {' | '.join(column.title for column in COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    table += [f"| {' | '.join(map(markdown, row))} |" for row in rows(judged)]
    sentences = [f"* {markdown(line)}" for line in remarks(judged)]
    return "\n".join([f"**{markdown(closing(judged, kinds))}**", "", *table, "", *sentences])


def as_json(judged: Sequence[Judgement], kinds: Sequence[str] = FAILED_BY) -> str:
    """Every judgement with all its figures."""
    return json.dumps([asdict(judgement) for judgement in judged], indent=1)


FORMATS: dict[str, Callable[[Sequence[Judgement], Sequence[str]], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "json": as_json,
}


def write_step_summary(judged: Sequence[Judgement], kinds: Sequence[str]) -> None:
    """Append the verdicts to GitHub's step summary, where there is one."""
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if target:
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(as_markdown(judged, kinds) + "\n")
