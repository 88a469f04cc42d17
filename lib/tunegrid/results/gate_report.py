"""Prints a gate's judgements as text, Markdown or JSON."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tunegrid.results import report as printed
from tunegrid.results.answer import RunAnswer
from tunegrid.results.judgements import GRAVEST_FIRST, KINDS, Judgement, Verdict, by_cell, evidence_of, in_words, worst
from tunegrid.results.outcomes import FLOWS
from tunegrid.results.table import SHOWN, Column, lines, markdown, markdown_sentence, number, signed

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
VERDICTS = slice(len(COLUMNS) - len(KINDS), len(COLUMNS))  # of a row
NUMERICS_COLUMNS = (Column(title="cell", width=15), Column(title="numerics", width=14), Column(title="what"))


def rows(judged: Sequence[Judgement]) -> list[tuple[str, ...]]:
    """One row per cell: its main score's change, and one verdict on each kind of figure."""
    cells = []
    for cell, judgements in by_cell(judged).items():
        own = [judgement for judgement in judgements if judgement.decides]
        name = own[0].main_score
        main = next((j for j in own if j.quantity == name), own[0])
        cells.append((cell, name, *_figures(main), *(str(worst([j for j in own if j.kind == k]) or "-") for k in KINDS)))
    return cells


def _figures(main: Judgement) -> tuple[str, ...]:
    interval = "-" if main.low is None else f"{main.low:+.1f} to {main.high:+.1f}"
    return (signed(main.effect, 1), interval, number(main.p, 3), number(main.smallest, 1))


def counted(judged: Sequence[Judgement]) -> str:
    """One line: how many cells have each verdict on numerics and on quality."""
    cells = rows(judged)
    return f"numerics of {len(cells)} cells: {_counts(cells, 'numerics')}; quality: {_counts(cells, 'quality')}"


def _counts(cells: Sequence[tuple[str, ...]], kind: str) -> str:
    """How many cells have each verdict on one kind of figure, the gravest first."""
    column = VERDICTS.start + KINDS.index(kind)
    counts = {verdict: sum(row[column] == verdict for row in cells) for verdict in GRAVEST_FIRST}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "none"


def remarks(judged: Sequence[Judgement], failing: Sequence[Judgement] = ()) -> list[str]:
    """Sentences on all that is not `same`: what fails the run first, then the gravest, speed last where it fails nothing.

    Each reason not to compare comes once. Where more than three cells have one verdict on one quantity, and on one stage of
    numerics, the sentence is of the one that moved most: the table names the others.
    """
    alike: dict[tuple[bool, bool, int, str, str], list[Judgement]] = {}
    for j in judged:
        if j.verdict not in QUIET and j.decides and not (j.kind == "instruments" and j.verdict is Verdict.CANNOT_TELL):
            fails = j in failing
            order = (not fails, j.kind == "speed" and not fails, GRAVEST_FIRST.index(j.verdict))
            alike.setdefault((*order, j.quantity, j.detail if j.quantity in FLOWS else ""), []).append(j)
    groups = sorted(alike.items(), key=lambda item: item[0][:3])
    reasons = {j.detail: j.quantity for j in judged if j.verdict is Verdict.NOT_COMPARABLE}
    sentences = [sentence for _, group in groups for sentence in _of_alike(group)]
    return sentences + [f"{quantity} not compared: {detail}" for detail, quantity in reasons.items()]


def _of_alike(group: Sequence[Judgement]) -> list[str]:
    """Each of a few; of more cells the one that moved most."""
    count = len({j.cell for j in group})
    if count <= SHOWN:
        return list(map(in_words, group))
    most = max(group, key=lambda j: abs(j.effect or 0.0))
    which = "as" if most.effect is None else "most of all"
    return [f"{most.verdict}: {most.quantity} of {count} cells, {which} {evidence_of(most)}"]


