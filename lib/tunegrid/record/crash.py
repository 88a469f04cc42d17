"""The part of a record that says how its cell broke off."""

import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tunegrid.record.parts import Part
from tunegrid.terminal import visible

CALLS = 20  # of each exception's stack: the innermost ones
TRACEBACK_LINES, PRINTED_LINES, LONGEST_LINE = 80, 30, 400
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(kw_only=True)
class CrashRecord(Part):
    """The end of a cell's traceback, and the last lines that it printed."""

    traceback: Annotated[
        list[str], Field(description="its last lines; empty: a sentence says all, or the process left no exception")
    ]
    printed: Annotated[list[str], Field(description="last lines on standard output, standard error and the log")]


def crash_record(error: BaseException | None, printed: Iterable[str]) -> CrashRecord | None:
    """What is kept of an exception, and of all texts that the cell printed; None where there is neither."""
    told = traceback.format_exception(error, limit=-CALLS) if error else []
    last = _last("".join(told), TRACEBACK_LINES), _last("\n".join(printed), PRINTED_LINES)
    return CrashRecord(traceback=last[0], printed=last[1]) if any(last) else None


def _last(text: str, count: int) -> list[str]:
    """The last lines that are not blank, each visible and cut; of a line that was written over, its last state."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in COLOURS.sub("", text).split("\n")]
    return [visible(line.expandtabs(4))[:LONGEST_LINE] for line in lines if line.strip()][-count:]
