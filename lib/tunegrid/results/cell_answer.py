"""Gives the answer to readers that show tests: to one cell for JUnit files, and a run's as annotations of GitHub Actions."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tunegrid.record import Record
from tunegrid.results.answer import RunAnswer, State
from tunegrid.results.failures import causes_of, failures_of, said_of
from tunegrid.results.judgements import GRAVEST_FIRST, KINDS, Judgement, Verdict, evidence_of, in_words, worst
from tunegrid.results.outcomes import FAILED_BY, FLOWS
from tunegrid.results.table import count
from tunegrid.terminal import annotation, say

# Verdicts that have no cause.
UNCHANGED = (Verdict.SAME, Verdict.EQUAL, Verdict.ROUNDING)
# A module's name, its class and library, where what changed begins with them.
MODULE = re.compile(r"(\S+) \(\w+, [\w.]+\)")


@dataclass(frozen=True, kw_only=True)
class CellAnswer:
    """What is to be said of one record of a cell.

    Attributes:
        verdict: its status where it did not pass; else the gate's gravest verdict, as "worse" or "same"; without a gate
            "passed".
        cause: why, as the record or the gate says it; empty where nothing changed.
        stage: the first at which numerics changed, and `module`, the first whose output did; empty where none is known.
        kinds: the gate's verdict on each kind of figure.
        scores: of the record, by name; those that are no number are left out.
    """

    verdict: str
    cause: str
    stage: str
    module: str
    kinds: Mapping[str, str]
    scores: Mapping[str, float]

    @property
    def properties(self) -> dict[str, str]:
        """All of it that is known, by name, as text."""
        named = {"verdict": self.verdict, "cause": self.cause, "stage": self.stage, "module": self.module}
        scores = {f"scores.{name}": f"{score:.6g}" for name, score in self.scores.items()}
        return {name: text for name, text in named.items() if text} | dict(self.kinds) | scores


def cell_answer(record: Record, judged: Sequence[Judgement] = (), kinds: Sequence[str] = FAILED_BY) -> CellAnswer:
    """The answer to a record, with the gate's judgements on its cell. Speed decides only where it counts."""
    deciding = sorted((j for j in judged if j.decides), key=lambda j: GRAVEST_FIRST.index(j.verdict))
    passed = not causes_of(record)
    gravest = next((j for j in deciding if j.kind != "speed" or "speed" in kinds), None)
    stage, module = place_of(deciding)
    return CellAnswer(
        verdict=str(gravest.verdict) if passed and gravest else record.status,
        cause=_cause_of(gravest) if passed else "; ".join(record.missed),
        stage=stage,
        module=module,
        kinds={kind: str(verdict) for kind in KINDS if (verdict := worst(j for j in deciding if j.kind == kind))},
        scores={name: score for name, score in record.scores.items() if score is not None},
    )


def _cause_of(gravest: Judgement | None) -> str:
    return evidence_of(gravest) if gravest and gravest.verdict not in UNCHANGED else ""


def place_of(judged: Sequence[Judgement]) -> tuple[str, str]:
    """The stage at which numerics changed first, and the module, where the judgement names one; empty where none did."""
    changed = next((j for j in judged if j.quantity in FLOWS and j.verdict is Verdict.CHANGED), None)
    if changed is None:
        return "", ""
    stage, _, what = changed.detail.partition(": ")
    module = MODULE.match(what)
    return stage, module[1] if module else ""


MOST = 10  # of one level that GitHub shows of a step
MOST_LINES = 30  # of one annotation
TITLES = {State.FAILED: "tunegrid: failed", State.CANNOT_TELL: "tunegrid: cannot tell"}


def annotate(answer: RunAnswer, records: Sequence[Record]) -> None:
    """Print the annotations where GitHub Actions runs this; its runner reads them from what a step prints."""
    if os.environ.get("GITHUB_ACTIONS") == "true" and (lines := annotations(answer, records)):
        say("\n".join(lines), runner=True)


def annotations(answer: RunAnswer, records: Sequence[Record]) -> list[str]:
    """The lines to print; none for a run that passed."""
    if not answer.exit_code:
        return []
    whole = annotation("error", TITLES[answer.state], "\n".join(answer.sentences))
    return [whole, *(annotation("error", title, _limited(lines)) for title, lines in _groups(answer, records))][:MOST]


def _groups(answer: RunAnswer, records: Sequence[Record]) -> Iterator[tuple[str, list[str]]]:
    """What failed by its cause: a title, and a line for each cell."""
    for failure in failures_of(records):
        said = [[said_of(record, cause) for cause in failure.causes] for record in failure.records]
        yield failure.title, list(map("; ".join, said))
    for verdict in GRAVEST_FIRST:
        failing = [j for j in answer.failing if j.verdict is verdict]
        if failing:
            yield f"{count(len({j.cell for j in failing}), 'cell')} {verdict}", [in_words(j) for j in failing]


def _limited(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return "\n".join([*lines[:MOST_LINES], *more])