def numerics_table(judged: Sequence[Judgement], furthest: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the verdict on each cell's numerics rests on, and how far figures of cells that are not equal lie apart at most.

    Args:
        judged: by the gate.
        furthest: by arithmetic, the most by which each figure differs.
    """
    cells = [(j.cell, str(j.verdict), j.detail) for j in judged if j.quantity == "numerics"]
    most = [(kind, ", ".join(f"{name} {apart:.1e}" for name, apart in own.items())) for kind, own in sorted(furthest.items())]
    return [*lines(NUMERICS_COLUMNS, cells), *(f"furthest apart, {kind}: {figures}" for kind, figures in most)]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a gate prints.

    Attributes:
        flips: test rows that changed, where they were asked for.
        causes: lines on the cells that failed by themselves, which the terminal has in the table of cells.
    """

    judged: Sequence[Judgement]
    answer: RunAnswer
    flips: Sequence[printed.Section] = ()
    causes: Sequence[str] = ()

    @property
    def remarks(self) -> list[str]:
        """Sentences on what is not the same."""
        return remarks(self.judged, self.answer.failing)


def as_text(report: Report) -> str:
    """A table, what is not the same, how many cells have each verdict, the rows that changed, and the answer."""
    return "\n".join([verdict_table(report), *report.answer.sentences])


def verdict_table(report: Report, *, brief: bool = False) -> str:
    """The same without the answer; a brief one shows findings alone."""
    flips = [printed.text(report.flips)] if report.flips else []
    table = _findings_alone(report) if brief else lines(COLUMNS, rows(report.judged))
    return "\n".join([*table, *report.remarks, *flips, counted(report.judged)])


def _findings_alone(report: Report) -> list[str]:
    """A row for each cell with a finding; more than three cells with the same findings are one line with their names."""
    alike: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    cells = rows(report.judged)
    for row in cells:
        alike.setdefault(_findings(row, report.answer.failing), []).append(row)
    quiet = len(alike.pop((), ()))
    few = [row for group in alike.values() if len(group) <= SHOWN for row in group]
    table = lines(COLUMNS, few) if few else []
    many = [
        f"{len(group)} cells {', '.join(findings)}: {', '.join(_with_its_worst(row[0], report.judged) for row in group)}"
        for findings, group in alike.items()
        if len(group) > SHOWN
    ]
    left_out = [f"{quiet} of {len(cells)} cells have no findings: -q leaves them out"] if quiet else []
    return [*table, *many, *left_out]


def _findings(row: Sequence[str], failing: Sequence[Judgement]) -> tuple[str, ...]:
    """Of a cell's row the verdicts to be told; of speed and instruments, which the remarks sum up, those that fail the run."""
    told = {*KINDS[:3], *(j.kind for j in failing if j.cell == row[0])}
    verdicts = zip(KINDS, row[VERDICTS], strict=True)
    return tuple(f"{kind} {verdict}" for kind, verdict in verdicts if kind in told and verdict not in (*QUIET, "-"))


def _with_its_worst(cell: str, judged: Sequence[Judgement]) -> str:
    """A cell's name, with the score that has the gravest verdict where a finding is of scores."""
    own = [j for j in judged if j.cell == cell and j.kind == "quality" and j.verdict not in QUIET and j.effect is not None]
    gravest = min((j for j in own if j.decides), key=lambda j: (GRAVEST_FIRST.index(j.verdict), j.effect), default=None)
    return f"{cell} {gravest.quantity} {signed(gravest.effect, 1)}" if gravest else cell


def as_markdown(report: Report) -> str:
    """The answer first, for a pull request or a step summary; what failed, and a table where anything was judged."""
    first, *others = map(markdown_sentence, report.answer.sentences)
    causes = "\n".join(f"{' ' * (len(line) - len(line.lstrip()))}* {markdown(line.lstrip())}" for line in report.causes)
    parts = [f"**{first}**", *others, *([causes] if causes else [])]
    if not report.judged:
        return "\n\n".join(parts)
    titles = [f"| {' | '.join(column.title for column in COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    cells = [f"| {' | '.join(map(markdown, row))} |" for row in rows(report.judged)]
    sentences = [f"* {markdown(line)}" for line in report.remarks]
    flips = [printed.markdown(report.flips)] if report.flips else []
    return "\n\n".join([*parts, markdown(counted(report.judged)), "\n".join([*titles, *cells]), "\n".join(sentences), *flips])


def as_json(report: Report) -> str:
    """Every judgement with all its figures."""
    return json.dumps([asdict(j) for j in report.judged], indent=1)


FORMATS: dict[str, Callable[[Report], str]] = {"text": as_text, "markdown": as_markdown, "json": as_json}


def write_step_summary(report: Report) -> None:
    """Append the answer, what failed and the verdicts to GitHub's step summary, where there is one."""
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if target:
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(as_markdown(report) + "\n")
