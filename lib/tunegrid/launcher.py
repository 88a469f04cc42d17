"""Starts pytest in another process or environment, waits for it, and ends it if this process ends.

This module does not import pytest.

The waiting process holds a lock, which the system releases however the process ends. A session
started this way waits for the lock in a thread (`end_with_launcher`) and ends once it gets the
lock. Ranks do the same; torchrun starts them.
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
END_SECONDS = 5.0  # grace period before a process is killed
OVERDUE = 124  # exit code of a process that exceeded its time limit, as with GNU timeout
# Extra time on top of the test's limit, so that a process can start, notice that time is up, and
# end
MARGIN_SECONDS = 600.0
# Port 0 picks any free port
TORCHRUN = ("-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
# Matches torchrun's final failure report
FAILURE = re.compile(r"rank +: (\d+) .*\n.*exitcode +: (-?\d+) ")
FRAME = re.compile(r'File "(.+)", line (\d+) in (.+)')  # a frame as faulthandler writes it
# The attribute that carries rows on a report; xdist transmits attributes that hold plain values
ROW = "tunegrid_row"
Reports = Sequence[Mapping[str, Any]]  # one test's, as pytest serializes them


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

    If this process is interrupted, it ends the command first.

    `output` receives everything that the command prints; if `errors` is given, standard error goes
    there instead. Without them, the command prints to this process's streams. After
    `limit_seconds`, the command is ended and OVERDUE is returned.
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
            process.terminate()  # if it still runs; torchrun then ends its ranks
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()  # ranks end once the lock is released
            process.wait()


def end_with_launcher(lock: str, torchrun: int | None = None) -> None:
    """Wait until the process that holds the lock has ended, then end this process.

    By then, nothing is left to collect this process's rows. `torchrun`, if given, is the id of the
    process that started this one as a rank. That process is killed outright, because it has nothing
    left to wait for and is slow to stop.
    """
    with suppress(FileNotFoundError), Path(lock).open(encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    if torchrun is not None and os.getppid() == torchrun:
        os.kill(torchrun, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGTERM)  # a session that gathers rows saves them on SIGTERM
    time.sleep(END_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


# Running one test in another session


@dataclass(frozen=True, kw_only=True)
class Child:
    """The contents of the `--child` file, with which a session runs one test for another session.

    The defaults describe a session that a user started.
    """

    test: str | None = None  # the id of the one test that this process runs
    seed: int | None = None  # the test's seed, in place of its own
    ranks: int = 1  # number of processes that share the test
    # The file for the test's reports; stacks of hanging tests go into its folder
    reports_to: Path | None = None
    progress_to: Path | None = None  # the folder where the session reports its progress

    def option(self, path: Path) -> str:
        """Write these settings to a file and return the option that names the file.

        If the option is given several times, the last one wins.
        """
        path.write_bytes(TypeAdapter(Child).dump_json(self))
        return f"--child={path}"

    @classmethod
    def read(cls, path: str) -> "Child":
        """Read the settings that `option` wrote to a file."""
        return TypeAdapter(cls).validate_json(Path(path).read_bytes())


@dataclass(frozen=True, kw_only=True)
class ProcessResult:
    """The outcome of a test's process."""

    returncode: int  # negative if a signal ended the process
    output: str = ""  # everything the process printed
    reports: Reports = ()  # the test's; empty if the test did not finish
    hung_in: str = ""  # the stack when `--timeout` ended the process; else empty

    @property
    def records(self) -> list[dict[str, Any]]:
        """The cell's records, from the rows that the reports carry."""
        return [
            row["extra_info"]
            for report in self.reports
            for _, row in json.loads(report.get(ROW, "[]"))
        ]

    @property
    def kill_cause(self) -> str:
        """A sentence naming the signal that ended the process before its test ended; else empty."""
        rank = killed_rank(self.output)
        if self.reports or self.hung_in or not (rank or self.returncode < 0):
            return ""
        who = f"rank {rank[0]} of the cell" if rank else "the cell's process"
        name = rank[1] if rank else signal.Signals(-self.returncode).name
        return f"{who} was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    @property
    def reason(self) -> str:
        """A sentence that explains why the process left no reports."""
        if self.hung_in:
            return f"ended with its process after --timeout; it hung in {self.hung_in}"
        last = (self.output.strip().splitlines() or ["it said nothing"])[-1].strip()
        if self.kill_cause:
            return self.kill_cause
        end = f"the cell's process ended with exit code {self.returncode}"
        return f"{end} before its test did: {last}"


def run_test(
    arguments: Sequence[str],
    child: Child,
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    limit_seconds: float | None = None,
) -> ProcessResult:
    """Run a session with only the child's test and wait for it; torchrun starts several ranks.

    `arguments` are the options of the session that needs the test, valid in `cwd`. The child itself
    enforces `limit_seconds`; `MARGIN_SECONDS` later, this process ends it.
    """
    torchrun = (*TORCHRUN, f"--nproc-per-node={child.ranks}") if child.ranks > 1 else ()
    # torchrun would give each rank one thread
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
    """The path of a rank's reports."""
    return path.with_suffix(f".{rank}{path.suffix}") if rank else path


def decisive_reports(by_rank: Sequence[Reports], output: str) -> Reports:
    """Choose the reports that count as the test's.

    They are the first rank's if it passed, else those of the rank that failed first. The result is
    empty if no rank finished, or if a signal killed a rank, because the other ranks then report
    only that they were waiting for the killed rank.
    """
    failed_at = []
    for reports in by_rank:
        stops = [report["stop"] for report in reports if report["outcome"] == "failed"]
        failed_at.append(min(stops, default=math.inf))
    if by_rank[0] and math.isinf(failed_at[0]):
        return by_rank[0]
    return () if killed_rank(output) else by_rank[failed_at.index(min(failed_at))]


def killed_rank(output: str) -> tuple[int, str] | None:
    """The rank that a signal ended and the signal's name, from torchrun's report; else None.

    SIGTERM does not count, because torchrun ends the other ranks with it.
    """
    names = {
        int(rank): signal.Signals(-int(code)).name
        for rank, code in FAILURE.findall(output)
        if int(code) < 0
    }
    return next(((rank, name) for rank, name in names.items() if name != "SIGTERM"), None)


def main_stack(folder: Path, names: str = "*") -> str:
    """The main thread's innermost frames, as in `_step (train.py:300) < run (train.py:160)`.

    Empty if faulthandler dumped no stack. faulthandler writes the main thread last.
    """
    dumps = "\n".join(
        path.read_text(errors="replace", encoding="utf-8") for path in folder.glob(f"{names}.stack")
    )
    frames = FRAME.findall(dumps.rpartition("most recent call first")[2])[:8]
    return " < ".join(f"{name} ({Path(path).name}:{line})" for path, line, name in frames)
