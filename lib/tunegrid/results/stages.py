"""Where a session's time went. In: an account of each of its processes. Out: a table of stages, and how long workers idled."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunegrid.errors import InputError
from tunegrid.results.table import Column, lines

START_UP, IDLE = "start up and collect", "idle after the last test"
IMPORT, READ, ENCODE, LOAD = "import libraries", "read rows", "encode rows", "load tokenizer and model"
AUDIT, UPDATE, BETWEEN, EVALUATE = "first step's figures, audits", "updates", "between updates", "evaluate"
OTHER = "other work in tests"
IN_TESTS = (IMPORT, READ, ENCODE, LOAD, AUDIT, UPDATE, BETWEEN, EVALUATE, OTHER)
COLUMNS = (
    Column(title="stage", width=30),
    Column(title="seconds", width=8, right=True),
    Column(title="share", width=7, right=True),
)


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one process did.

    Attributes:
        start_up_seconds: CPU seconds until its first test began; None where it ran none.
        stages: wall seconds by stage.
        cpu_seconds: of the process, all threads.
        ended: when its last test ended, by the clock that all processes of a machine share, in seconds.
    """

    process: str
    start_up_seconds: float | None
    stages: Mapping[str, float]
    cpu_seconds: float
    ended: float


def to_json(accounts: Sequence[Account], began: float, ended: float) -> dict[str, Any]:
    """The accounts of a session that took from `began` to `ended`; the controller of workers ran no test itself."""
    working = [account for account in accounts if account.start_up_seconds is not None]
    return {
        "seconds": ended - began,
        "cpu_seconds": sum(account.cpu_seconds for account in accounts),
        "processes": [
            {
                "process": account.process,
                "cpu_seconds": account.cpu_seconds,
                "stages": {START_UP: account.start_up_seconds, **account.stages, IDLE: max(0.0, ended - account.ended)},
            }
            for account in working
        ],
    }


def table(data: Mapping[str, Any]) -> Iterator[str]:
    """A line a stage over all processes, and what the session took; raises InputError for what is no account."""
    try:
        processes, seconds, cpu_seconds = data["processes"], float(data["seconds"]), float(data["cpu_seconds"])
        stages = [{stage: float(value) for stage, value in process["stages"].items()} for process in processes]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError("this is no account of stages; pytest --stage-times FILE writes one") from None
    totals = {stage: sum(own.get(stage, 0.0) for own in stages) for stage in (START_UP, *IN_TESTS, IDLE)}
    whole = sum(totals.values())
    rows = [(stage, f"{value:.1f}", f"{100 * value / whole:.1f} %") for stage, value in totals.items() if value]
    yield from lines(COLUMNS, rows)
    yield f"{seconds:.1f} s by the clock, {cpu_seconds:.1f} CPU seconds with imports, {len(processes)} processes that run tests"
