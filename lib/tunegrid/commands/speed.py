"""Did training become slower, or larger? `tunegrid speed OLD NEW` compares two environments.

OLD and NEW are virtual environments, or their Pythons. In each round of a quick cell, each
environment starts a new process and warms up; then the processes make 40 updates each, taking turns
in the order A B B A. A cell is done after ten rounds, or when the intervals for its training time
and its peak memory each lie entirely within or entirely beyond 5 %. It is worse only if an interval
lies entirely above 5 %. Over all cells, equal environments are called worse in at most 1 of 100
comparisons. If interrupted, the command starts over.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, median_low, stdev
from typing import Any

from tunegrid import ROOT
from tunegrid.commands.packages import read_output
from tunegrid.commands.paired_timing import ANSWER_PREFIX
from tunegrid.errors import InputError
from tunegrid.gate.judgements import Verdict
from tunegrid.grid.cells import SMOKE, STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.terminal import say
from tunegrid.words import some

MARGIN = 0.05  # smallest change that counts: halfway between no change and 10 % slower
ERROR_RATE = 0.01  # chance that any figure is falsely called worse or within the margin
# Rounds after which figures are judged. They are even, so that each side goes first equally often.
LOOKS = (4, 6, 8, 10)
# Least standard deviation of a log ratio, since clocks and memory pages have no finer resolution
LEAST_SD = 1e-4
ROUND_UPDATES = 40
RESULT_WORDS = {
    "training": ("slower", "faster", "as fast"),
    "memory": ("larger", "smaller", "the same"),
}
LIB = str(ROOT / "lib")  # both sides run the same suite
PRINT_VERSIONS = f"""import json, sys; sys.path.insert(0, {LIB!r}); from tunegrid import machine
print(json.dumps([machine.versions(), machine.library_digests()]))"""
Turn = Sequence[Mapping[str, Any]]  # for each update, its seconds and the peak_bytes so far
Key = tuple[str, str]  # a cell and a figure
Ratios = Mapping[Key, Sequence[float]]  # one per round: log of the second side over the first


@dataclass(frozen=True)
class FigureShift:
    """The mean log ratio of a figure (second environment over first), and its interval."""

    log_ratio: float
    reach: float  # half the width of the interval

    @property
    def verdict(self) -> Verdict:
        """SAME if the whole interval is within the margin, WORSE or BETTER if it is beyond.

        CANNOT_TELL if it straddles the margin.
        """
        margin = math.log(1 + MARGIN)
        size = abs(self.log_ratio)
        if size - self.reach > margin:
            return Verdict.WORSE if self.log_ratio > 0 else Verdict.BETTER
        return Verdict.SAME if size + self.reach < margin else Verdict.CANNOT_TELL

    def describe(self, figure: str) -> str:
        """Describe the shift in a phrase such as "training 4 % slower (2 to 6 %)"."""
        more, less, same = RESULT_WORDS[figure]
        percent = _percent(self.log_ratio)
        low = _percent(self.log_ratio - self.reach)
        high = _percent(self.log_ratio + self.reach)
        result = same
        if percent > 0:
            result = f"{percent} % {more}"
        elif percent < 0:
            result = f"{-percent} % {less}"
            low, high = -high, -low
        note = ": cannot tell" if self.verdict is Verdict.CANNOT_TELL else ""
        return f"{figure} {result} ({low} to {high} %){note}"


def _percent(log_ratio: float) -> int:
    return round(100 * (math.exp(log_ratio) - 1))


def find_shifts(ratios: Ratios, tests: int) -> dict[Key, FigureShift]:
    """Judge each figure at the first of the `LOOKS` that decides it, or else at its last look.

    A decision is final, because `ERROR_RATE` is divided among all looks and `tests`. The machine
    disturbs all cells alike, so a cell's standard deviation is taken to be at least the median over
    cells, with at least half of the cells' total degrees of freedom. Figures with too few rounds
    are omitted.
    """
    from tunegrid.gate.statistics import critical_value  # imports scipy

    shifts: dict[Key, FigureShift] = {}
    for look in LOOKS:
        samples = {}
        for key, sample in ratios.items():
            if len(sample) >= LOOKS[0]:
                samples[key] = sample[:look]
        for key, sample in samples.items():
            if len(sample) < look or not is_open(key, shifts):
                continue
            peers = [peer for (_, figure), peer in samples.items() if figure == key[1]]
            df = max(look - 1, sum(len(peer) - 1 for peer in peers) / 2)
            sd = max(stdev(sample), median_low(map(stdev, peers)), LEAST_SD)
            quantile = critical_value(ERROR_RATE / len(LOOKS) / tests, df)
            reach = quantile * sd / math.sqrt(look)
            shifts[key] = FigureShift(fmean(sample), reach)
    return shifts


def find_python(path: Path) -> Path:
    """The Python of a virtual environment, or the path itself if it is a file.

    Raises InputError if there is no Python.
    """
    for candidate in (path, path / "bin" / "python"):
        if candidate.is_file():
            return candidate.absolute()
    advice = "give a folder that `python -m venv` made"
    raise InputError(f"{path} is no virtual environment and no Python; {advice}")


def differences(pythons: Sequence[Path]) -> str:
    """Describe how the libraries of two Pythons differ.

    Raises InputError if one of them cannot import tunegrid.
    """
    answers = []
    for python in pythons:
        fault = f"{python} lacks what tunegrid needs"
        lines = read_output([str(python), "-c", PRINT_VERSIONS], fault)
        answers.append(json.loads(lines[-1]))
    (old, old_code), (new, new_code) = answers
    changes = []
    same_versions = []
    for name in old:
        if old[name] != new[name]:
            changes.append(f"{name} {old[name]} -> {new[name]}")
        elif old_code.get(name) != new_code.get(name):
            same_versions.append(f"{name} (other code)")
    return ", ".join(changes + same_versions) or "the same libraries in both"


def next_answer(process: subprocess.Popen[str]) -> Any:
    """Read the next answer of a process; raises InputError if the process ends without one."""
    last_line = ""
    for line in process.stdout or ():
        _, prefix, answer = line.partition(ANSWER_PREFIX)
        if prefix:
            return json.loads(answer)
        last_line = line.strip() or last_line
    command = shlex.join(process.args)  # type: ignore[arg-type]
    raise InputError(f"`{command}` fails, so leave the cell out of --cells: {last_line}")


def paired_updates(commands: Sequence[Sequence[str]], number: int) -> tuple[Turn, Turn]:
    """Collect the answers of two processes that train in turn, so that noise slows both alike.

    The order of updates is A B B A, or B A A B if the round's `number` is even.
    """
    order = (0, 1) if number % 2 else (1, 0)
    turns: tuple[list[Any], list[Any]] = ([], [])
    environment = os.environ.items()
    variables = {name: text for name, text in environment if not name.startswith("PYTEST_")}
    variables["PYTHONPATH"] = LIB
    with ExitStack() as stack:
        processes = []
        for command in commands:
            process = subprocess.Popen(
                command,
                env=variables,
                cwd=ROOT,
                encoding="utf-8",
                errors="replace",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in processes:
            next_answer(process)  # wait until it is ready
        for update in range(ROUND_UPDATES):
            sides = order[::-1] if update % 2 else order
            for side in sides:
                process = processes[side]
                with suppress(BrokenPipeError):  # it has ended, which next_answer reports
                    os.write(process.stdin.fileno(), b"\n")  # type: ignore[union-attr]
                turns[side].append(next_answer(process))
    return turns


def log_ratios(before: Turn, after: Turn) -> dict[str, float]:
    """The log ratio of each figure, `after` over `before`.

    For time, it is the median over updates, which is robust to outliers.
    """
    logs = []
    for old, new in zip(before, after, strict=True):
        logs.append(math.log(new["seconds"] / old["seconds"]))
    ratios = {"training": median(logs)}
    old_peak = before[-1]["peak_bytes"]
    new_peak = after[-1]["peak_bytes"]
    if old_peak and new_peak:  # None if the system does not report it
        ratios["memory"] = math.log(new_peak / old_peak)
    return ratios


def is_open(key: Key, shifts: Mapping[Key, FigureShift]) -> bool:
    """True if a figure is not yet decided."""
    return key not in shifts or shifts[key].verdict is Verdict.CANNOT_TELL


def open_cells(ratios: Ratios, shifts: Mapping[Key, FigureShift]) -> list[str]:
    """The cells with a figure that is not yet decided."""
    cells = [cell for cell, figure in ratios if is_open((cell, figure), shifts)]
    return list(dict.fromkeys(cells))


def report(ratios: Ratios, shifts: Mapping[Key, FigureShift]) -> int:
    """Print the shifts and the answer; return 1 for worse, 6 for cannot tell, 0 otherwise."""
    sentences = []
    drops = []
    for (cell, figure), shift in shifts.items():
        sentence = f"{cell} {shift.describe(figure)}"
        sentences.append(sentence)
        if shift.verdict is Verdict.WORSE:
            drops.append(sentence)
    say("\n".join(sentences))
    if drops:
        say(f"Worse: {some(drops)}")
        return 1
    cells = open_cells(ratios, shifts)
    if cells:
        say(f"Cannot tell: {some(cells)}")
        return 6
    say(f"No worse: {some(sentences)}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run rounds until every cell is decided or out of rounds, then report; return the exit code.

    Raises InputError if an environment cannot run a cell.
    """
    parser = argparse.ArgumentParser(prog="tunegrid speed", description=__doc__)
    add = parser.add_argument
    add("before", type=Path, metavar="OLD", help="a virtual environment, or its Python")
    add("after", type=Path, metavar="NEW", help="the one to compare with it")
    add(
        "--cells",
        default=",".join(SMOKE),
        metavar="ID,ID",
        help="quick cells (default %(default)s)",
    )
    add(
        "--device",
        default="cpu",
        metavar="DEVICE",
        help="cpu, cuda or cuda:N (default cpu)",
    )
    options = parser.parse_args(arguments)
    cells = [STUDY.cell(name, QUICK_PROFILE).id for name in options.cells.split(",")]
    pythons = [find_python(path) for path in (options.before, options.after)]
    ratios: dict[Key, list[float]] = {(cell, "training"): [] for cell in cells}
    shifts: dict[Key, FigureShift] = {}
    say(differences(pythons))
    for number in range(1, LOOKS[-1] + 1):
        for cell in open_cells(ratios, shifts):
            words = ["-m", "tunegrid.commands.paired_timing", cell, options.device]
            turns = paired_updates([[str(python), *words] for python in pythons], number)
            for figure, ratio in log_ratios(*turns).items():
                ratios.setdefault((cell, figure), []).append(ratio)
            seconds = [median(update["seconds"] for update in turn) for turn in turns]
            times = " -> ".join(f"{1000 * value:.1f}" for value in seconds)
            say(f"round {number} of at most {LOOKS[-1]}  {cell}  {times} ms an update")
        shifts = find_shifts(ratios, len(RESULT_WORDS) * len(cells))
    return report(ratios, shifts)
