"""A pytest plugin that notes which functions of ours each test runs; `-p tunegrid.tests.executed` loads it.

Counted is what runs between the start of a test's set-up and the end of its teardown, on the main thread: functions and methods
of `lib/tunegrid` (its tests aside), `fixtures`, `benchmarks` and conftest.py, each once. Not counted: the top level of modules
and class bodies; what runs because a module of ours is being imported; lambdas and comprehensions; what dataclasses generate;
collection; the table and the files at the end of the session. What the session does with the test's reports (its row, the
journal, the line of progress) happens between the phases of a test, and so is counted.
"""

import json
import os
import sys
from inspect import CO_OPTIMIZED
from pathlib import Path

import pytest
from pytest_benchmark.fixture import PauseInstrumentation

from tunegrid import ROOT

OWN = tuple(f"{ROOT / name}" for name in ("lib/tunegrid/", "fixtures/", "benchmarks/", "conftest.py"))
TESTS = "/tunegrid/tests/"
VARIABLE = "TUNEGRID_EXECUTED"  # names the file that the functions go to, one line each


class Executed:
    """The functions of ours that ran."""

    def __init__(self):
        self.codes = set()
        self._known = {}

    def __call__(self, frame, event, argument):
        """`sys.setprofile`'s function: a frame was entered, or left."""
        code = frame.f_code
        if event == "call" and code not in self.codes and self._is_ours(code) and not importing(frame):
            self.codes.add(code)

    def _is_ours(self, code):
        if code not in self._known:
            is_function = code.co_flags & CO_OPTIMIZED and not code.co_name.startswith("<")
            self._known[code] = bool(is_function) and code.co_filename.startswith(OWN) and TESTS not in code.co_filename
        return self._known[code]

    @property
    def names(self):
        """File and name of each function."""
        return sorted(f"{Path(code.co_filename).relative_to(ROOT)}:{code.co_qualname}" for code in self.codes)


def importing(frame):
    """Whether a frame runs because a module of ours is being imported."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(OWN):
            return True
        frame = frame.f_back
    return False


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol():
    """Note what a test runs, all of its phases."""
    PauseInstrumentation.__enter__ = lambda self: None  # else it would count nothing while `benchmark` times the training
    executed = Executed()
    sys.setprofile(executed)
    try:
        return (yield)
    finally:
        sys.setprofile(None)
        Path(os.environ[VARIABLE]).write_text(json.dumps(executed.names))
