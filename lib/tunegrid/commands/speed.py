"""Did training become slower, or larger? `tunegrid speed OLD NEW` compares two environments.

OLD and NEW are virtual environments, or their Pythons. In each round of a quick cell, each starts a fresh process and warms up;
then they make 40 updates in turn, A B B A. A cell is done when the intervals of both ratios, of time and of peak memory, lie
within 5 % or wholly beyond; only what lies wholly beyond is worse. Over all cells, equal environments are called worse in at
most 1 of 100 comparisons. After a stop, the command starts over.
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
from tunegrid.commands.paired_timing import MARK
from tunegrid.errors import InputError
from tunegrid.gate.judgements import Verdict
from tunegrid.grid.cells import SMOKE, STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.terminal import say
from tunegrid.words import some

MARGIN = 0.05  # a change that counts: halfway between an equal step and one that is 10 % slower
ALPHA = 0.01  # the chance that any figure is called worse, or within the margin, that is not
LOOKS = (4, 6, 8, 10)  # rounds after which a figure is judged: each side was first as often as the other
LEAST_SD = 1e-4  # of a log ratio: no clock and no page tells less
UPDATES = 40  # of a round
FIGURES = {"training": ("slower", "faster", "as fast"), "memory": ("larger", "smaller", "the same")}
LIB = str(ROOT / "lib")  # the same suite on both sides
LIBRARIES = f"""import json, sys; sys.path.insert(0, {LIB!r}); from tunegrid import machine
print(json.dumps([machine.versions(), machine.library_digests()]))"""
Answers = Sequence[Mapping[str, Any]]  # of the updates of a turn: seconds, and peak_bytes until then
Ratios = Mapping[tuple[str, str], Sequence[float]]  # logs of ratios, after over before, of each round, by cell and figure


@dataclass(frozen=True)
class Change:
    """How far a figure of the second environment is from the first one's: a mean log ratio, and what it may be off by."""

    log_ratio: float
    reach: float

    @property
    def verdict(self) -> Verdict:
        """Worse or better if the whole interval is beyond the margin, the same if it lies within."""
        margin = math.log(1 + MARGIN)
        if abs(self.log_ratio) - self.reach > margin:
            return Verdict.WORSE if self.log_ratio > 0 else Verdict.BETTER
        return Verdict.SAME if abs(self.log_ratio) + self.reach < margin else Verdict.CANNOT_TELL

    def describe(self, figure: str) -> str:
        """As in "training 4 % slower (2 to 6 %)"."""
        logs = (self.log_ratio, self.log_ratio - self.reach, self.log_ratio + self.reach)
        (more, less, same), (percent, low, high) = FIGURES[figure], (round(100 * (math.exp(log) - 1)) for log in logs)
        if percent < 0:
            percent, low, high, more = -percent, -high, -low, less
        note = ": cannot tell" if self.verdict is Verdict.CANNOT_TELL else ""
        return f"{figure} {f'{percent} % {more}' if percent else same} ({low} to {high} %){note}"


def find_changes(ratios: Ratios, tests: int) -> dict[tuple[str, str], Change]:
    """Each figure's change, as of the first look that told it, else of its last look; those without a look are left out.

    A verdict stands, whatever comes later: `ALPHA` is shared among looks and tests. One machine disturbs all cells alike: a
    cell's deviation is the larger of its own and the median over cells, which rests on half of their degrees of freedom.
    """
    from tunegrid.gate.statistics import critical_value  # which brings scipy

    changes: dict[tuple[str, str], Change] = {}
    for look in LOOKS:
        samples = {key: sample[:look] for key, sample in ratios.items() if len(sample) >= LOOKS[0]}
        for key, sample in samples.items():
            if len(sample) == look and (key not in changes or changes[key].verdict is Verdict.CANNOT_TELL):
                peers = [other for (_, figure), other in samples.items() if figure == key[1]]
                df = max(look - 1, sum(len(other) - 1 for other in peers) / 2)
                sd = max(stdev(sample), median_low(map(stdev, peers)), LEAST_SD)
                reach = critical_value(ALPHA / len(LOOKS) / tests, df) * sd / math.sqrt(look)
                changes[key] = Change(fmean(sample), reach)
    return changes


def find_python(place: Path) -> Path:
    """The Python of a virtual environment, or the one that this is; raises InputError if there is none."""
    for path in (place, place / "bin" / "python"):
        if path.is_file():
            return path.absolute()
    raise InputError(f"{place} is no virtual environment and no Python; give a folder that `python -m venv` made")


