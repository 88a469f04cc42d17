"""What the suite itself costs, without any training: `tunegrid overhead`.

Each stage runs over 500, 1,000 and 5,000 rows that are made of committed ones (the last are 1,000 cells with five seeds), in a
process of its own. `session` is a whole pytest session whose cells have their rows from a file: it collects, journals, saves,
gates and writes the page. The other stages do one of these each.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tunegrid import ROOT
from tunegrid.results.files import load, read_list, save
from tunegrid.results.journal import Journal, passed
from tunegrid.results.synthetic import names, write_grid, write_run
from tunegrid.results.table import Column, lines

KIB_OF_GIB = 2**20  # Linux counts a process's memory in KiB
SIZES = (500, 1_000, 5_000)
COLUMNS = (
    Column(title="stage", width=10),
    Column(title="rows", width=6, right=True),
    Column(title="seconds", width=8, right=True),
    Column(title="CPU s", width=8, right=True),
    Column(title="GiB peak", width=8, right=True),
    Column(title="ms a row", width=8, right=True),
)


def collect(folder: Path, rows: int) -> None:
    """Pytest collects the cells."""
    _pytest(folder, rows, "--collect-only", "-q")


def journal(folder: Path, rows: int) -> None:
    """Every row is appended and waits for the disk; `--resume` reads them all."""
    book = Journal(folder / "journal")
    for place, row in enumerate(load(folder / "new" / "run.json")["benchmarks"]):
        book.append(f"{place:016x}", row)
    passed(folder / "journal")


def saving(folder: Path, rows: int) -> None:
    """The run's JSON is read, checked and written."""
    read_list(folder / "new" / "run.json")
    save(load(folder / "new" / "run.json"), folder / "saved.json")


def judging(folder: Path, rows: int) -> None:
    """The gate over two runs of this size, as text."""
    from tunegrid.results.gate_report import verdict_table
    from tunegrid.results.gates import gate, read_run

    verdict_table(gate(read_run(folder / "old" / "run.json"), read_run(folder / "new" / "run.json")))


def page(folder: Path, rows: int) -> None:
    """The page of a run beside a baseline; the gate that it holds included."""
    from tunegrid.page.render import write
    from tunegrid.page.runs import read_page_run
    from tunegrid.page.view import page_of

    run, baseline = (read_page_run(folder / name / "run.json") for name in ("new", "old"))
    write(page_of(run, [baseline]), folder / "page.html")


def session(folder: Path, rows: int) -> None:
    """A whole session of pytest, but for training."""
    out = [f"--benchmark-json={folder}/out/run.json", f"--html={folder}/out/page.html"]
    rehearse = ["-p", "fixtures.rehearsal", f"--rehearse={folder}/new/run.json", "-q", "--gate-on=numerics"]
    _pytest(folder, rows, *rehearse, f"--gate={folder}/old/run.json", *out)


def _pytest(folder: Path, rows: int, *options: str) -> None:
    command = [sys.executable, "-m", "pytest", "-m", "quick", f"--grid={folder}/grid.py", *names(rows), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["TUNEGRID_CACHE"] = str(folder / "cache")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    if done.returncode > 1 or ("--collect-only" not in options and not (folder / "out" / "page.html").is_file()):
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])


STAGES: Mapping[str, Callable[[Path, int], None]] = {
    "collect": collect,
    "journal": journal,
    "json": saving,
    "gate": judging,
    "page": page,
    "session": session,
}


def measured(stage: str, folder: Path, rows: int) -> tuple[float, float, float]:
    """Seconds by the clock, of processors, and GiB of a stage, in a process of its own."""
    command = [sys.executable, "-m", "tunegrid", "overhead", "--stage", stage, "--folder", str(folder), "--rows", str(rows)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    seconds, cpu_seconds, gib = json.loads(done.stdout.splitlines()[-1])
    return seconds, cpu_seconds, gib


def run_stage(stage: str, folder: Path, rows: int) -> None:
    """Print what a stage takes that runs here, with the process of pytest where it starts one."""
    began = time.perf_counter()
    STAGES[stage](folder, rows)
    seconds = time.perf_counter() - began
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(one.ru_utime + one.ru_stime for one in used)
    print(json.dumps([seconds, cpu_seconds, max(one.ru_maxrss for one in used) / KIB_OF_GIB]))


def table(sizes: Sequence[int], stages: Sequence[str]) -> list[str]:
    """A line a stage and size."""
    cells = []
    for rows in sizes:
        with TemporaryDirectory(prefix="tunegrid-overhead-") as name:
            folder = Path(name)
            write_grid(folder / "grid.py", rows)
            write_run(folder / "old" / "run.json", rows)
            write_run(folder / "new" / "run.json", rows, shift=1)
            for stage in stages:
                seconds, cpu_seconds, gib = measured(stage, folder, rows)
                figures = (f"{seconds:.1f}", f"{cpu_seconds:.1f}", f"{gib:.2f}", f"{1000 * cpu_seconds / rows:.1f}")
                cells.append((stage, f"{rows:,}", *figures))
    return lines(COLUMNS, sorted(cells, key=lambda cell: stages.index(cell[0])))


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid overhead", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, metavar="N", help="default: 500 1000 5000")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=[*STAGES])
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stage:
        run_stage(options.stage, options.folder, options.rows[0])
        return 0
    print("\n".join(table(options.rows, options.stages)))
    return 0
