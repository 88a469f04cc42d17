"""Is a run worse than another?

`tunegrid gate OLD.json NEW.json` says, cell by cell: better, same, worse, cannot tell.

The exit code is 1 if a score or a memory figure is worse, a cell is missing, or a cell of the new
run did not pass; with `speed` or `instruments` in --gate-on, also if one of these is worse, and
with `numerics` if numerics changed. Otherwise it is 6 if numerics changed, tensors hold fewer
bytes, a cell's recipe changed, a known fault of a library is new, NEW.json is unsealed, all cells
were too short to judge, or no figure of a kind in --gate-on could be compared; with `cannot-tell`,
also if any main score cannot be decided. Changed numerics do not count if --gate-on has neither
`numerics` nor `changed`. The exit code is 2 if the baseline is unsealed or a file was changed since
it was written, and 0 otherwise.

`--format json` prints an object: `answer` (the first line), `exit_code`, `reasons`, `next_step`,
`environments` (libraries that differ), `warning` and `judgements`. In GitHub Actions, the answer
and the table are also written to the step summary.
"""

import argparse
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tunegrid.commands.cli import add_gate_on
from tunegrid.gate.judgements import COUNTED, DEFAULT_KINDS, Judgement, parse_kinds, verdict_text
from tunegrid.record import Record
from tunegrid.report.environments import environment_changes, environment_sentences
from tunegrid.report.summary import annotate, gate_section, summary, table, write_step_summary
from tunegrid.report.tables import Section, text
from tunegrid.report.verdict import Rank, RunVerdict, run_verdict
from tunegrid.runs.files import SavedRun, get_saved, read_saved
from tunegrid.terminal import say


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the verdicts and the answer; return the exit code.

    Raises InputError if a run cannot be read or judged.
    """
    parser = argparse.ArgumentParser(prog="tunegrid gate", description=__doc__)
    add = parser.add_argument
    add("old", type=Path, metavar="OLD.json", help="the baseline")
    add("new", type=Path, metavar="NEW.json", help="the run to judge")
    add("--format", choices=("text", "markdown", "json"), default="text")
    add_gate_on(parser, COUNTED, DEFAULT_KINDS, former_name="--on")
    add(
        "--numerics",
        action="store_true",
        help="also print the evidence for verdicts on numerics; JSON always has it",
    )
    options = parser.parse_args(arguments)
    given = ["tunegrid", "gate", str(options.old), str(options.new)]
    if options.numerics:
        given.append("--numerics")
    runs = read_saved(options.old), read_saved(options.new)
    answer = judge(*runs, parse_kinds(options.gate_on), given)
    print_answer(answer, options)
    return answer.exit_code


@dataclass(frozen=True, kw_only=True)
class GateAnswer:
    """The gate's answer about a run; `str()` returns all its sentences."""

    verdict: RunVerdict
    judgements: Sequence[Judgement]  # one for each figure of each cell
    environments: Sequence[str] = ()  # libraries that differ, as in "peft 0.21.2 -> 0.22.0"
    notes: Sequence[str] = ()  # sentences on how the environments differ
    warning: str = ""  # set if a run is unsealed

    @property
    def answer(self) -> str:
        """The first sentence of the verdict, after a warning if the run is unsealed."""
        return " ".join(filter(None, (self.warning, self.verdict.answer)))

    @property
    def exit_code(self) -> int:
        """1 if the run failed or is worse, otherwise 6 or 0.

        It is 6 if the run changed, cannot be judged or is unsealed.
        """
        if self.warning and not self.verdict.exit_code:
            return Rank.CANNOT_TELL.exit_code
        return self.verdict.exit_code

    @property
    def cells(self) -> dict[str, list[str]]:
        """The judgements by cell, as in "same: bert_sa_lora accuracy +0.20 points (...)"."""
        statements: dict[str, list[str]] = {}
        for judgement in self.judgements:
            statements.setdefault(judgement.cell, []).append(verdict_text(judgement))
        return statements

    def __str__(self) -> str:
        """The warning, if any, the sentences of the verdict, and those on the environments."""
        return "\n".join(filter(None, (self.warning, *self.verdict.sentences, *self.notes)))

    def to_json(self) -> str:
        """The answer as JSON, whose keys stay the same from release to release."""
        content = {
            "answer": self.verdict.answer,
            "exit_code": self.exit_code,
            "reasons": self.verdict.reasons,
            "next_step": self.verdict.next_step,
            "environments": self.environments,
            "warning": self.warning,
            "judgements": [asdict(judgement) for judgement in self.judgements],
        }
        return json.dumps(content, indent=1)


def gate(
    old: Path | str | Record | Iterable[Record],
    new: Path | str | Record | Iterable[Record],
    *,
    gate_on: str | Iterable[str] = DEFAULT_KINDS,
) -> GateAnswer:
    """Answer as `tunegrid gate` does: is the new run worse than the old one?

    Each run is a file, a record or several records. Only files contain the training noise of cells
    that you calibrated yourself. Raises InputError if a run cannot be read or judged.
    """
    names = gate_on if isinstance(gate_on, str) else ",".join(gate_on)
    kinds = parse_kinds(names)
    return judge(get_saved(old, "the old run"), get_saved(new, "the new run"), kinds)


def judge(
    old: SavedRun,
    new: SavedRun,
    kinds: Sequence[str],
    given: Sequence[str] = (),
) -> GateAnswer:
    """Judge the new run against the old one; `given` holds the words of the command line.

    Raises InputError if a file was changed since it was written, or if the gate rejects a run.
    """
    from tunegrid.gate.gate import Run, gate  # imports scipy

    old.check_unchanged()
    new.check_unchanged()
    judgements = gate(Run.of_file(old), Run.of_file(new))
    verdict = run_verdict(
        new.records,
        judgements,
        kinds,
        baseline=old.path.name,
        before=old.records,
        command=new.command,
        given=shlex.join(given),
        files=(str(old.path), str(new.path)),
    )
    warning = f"{new.warning}." if new.doubt else ""
    return GateAnswer(
        verdict=verdict,
        judgements=judgements,
        environments=environment_changes(old.records, new.records),
        notes=environment_sentences(old.records, new.records),
        warning=warning,
    )


def print_answer(answer: GateAnswer, options: argparse.Namespace) -> None:
    """Print the answer in the chosen format, and append it to GitHub's step summary, if any."""
    verdict = answer.verdict
    judgements = answer.judgements
    sections = []
    if options.numerics:
        rows = []
        for judgement in judgements:
            if judgement.kind == "numerics":
                rows.append(
                    {
                        "cell": judgement.cell,
                        "numerics": judgement.verdict,
                        "what": judgement.detail,
                    }
                )
        sections = [table(dict.fromkeys(("cell", "numerics", "what"), ""), rows)]
    warning = [answer.warning] if answer.warning else []
    markdown_text = summary(verdict, judgements, answer.notes, sections)
    words = "\n\n".join([*warning, markdown_text])
    if options.format == "json":
        for sentence in warning:
            say(sentence, error=True)
        say(answer.to_json())
    elif options.format == "markdown":
        say(words)
    else:
        figures = gate_section(judgements, verdict.failing)
        answer_section = Section(sentences=[*verdict.sentences, *answer.notes])
        say(text([Section(sentences=warning), *sections, figures, answer_section]))
        annotate(verdict)
    write_step_summary(words)