def differences(pythons: Sequence[Path]) -> str:
    """How the libraries of two Pythons differ, in words; raises InputError if one cannot be asked."""
    answers = [read_output([str(python), "-c", LIBRARIES], f"{python} lacks what tunegrid needs")[-1] for python in pythons]
    (old, old_code), (new, new_code) = map(json.loads, answers)
    changes = [f"{name} {old[name]} -> {new[name]}" for name in old if old[name] != new[name]]
    changes += [f"{name} (other code)" for name in old if old[name] == new[name] and old_code.get(name) != new_code.get(name)]
    return ", ".join(changes) or "the same libraries in both"


def next_answer(process: subprocess.Popen[str]) -> Any:
    """What a process answers next; raises InputError if it ends without."""
    last_line = ""
    for line in process.stdout or ():
        _, mark, answer = line.partition(MARK)
        if mark:
            return json.loads(answer)
        last_line = line.strip() or last_line
    command = shlex.join(process.args)  # type: ignore[arg-type]
    raise InputError(f"`{command}` fails, so leave the cell out of --cells: {last_line}")


def paired_updates(commands: Sequence[Sequence[str]], number: int) -> tuple[Answers, Answers]:
    """Answers of two processes that update in turn, A B B A (in every second round B A A B), so that noise slows both alike."""
    order, answers = ((0, 1) if number % 2 else (1, 0)), (list[Any](), list[Any]())
    variables = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")} | {"PYTHONPATH": LIB}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with ExitStack() as stack:
        processes = []
        for command in commands:
            process = subprocess.Popen(command, env=variables, cwd=ROOT, encoding="utf-8", errors="replace", **pipes)
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


def log_ratios(before: Answers, after: Answers) -> dict[str, float]:
    """After over before, by figure: of seconds the median over updates, so that a single disturbed one has no effect."""
    training = median(math.log(new["seconds"] / old["seconds"]) for old, new in zip(before, after, strict=True))
    peaks = [turn[-1]["peak_bytes"] for turn in (before, after)]  # None if the system does not tell
    return {"training": training} | ({"memory": math.log(peaks[1] / peaks[0])} if all(peaks) else {})


def open_cells(ratios: Ratios, changes: Mapping[tuple[str, str], Change]) -> list[str]:
    """Cells that another round may tell more of: a figure of theirs is not told yet."""
    keys = [key for key in ratios if key not in changes or changes[key].verdict is Verdict.CANNOT_TELL]
    return list(dict.fromkeys(cell for cell, _ in keys))


def answer(ratios: Ratios, changes: Mapping[tuple[str, str], Change]) -> int:
    """Say what was found, the answer last; return the exit code: 1 worse, 6 cannot tell, 0 no worse."""
    words = {key: f"{key[0]} {change.describe(key[1])}" for key, change in changes.items()}
    say("\n".join(words.values()))
    drops = [words[key] for key, change in changes.items() if change.verdict is Verdict.WORSE]
    cells = open_cells(ratios, changes)
    if drops:
        say(f"Worse: {some(drops)}")
        return 1
    if cells:
        say(f"Cannot tell: {some(cells)}")
        return 6
    say(f"No worse: {some([*words.values()])}")
    return 0


def compare(places: Sequence[Path], names: Sequence[str], device: str) -> int:
    """Compare two environments until every cell is told or had all its rounds; return the exit code."""
    cells, pythons = [STUDY.cell(name, QUICK_PROFILE).id for name in names], [find_python(place) for place in places]
    ratios: dict[tuple[str, str], list[float]] = {(cell, "training"): [] for cell in cells}
    changes: dict[tuple[str, str], Change] = {}
    say(differences(pythons))
    for number in range(1, LOOKS[-1] + 1):
        for cell in open_cells(ratios, changes):
            turns = paired_updates(
                [[str(one), "-m", "tunegrid.commands.paired_timing", cell, device] for one in pythons], number
            )
            for figure, ratio in log_ratios(*turns).items():
                ratios.setdefault((cell, figure), []).append(ratio)
            times = " -> ".join(f"{1000 * median(one['seconds'] for one in turn):.1f}" for turn in turns)
            say(f"round {number} of at most {LOOKS[-1]}  {cell}  {times} ms an update")
        changes = find_changes(ratios, len(FIGURES) * len(cells))
    return answer(ratios, changes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, say what was found; return the exit code. Raises InputError if an environment cannot run a cell."""
    parser = argparse.ArgumentParser(prog="tunegrid speed", description=__doc__)
    parser.add_argument("before", type=Path, metavar="OLD", help="a virtual environment, or its Python")
    parser.add_argument("after", type=Path, metavar="NEW", help="the one to compare with it")
    parser.add_argument("--cells", default=",".join(SMOKE), metavar="ID,ID", help="quick cells (default %(default)s)")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu, cuda or cuda:N (default cpu)")
    options = parser.parse_args(arguments)
    places = (options.before, options.after)
    return compare(places, options.cells.split(","), options.device)
