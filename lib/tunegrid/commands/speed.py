"""Did training become slower, or larger? `tunegrid speed OLD NEW` compares two environments.

OLD and NEW are virtual environments, or their Pythons. In each round of a quick cell, a fresh process of each warms up; then
they make 40 updates in turn, A B B A. A cell is done when the interval of the ratio lies within 5 % or beyond; worse is only
what lies wholly beyond. Over all cells, equal environments are called worse in 1 of 100 comparisons at most.
"""

import argparse
import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from tunegrid import ROOT
from tunegrid.commands.cli import refuse
from tunegrid.commands.environments import output_of
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.results.speed import LOOKS, Answers, Comparison, log_ratios
from tunegrid.run.turn import MARK
from tunegrid.terminal import say

UPDATES = 40  # of a round
# A third of the quick cells, in which every two of backbone, task and method meet once.
SOME_OF_EACH = (
    *("bert_sum_lora", "gpt2_sum_sft", "t5_sum_qlora", "bert_qa_sft", "gpt2_qa_qlora", "t5_qa_lora"),
    *("bert_sa_qlora", "gpt2_sa_lora", "t5_sa_sft"),
)
LIB = str(ROOT / "lib")  # the same suite on both sides
LIBRARIES = f"import json, sys; sys.path.insert(0, {LIB!r}); from tunegrid import libraries as code, machine;"
LIBRARIES += "print(json.dumps([machine.versions(), code.library_digests()]))"


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


@contextmanager
def working(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process with the code of this checkout, which ends with the context; what it says on stderr comes with its output."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")} | {"PYTHONPATH": LIB}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=own, cwd=ROOT, encoding="utf-8", errors="replace", **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def answer_of(process: subprocess.Popen[str], *, asked: bool = True) -> Any:
    """What a process answers when it is asked for an update; raises InputError where it ends without."""
    assert process.stdin, "a pipe"
    if asked:
        with suppress(BrokenPipeError):  # it has ended, which reading tells
            os.write(process.stdin.fileno(), b"\n")
    said = ""
    for line in process.stdout or ():
        _, found, answer = line.partition(MARK)
        if found:
            return json.loads(answer)
        said = line.strip() or said
    raise InputError(f"`{shlex.join(process.args)}` fails, so leave the cell out of --cells: {said}")  # type: ignore[arg-type]


def turns_of(commands: Sequence[Sequence[str]], number: int) -> tuple[Answers, Answers]:
    """What two processes answer that make their updates in turn, A B B A ...; in every second round B is first.

    Each update has one of the other side right beside it, so that whatever slows the machine slows both.
    """
    order, answers = ((0, 1) if number % 2 else (1, 0)), (list[Any](), list[Any]())
    with ExitStack() as stack:
        processes = [stack.enter_context(working(command)) for command in commands]
        for process in processes:
            answer_of(process, asked=False)  # it is ready
        for update in range(UPDATES):
            for side in reversed(order) if update % 2 else order:
                answers[side].append(answer_of(processes[side]))
    return answers


def compared(places: Sequence[Path], cells: Sequence[str], device: str = "cpu") -> Comparison:
    """Compare two environments until every cell is told or had all its rounds; raises InputError where something cannot run."""
    comparison = Comparison(ratios={cell: [] for cell in checked(cells)})
    pythons = [python_in(place) for place in places]
    say(differences(pythons))
    for number in range(1, LOOKS[-1] + 1):
        ratios = {cell: list(own) for cell, own in comparison.ratios.items()}
        for cell in comparison.open_cells:
            turns = turns_of([[str(python), "-m", "tunegrid.run.turn", cell, device] for python in pythons], number)
            ratios[cell].append(log_ratios(*turns))
            shown = " -> ".join(f"{1000 * median(one['seconds'] for one in turn):.1f}" for turn in turns)
            say(f"round {number} of at most {LOOKS[-1]}  {cell}  {shown} ms an update")
        comparison = Comparison(ratios=ratios)
    return comparison


def checked(cells: Sequence[str]) -> list[str]:
    """Cells that exist, some of each kind where none is named; raises InputError for another."""
    return [STUDY.cell(cell, QUICK_PROFILE).id for cell in dict.fromkeys(cells or SOME_OF_EACH)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, say what was found; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid speed", description=__doc__)
    parser.add_argument("before", type=Path, metavar="OLD", help="a virtual environment, or its Python")
    parser.add_argument("after", type=Path, metavar="NEW", help="another one")
    parser.add_argument("--cells", metavar="ID,ID", help=f"quick cells (default {','.join(SOME_OF_EACH)})")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu, cuda or cuda:N (default cpu)")
    options = parser.parse_args(arguments)
    cells = options.cells.split(",") if options.cells else ()
    try:
        comparison = compared((options.before, options.after), cells, options.device)
    except InputError as error:
        refuse(parser, error)
    except KeyboardInterrupt:
        say("stopped; the same command begins anew")
        return 130
    say("\n".join(comparison.report))
    return comparison.outcome.exit_code
