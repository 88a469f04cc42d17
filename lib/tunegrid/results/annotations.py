"""Says a run's answer as annotations of GitHub Actions: one with the answer, then one for all causes of the same cells."""

import os
from collections.abc import Iterator, Sequence

from tunegrid.record import Record
from tunegrid.results.answer import RunAnswer, State
from tunegrid.results.failures import failures_of, said_of
from tunegrid.results.judgements import GRAVEST_FIRST, in_words
from tunegrid.results.words import count
from tunegrid.terminal import annotation, tell_runner

MOST = 10  # of one level that GitHub shows of a step
MOST_LINES = 30  # of one annotation
TITLES = {State.FAILED: "tunegrid: failed", State.CANNOT_TELL: "tunegrid: cannot tell"}


def annotate(answer: RunAnswer, records: Sequence[Record]) -> None:
    """Print the annotations where GitHub Actions runs this; its runner reads them from what a step prints."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        tell_runner(annotations(answer, records))


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
