"""A gate's answer in words. In: judgements. Out: text, Markdown or JSON."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

from lib.grid.tasks import TASKS
from lib.results.gates import FAILED_BY, KINDS, LEDGER, Judgement, Verdict, failing, kind_of

MAIN = {task.id: task.main_score for task in TASKS}
# From the one that weighs most: a group of judgements is as bad as its worst.
WEIGHT = (
    Verdict.MISSING,
    Verdict.WORSE,
    Verdict.CANNOT_TELL,
    Verdict.NEW,
    Verdict.BETTER,
    Verdict.SAME,
    Verdict.NOT_COMPARABLE,
)
COLUMNS = ("cell", "main score", "change", "95 % interval", "p", "sees", *KINDS)
WIDTHS = (15, 10, 6, 15, 6, 5, 12, 12, 14)


def worst(judged: Sequence[Judgement]) -> Verdict | None:
    """The verdict that weighs most."""
    return min((j.verdict for j in judged), key=WEIGHT.index, default=None)


def rows(judged: Sequence[Judgement]) -> list[tuple[str, ...]]:
    """A row a cell: its main score's change, and one verdict on each kind of figure."""
    table = []
    for cell in dict.fromkeys(judgement.cell for judgement in judged):
        own = [judgement for judgement in judged if judgement.cell == cell]
        name = MAIN[cell.split("_")[1]]
        main = next((j for j in own if j.quantity == name), own[0])
        table.append((cell, name, *_figures(main), *(str(worst([j for j in own if kind_of(j) == k]) or "-") for k in KINDS)))
    return table


def _figures(main: Judgement) -> tuple[str, ...]:
    interval = "-" if main.low is None else f"{main.low:+.1f} to {main.high:+.1f}"
    return (_signed(main.effect), interval, _plain(main.p, 3), _plain(main.smallest, 1))


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}"


def _plain(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def closing(judged: Sequence[Judgement], kinds: Sequence[str] = FAILED_BY) -> str:
    """One line: how many of each verdict on quality, and what the kinds that count say of the run."""
    cells = rows(judged)
    counts = {verdict: sum(row[6] == verdict for row in cells) for verdict in WEIGHT}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    answer = "worse than the baseline" if failing(judged, kinds) else "no worse than the baseline, as far as it can be told"
    return f"quality of {len(cells)} cells: {told}; by {' and '.join(kinds)} the run is {answer}"


def remarks(judged: Sequence[Judgement]) -> list[str]:
    """A sentence for every judgement that is not `same`, the gravest first; why speed was not compared is said once."""
    told = [j for j in judged if j.verdict not in (Verdict.SAME, Verdict.NOT_COMPARABLE)]
    lines = [_sentence(judgement) for judgement in sorted(told, key=lambda j: WEIGHT.index(j.verdict))]
    reasons = {j.detail: j.quantity for j in judged if j.verdict is Verdict.NOT_COMPARABLE}
    return lines + [f"{quantity} not compared: {detail}" for detail, quantity in reasons.items()]


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
    table = [" ".join(f"{name:<{width}}" for name, width in zip(COLUMNS, WIDTHS, strict=True)).rstrip()]
    table += [" ".join(f"{cell:<{width}}" for cell, width in zip(row, WIDTHS, strict=True)).rstrip() for row in rows(judged)]
    return "\n".join([*table, *remarks(judged), closing(judged, kinds)])


def as_markdown(judged: Sequence[Judgement], kinds: Sequence[str] = FAILED_BY) -> str:
    """The same for a pull request or a step summary."""
    table = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    table += [f"| {' | '.join(row)} |" for row in rows(judged)]
    return "\n".join([f"**{closing(judged, kinds)}**", "", *table, "", *(f"* {line}" for line in remarks(judged))])


def as_json(judged: Sequence[Judgement], kinds: Sequence[str] = FAILED_BY) -> str:
    """Every judgement with all its figures."""
    return json.dumps([asdict(judgement) for judgement in judged], indent=1)


FORMATS: dict[str, Callable[[Sequence[Judgement], Sequence[str]], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "json": as_json,
}
