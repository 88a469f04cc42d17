"""What is kept of a cell that broke off."""

import pytest

from tunegrid.record import crash_record
from tunegrid.record.record import CALLS, PRINTED_LINES


def deep(calls):
    if calls == 0:
        raise ValueError("no rows")
    deep(calls - 1)


def test_the_innermost_calls_and_the_last_lines_are_kept_without_colours():
    with pytest.raises(ValueError, match="no rows") as caught:
        deep(100)
    lines = crash_record(caught.value, []).traceback
    assert (lines[-1], sum("in deep" in line or "repeated" in line for line in lines) <= CALLS) == ("ValueError: no rows", True)
    crash = crash_record(None, ["\n".join(map(str, range(100))), "10 %\r90 %\n\x1b[31mred\x1b[0m\x07\n\n"])
    assert (len(crash.printed), crash.printed[-3:]) == (PRINTED_LINES, ["99", "90 %", r"red\x07"])
    assert crash_record(None, ["", " \n"]) is None
