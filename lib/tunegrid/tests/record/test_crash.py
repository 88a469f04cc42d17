"""What is kept of a cell that broke off."""

import json

import pytest

from tunegrid.record import crash_record
from tunegrid.record.record import CALLS, PRINTED_LINES
from tunegrid.tests.sessions import run

BROKEN = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    if fixturedef.argname == "codec":
        print("looking for the vocabulary")
        raise OSError("no vocabulary")
"""


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


@pytest.mark.slow
def test_a_cell_that_breaks_off_keeps_its_traceback_and_its_last_lines(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    options = ("-m", "quick", "--cells", "gpt2_sa_lora", "-p", "broken", "--tb=no")
    _, output, _ = run(tmp_path, *options, PYTHONPATH=str(tmp_path))
    [row] = json.loads((tmp_path / "run.json").read_text())["unfinished"]
    crash = row["extra_info"]["crash"]
    assert crash["traceback"][-1] == "OSError: no vocabulary", output
    assert 'File "broken.py", line 8, in pytest_fixture_setup' in "\n".join(crash["traceback"])
    assert crash["printed"] == ["looking for the vocabulary"]
