"""Did training become slower, or larger? `tunegrid speed OLD NEW` compares two environments.

OLD and NEW are virtual environments, or their Pythons. In each round of a quick cell, a fresh process of each warms up; then
they make 40 updates in turn, A B B A. A cell is done when the interval of the ratio lies within 5 % or beyond; worse is only
what lies wholly beyond. Over all cells, equal environments are called worse in 1 of 100 comparisons at most.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median, median_low, stdev
from typing import Any

from tunegrid import ROOT
from tunegrid.commands.environments import code_of, output_of
from tunegrid.commands.paired_timing import MARK
from tunegrid.errors import InputError
from tunegrid.grid.cells import SMOKE, STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.results.judgements import Outcome, Verdict
from tunegrid.results.noise import Deviation
from tunegrid.results.statistics import critical_value
from tunegrid.terminal import say

MARGIN = 0.05  # a change that counts: halfway between an equal step and one that is 10 % slower
ALPHA = 0.01  # the chance that any cell is called worse, or within the margin, that is not; of each figure
LOOKS = (4, 6, 8, 10)  # rounds after which a cell is judged: each side was first as often as the other
LEAST_SD = 1e-4  # of a log ratio: no clock and no page tells less
ALL = "all cells"
WORDS = {"training": ("slower", "faster", "as fast"), "memory": ("larger", "smaller", "the same")}  # of each figure
Answers = Sequence[Mapping[str, Any]]  # of the updates of a turn: seconds, and peak_bytes until then


def log_ratios(before: Answers, after: Answers) -> dict[str, float]:
    """After over before, by figure: of seconds the median over updates, so that a single disturbed one has no effect."""
    training = median(math.log(new["seconds"] / old["seconds"]) for old, new in zip(before, after, strict=True))
    peaks = [turn[-1]["peak_bytes"] for turn in (before, after)]  # None if the system does not tell
    return {"training": training} | ({"memory": math.log(peaks[1] / peaks[0])} if all(peaks) else {})


@dataclass(frozen=True, kw_only=True)
class Change:
    """How far the second environment is from the first."""

    log_ratio: float  # after over before, its mean over rounds
    error: float  # its standard error
    df: float  # the degrees of freedom of that
    cells: int = 1  # how many are judged at once

    @property
    def interval(self) -> tuple[float, float]:
        """Of the ratio after over before: 1.1 is 10 % more."""
        tests = self.cells + 1 if self.cells > 1 else 1  # all cells together are one more
        reach = critical_value(ALPHA / len(LOOKS) / tests, self.df) * self.error
        return math.exp(self.log_ratio - reach), math.exp(self.log_ratio + reach)

    @property
    def verdict(self) -> Verdict:
        """Worse or better if the whole interval is beyond the margin, the same if it lies within."""
        (low, high), most = self.interval, 1 + MARGIN
        if low > most or high < 1 / most:
            return Verdict.WORSE if low > most else Verdict.BETTER
        return Verdict.SAME if 1 / most < low and high < most else Verdict.CANNOT_TELL

    @property
    def is_decided(self) -> bool:
        """Whether it needs no more rounds."""
        return self.verdict is not Verdict.CANNOT_TELL

    def in_words(self, more: str, less: str, same: str) -> str:
        """As in "4 % slower (2 to 6 %)"; an interval that holds both directions and more than the margin tells nothing."""
        hint = ": cannot tell" if not self.is_decided and self.interval[0] < 1 < self.interval[1] else ""
        percent, low, high = (round(100 * (ratio - 1)) for ratio in (math.exp(self.log_ratio), *self.interval))
        if percent < 0:
            percent, low, high, more = -percent, -high, -low, less
        return f"{f'{percent} % {more}' if percent else same} ({low} to {high} %){hint}"


def changes_of(ratios: Mapping[str, Sequence[float]]) -> dict[str, Change]:
    """Each cell's change, as of the first look that told it, else of its last look; cells without a look are left out.

    A verdict stands, whatever comes later: the error rate is that of the whole procedure. So are several cells together.
    """
    changes: dict[str, Change] = {}
    for look in LOOKS:
        seen = {cell: own[:look] for cell, own in ratios.items() if len(own) >= LOOKS[0]}
        noise = moderated({cell: Deviation(sd=max(stdev(own), LEAST_SD), df=len(own) - 1) for cell, own in seen.items()})
        for cell, own in seen.items():
            if len(own) == look and not (cell in changes and changes[cell].is_decided):
                error, df = noise[cell].sd / math.sqrt(look), noise[cell].df
                changes[cell] = Change(log_ratio=fmean(own), error=error, df=df, cells=len(ratios))
    return changes | ({ALL: over_all(changes.values())} if len(changes) == len(ratios) > 1 else {})


def over_all(changes: Iterable[Change]) -> Change:
    """The geometric mean of all cells' ratios; its degrees of freedom are Satterthwaite's (1946)."""
    means, squares, dfs = zip(*((change.log_ratio, change.error**2, change.df) for change in changes), strict=True)
    df = sum(squares) ** 2 / sum(square**2 / df for square, df in zip(squares, dfs, strict=True))
    return Change(log_ratio=fmean(means), error=math.sqrt(sum(squares)) / len(means), df=df, cells=len(means))


def moderated(own: Mapping[str, Deviation]) -> dict[str, Deviation]:
    """The larger of a cell's own deviation and the median over cells, which rests on half of their degrees of freedom."""
    usual, df = median_low([one.sd for one in own.values()]) if own else 0.0, sum(one.df for one in own.values()) / 2
    return {cell: Deviation(sd=max(one.sd, usual), df=max(one.df, df)) for cell, one in own.items()}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two environments, by the log ratios of each cell in the order of its rounds."""

    ratios: Mapping[str, Sequence[Mapping[str, float]]]

    @cached_property
    def changes(self) -> dict[str, dict[str, Change]]:
        """By figure, then by cell and of all cells; a figure that was not measured is left out."""
        own = {figure: {c: [r[figure] for r in of if figure in r] for c, of in self.ratios.items()} for figure in WORDS}
        return {figure: changes_of(by_cell) for figure, by_cell in own.items() if any(by_cell.values())}

    @property
    def open_cells(self) -> list[str]:
        """Cells that another round may tell more of: a figure of theirs is not told yet."""
        decided = [{cell for cell, change in own.items() if change.is_decided} for own in self.changes.values()]
        return [cell for cell in self.ratios if not decided or not all(cell in cells for cells in decided)]

    @property
    def outcome(self) -> Outcome:
        """Worse if anything is; no worse if every figure of every cell, and of all together, is told."""
        verdicts = {change.verdict for changes in self.changes.values() for change in changes.values()}
        if Verdict.WORSE in verdicts:
            return Outcome.WORSE
        return Outcome.CANNOT_TELL if self.open_cells or Verdict.CANNOT_TELL in verdicts else Outcome.NO_WORSE

    @property
    def report(self) -> list[str]:
        """A line for each of several cells, then the answer, as "Worse: training 9 % slower (7 to 11 %), memory ..."."""
        *cells, last = [*self.ratios, ALL] if len(self.ratios) > 1 else self.ratios
        said = {}
        for cell in (*cells, last):
            own = {figure: changes[cell] for figure, changes in self.changes.items() if cell in changes}
            words = [f"{figure} {change.in_words(*WORDS[figure])}" for figure, change in own.items()]
            said[cell] = ", ".join(words) or "too few rounds"
        answer = f"{self.outcome.capitalize()}: {said[last]}" + (f" over {len(cells)} cells" if cells else "")
        return [*(f"{cell}: {said[cell]}" for cell in cells), answer]


UPDATES = 40  # of a round
LIB = str(ROOT / "lib")  # the same suite on both sides
LIBRARIES = f"""import json, sys; sys.path.insert(0, {LIB!r}); from tunegrid import machine
print(json.dumps([machine.versions(), machine.library_digests()]))"""


def python_in(place: Path) -> Path:
    """The Python of a virtual environment, or the one that this is; raises InputError where there is none."""
    for path in (place, *(place / folder / "python" for folder in ("bin", "Scripts")), place / "Scripts" / "python.exe"):
        if path.is_file():
            return path.absolute()
    raise InputError(f"{place} is no virtual environment and no Python; give a folder that `python -m venv` made")


def differences(pythons: Sequence[Path]) -> str:
    """How the libraries of two Pythons differ, in words; raises InputError where one cannot be asked."""
    answers = [output_of([str(python), "-c", LIBRARIES], f"{python} lacks what tunegrid needs")[-1] for python in pythons]
    (old, old_code), (new, new_code) = map(json.loads, answers)
    changes = [f"{name} {old[name]} -> {new[name]}" for name in old if old[name] != new[name]]
    changes += [f"{name} (other code)" for name in old if old[name] == new[name] and old_code.get(name) != new_code.get(name)]
    return ", ".join(changes) or "the same libraries in both"


def next_answer(process: subprocess.Popen[str]) -> Any:
    """What a process answers next; raises InputError if it ends without."""
    said = ""
    for line in process.stdout or ():
        _, found, answer = line.partition(MARK)
        if found:
            return json.loads(answer)
        said = line.strip() or said
    raise InputError(f"`{shlex.join(process.args)}` fails, so leave the cell out of --cells: {said}")  # type: ignore[arg-type]


def paired_updates(commands: Sequence[Sequence[str]], number: int) -> tuple[Answers, Answers]:
    """Answers of two processes that update in turn, A B B A (in every second round B A A B), so that noise slows both alike."""
    order, answers = ((0, 1) if number % 2 else (1, 0)), (list[Any](), list[Any]())
    own = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")} | {"PYTHONPATH": LIB}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with ExitStack() as stack:
        processes = []
        for command in commands:
            process = subprocess.Popen(command, env=own, cwd=ROOT, encoding="utf-8", errors="replace", **pipes)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in processes:
            next_answer(process)  # it is ready
        for update in range(UPDATES):
            for side in reversed(order) if update % 2 else order:
                with suppress(BrokenPipeError):  # it has ended, which reading tells
                    os.write(processes[side].stdin.fileno(), b"\n")  # type: ignore[union-attr]
                answers[side].append(next_answer(processes[side]))
    return answers


def compare(places: Sequence[Path], cells: Sequence[str], device: str) -> Comparison:
    """Compare two environments until every cell is decided or had all its rounds; raises InputError if something cannot run."""
    comparison = Comparison(ratios={STUDY.cell(cell, QUICK_PROFILE).id: [] for cell in cells})
    pythons = [python_in(place) for place in places]
    say(differences(pythons))
    for number in range(1, LOOKS[-1] + 1):
        ratios = {cell: list(own) for cell, own in comparison.ratios.items()}
        for cell in comparison.open_cells:
            commands = [[str(python), "-m", "tunegrid.commands.paired_timing", cell, device] for python in pythons]
            turns = paired_updates(commands, number)
            ratios[cell].append(log_ratios(*turns))
            shown = " -> ".join(f"{1000 * median(one['seconds'] for one in turn):.1f}" for turn in turns)
            say(f"round {number} of at most {LOOKS[-1]}  {cell}  {shown} ms an update")
        comparison = Comparison(ratios=ratios)
    return comparison


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, say what was found; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid speed", description=__doc__)
    parser.add_argument("before", type=Path, metavar="OLD", help="a virtual environment, or its Python")
    parser.add_argument("after", type=Path, metavar="NEW", help="another one")
    parser.add_argument("--cells", default=",".join(SMOKE), metavar="ID,ID", help="quick cells (default %(default)s)")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu, cuda or cuda:N (default cpu)")
    options = parser.parse_args(arguments)

    def report() -> int:
        comparison = compare((options.before, options.after), options.cells.split(","), options.device)
        say("\n".join(comparison.report))
        return comparison.outcome.exit_code

    return code_of(parser, report, "the same command begins anew")
