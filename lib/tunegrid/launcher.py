"""Starts pytest in another process or environment, waits for it, and lets it end with this process.

Imports no pytest.

The process that waits holds a lock, which the system releases however that process ends. A session
that was started so waits for the lock in a thread (`end_with_launcher`), and ends when it gets it;
so do ranks, whose parent is torchrun.
"""

import fcntl
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from tunegrid.machine import share_threads, temporary_folder

LOCK = "TUNEGRID_LAUNCHER_LOCK"  # names the file that a session's launcher has locked
END_SECONDS = 5.0  # for a process that is asked to end
OVERDUE = 124  # exit code of a process that was ended for its time, as GNU timeout has it
# That a process may take beside its test's limit: to start, to hear that it is over, and to end
MARGIN_SECONDS = 600.0
# 0: any free port
TORCHRUN = ("-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
# In what torchrun says at its end
FAILURE = re.compile(r"rank +: (\d+) .*\n.*exitcode +: (-?\d+) ")
FRAME = re.compile(r'File "(.+)", line (\d+) in (.+)')  # as faulthandler writes one
# The attribute that carries rows on a report; xdist sends attributes of plain values along
ROW = "tunegrid_row"
Reports = Sequence[Mapping[str, Any]]  # of a test, as pytest serializes them


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    output: IO[str] | None = None,
    errors: IO[str] | None = None,
    limit_seconds: float | None = None,
) -> int:
    """Run a command that starts pytest; return its exit code.

    If this process is interrupted, the command ends first.

    `output` takes all that it says, in place of this process's streams, or `errors` its standard
    error. After `limit_seconds` it is ended, with OVERDUE.
    """
    with temporary_folder() as folder, (folder / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        env = {**(os.environ if environment is None else environment), LOCK: lock.name}
        stderr = errors or (output and subprocess.STDOUT)
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=stderr
        )
        try:
            return process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            return OVERDUE
        finally:
            process.terminate()  # if it still runs; torchrun ends its ranks then
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()  # ranks end with the lock
            process.wait()


