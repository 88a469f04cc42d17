"""Does cost grow as it should? `tunegrid scaling` times each stage of a cell, but training, at several numbers of rows.

Each stage and size runs in a process of its own, so that its peak of memory is its own. Rows are synthetic, as long as those of
the true data sets; nothing is needed that does not ship with the suite. Seconds are a processor's: other work beside does not
count. An exponent of 1 is linear growth.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.machine import THREADS, cpu_name, give_back_memory
from tunegrid.results.scaling import Measured, as_json, as_text

SIZES = (1000, 10_000, 100_000)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid scaling", description=__doc__)
    parser.add_argument("--rows", type=sizes_of, default=SIZES, metavar="N,N", help="sizes (default 1000,10000,100000)")
    parser.add_argument("--stages", metavar="WORD,WORD", help="only stages with one of these words in their names")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument(
        "--here", nargs=3, metavar=("STEP", "STAGE", "FOLDER"), help=argparse.SUPPRESS
    )  # in a process of its own
    options = parser.parse_args(arguments)
    if options.here:
        step, stage, folder = options.here
        print(json.dumps(STEPS[step](stage, options.rows[0], Path(folder))))
        return 0
    try:
        names = names_of(options.stages)
    except InputError as error:
        parser.error(str(error))
    with TemporaryDirectory(prefix="scaling-") as folder:
        answers = [figure for rows in options.rows for figure in figures(names, rows, Path(folder) / str(rows))]
    answers.sort(key=lambda figure: names.index(figure.stage))
    print(file=sys.stderr)
    print(f"one process a figure, one thread, {cpu_name()}", *as_text(answers), sep="\n")
    if options.json:
        machine = {"cpu": cpu_name(), "python": platform.python_version()}
        try:
            options.json.write_text(json.dumps({"machine": machine, "stages": as_json(answers)}, indent=1) + "\n")
        except OSError as error:  # the table is printed already
            parser.error(f"{options.json} cannot be written ({error.strerror or error})")
    return 0


def sizes_of(text: str) -> tuple[int, ...]:
    """Numbers of rows, divided by commas."""
    return tuple(sorted(int(part) for part in text.split(",")))


def names_of(wanted: str | None) -> list[str]:
    """The stages with one of these words in their names; raises InputError where there is none."""
    from tunegrid.commands.scaling_stages import STAGES

    words = wanted.split(",") if wanted else [""]
    names = [stage.name for stage in STAGES if any(word in stage.name for word in words)]
    if not names:
        raise InputError(f"no stage has {wanted!r} in its name; there are {', '.join(stage.name for stage in STAGES)}")
    return names


def figures(stages: Sequence[str], rows: int, folder: Path) -> list[Measured]:
    """What stages cost at a size: one process leaves files for all of them, then each is measured in one of its own."""
    print(f"{rows} rows: preparing ...", end=" ", file=sys.stderr, flush=True)
    _own_process("prepare", ",".join(stages), rows, folder)
    return [_figure(stage, rows, folder) for stage in stages]


def _figure(stage: str, rows: int, folder: Path) -> Measured:
    figure = Measured(stage=stage, rows=rows, **json.loads(_own_process("measure", stage, rows, folder).splitlines()[-1]))
    print(f"{stage} {figure.seconds:.2f} s", end=", ", file=sys.stderr, flush=True)
    return figure


def _own_process(step: str, stages: str, rows: int, folder: Path) -> str:
    command = [sys.executable, "-m", "tunegrid", "scaling", "--rows", str(rows), "--here", step, stages, str(folder)]
    environment = os.environ | dict.fromkeys(THREADS, "1") | {"TUNEGRID_CACHE": str(folder)}
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def prepare(names: str, rows: int, folder: Path) -> int:
    """Leave the files of some stages in a folder; return of how many."""
    from tunegrid.commands.scaling_stages import STAGES

    return sum(bool(stage.prepare(rows, folder)) for stage in STAGES if stage.name in names.split(","))


def measure(name: str, rows: int, folder: Path) -> dict[str, float | int | None]:
    """Run a stage here; return its seconds of a processor and by how much this process grew."""
    from tunegrid.commands.scaling_stages import STAGES

    work = next(stage for stage in STAGES if stage.name == name).prepare(rows, folder)
    gc.collect()
    give_back_memory()  # it would hide what the stage takes
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM, see proc(5)
    before, began = _held(), time.process_time()
    result = work()
    seconds = time.process_time() - began
    after = _held()
    del result
    grown = {name: None if name not in before else after[name] - before[start] for name, start in GROWTH.items()}
    return {"seconds": seconds, "peak_bytes": grown["VmHWM"], "mapped_bytes": grown["RssFile"]}


STEPS: dict[str, Callable[[str, int, Path], object]] = {"prepare": prepare, "measure": measure}
GROWTH = {"VmHWM": "VmRSS", "RssFile": "RssFile"}  # what is read after a stage, and what it is held against


def _held() -> dict[str, int]:
    """Bytes by name in /proc/self/status; none where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    return {
        name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines) if value.endswith("kB")
    }