def end_with_launcher(lock: str, torchrun: int | None = None) -> None:
    """Wait until the process that holds the lock has ended, then end this one: nobody takes its
    rows any more.

    `torchrun` is the process that started this one as a rank: it has nothing to wait for either,
    and takes its time.
    """
    with suppress(FileNotFoundError), Path(lock).open(encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    if torchrun is not None and os.getppid() == torchrun:
        os.kill(torchrun, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGTERM)  # a session that gathers rows saves them
    time.sleep(END_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


# One test, for another session


@dataclass(frozen=True, kw_only=True)
class Child:
    """`--child FILE`: what a session is told that runs a test for another one; by default nothing,
    as a user starts it.
    """

    test: str | None = None  # the id of the one test that this process is for
    seed: int | None = None  # at which the test runs in place of its own
    ranks: int = 1  # how many processes share the test
    # The file for the test's reports; its folder takes stacks of tests that hang
    reports_to: Path | None = None
    progress_to: Path | None = None  # the folder where it tells how far it is

    def option(self, path: Path) -> str:
        """Write this to a file, and return the option that names it.

        Of several such options the last one counts.
        """
        path.write_bytes(TypeAdapter(Child).dump_json(self))
        return f"--child={path}"

    @classmethod
    def read(cls, path: str) -> "Child":
        """The child that a file describes."""
        return TypeAdapter(cls).validate_json(Path(path).read_bytes())


@dataclass(frozen=True, kw_only=True)
class ProcessResult:
    """What a test's process left."""

    returncode: int  # below 0 if a signal ended it
    output: str = ""  # what it said
    reports: Reports = ()  # of its test; none if the test did not come to its end
    hung_in: str = ""  # where it stood when `--timeout` ended its process; else empty

    @property
    def records(self) -> list[dict[str, Any]]:
        """What the reports' rows say of the cell."""
        return [
            row["extra_info"]
            for report in self.reports
            for _, row in json.loads(report.get(ROW, "[]"))
        ]

    @property
    def kill_cause(self) -> str:
        """The process that a signal ended, and the signal, as a sentence; empty if none did."""
        rank = killed_rank(self.output)
        if self.reports or self.hung_in or not (rank or self.returncode < 0):
            return ""
        who = f"rank {rank[0]} of the cell" if rank else "the cell's process"
        name = rank[1] if rank else signal.Signals(-self.returncode).name
        return f"{who} was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    @property
    def reason(self) -> str:
        """Why it left no reports, in a sentence."""
        if self.hung_in:
            return f"ended with its process after --timeout; it hung in {self.hung_in}"
        last = (self.output.strip().splitlines() or ["it said nothing"])[-1].strip()
        return (
            self.kill_cause
            or f"the cell's process ended with exit code {self.returncode} before its test did: {last}"
        )


def run_test(
    arguments: Sequence[str],
    child: Child,
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    limit_seconds: float | None = None,
) -> ProcessResult:
    """Run a session that has just this test, and wait for it; torchrun starts it if several ranks
    share the test.

    `arguments` are those of the session that wants the test, as they hold in `cwd`. The child
    itself sees to `limit_seconds`.
    """
    torchrun = (*TORCHRUN, f"--nproc-per-node={child.ranks}") if child.ranks > 1 else ()
    # torchrun gives each rank one thread
    variables = share_threads(environment or os.environ) if torchrun else environment
    limit = limit_seconds and limit_seconds + MARGIN_SECONDS
    with temporary_folder() as folder:
        reports, output = folder / "reports.json", folder / "output.txt"
        option = replace(child, reports_to=reports).option(folder / "child.json")
        command = [sys.executable, *torchrun, "-m", "pytest", *arguments, option]
        with output.open("w", encoding="utf-8") as file:
            returncode = run(
                command, cwd=cwd, environment=variables, output=file, limit_seconds=limit
            )
        text = output.read_text(errors="replace", encoding="utf-8")
        paths = [rank_file(reports, rank) for rank in range(child.ranks)]
        return ProcessResult(
            returncode=returncode,
            output=text,
            reports=decisive_reports(
                [json.loads(path.read_bytes()) if path.exists() else () for path in paths], text
            ),
            hung_in="an unknown place" if returncode == OVERDUE else main_stack(folder),
        )


def rank_file(path: Path, rank: int) -> Path:
    """Where a rank's reports go."""
    return path.with_suffix(f".{rank}{path.suffix}") if rank else path


def decisive_reports(by_rank: Sequence[Reports], output: str) -> Reports:
    """Whose reports are the test's: the first rank's, or if it did not pass, those of the rank that
    failed first.

    None if no rank came to its end, or one was killed: what the others say then is that they wait
    for it.
    """
    failed_at = [
        min((one["stop"] for one in reports if one["outcome"] == "failed"), default=math.inf)
        for reports in by_rank
    ]
    if by_rank[0] and math.isinf(failed_at[0]):
        return by_rank[0]
    return () if killed_rank(output) else by_rank[failed_at.index(min(failed_at))]


def killed_rank(output: str) -> tuple[int, str] | None:
    """The rank that a signal ended, and the signal's name, by what torchrun says; it ends the
    others itself, by SIGTERM.
    """
    names = {
        int(rank): signal.Signals(-int(code)).name
        for rank, code in FAILURE.findall(output)
        if int(code) < 0
    }
    return next(((rank, name) for rank, name in names.items() if name != "SIGTERM"), None)


def main_stack(folder: Path, names: str = "*") -> str:
    """Where a main thread stood, which is last in what faulthandler wrote: `_step (train.py:300) <
    run (train.py:160)`.
    """
    dumps = "\n".join(
        path.read_text(errors="replace", encoding="utf-8") for path in folder.glob(f"{names}.stack")
    )
    frames = FRAME.findall(dumps.rpartition("most recent call first")[2])[:8]
    return " < ".join(f"{name} ({Path(path).name}:{line})" for path, line, name in frames)
