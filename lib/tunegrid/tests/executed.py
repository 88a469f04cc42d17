"""A pytest plugin that lists which files and functions of ours a cell runs, in the order in which a reader meets them.

`pytest -m quick --cells gpt2_sum_lora -n 0 -p tunegrid.tests.executed` prints them. Counted is what runs on the main thread
from the start of a test's set-up to the end of its teardown: functions and methods of `lib/tunegrid` (its tests aside),
`fixtures` and `benchmarks`, each once. Not counted: the top level of modules and class bodies; what runs because
a module of ours is being imported; lambdas and comprehensions; what dataclasses generate; collection; the table and the files
at the end.
"""

import sys
from collections import Counter
from inspect import CO_OPTIMIZED
from pathlib import Path

import pytest
from pytest_benchmark.fixture import PauseInstrumentation

from tunegrid import ROOT

OWN = tuple(f"{ROOT / name}" for name in ("lib/tunegrid/", "fixtures/", "benchmarks/"))
TESTS = "/tunegrid/tests/"


class Executed:
    """The functions of ours that ran."""

    def __init__(self):
        self.codes = {}  # in the order of first calls
        self._known = {}

    def __call__(self, frame, event, argument):
        """`sys.setprofile`'s function: a frame was entered, or left."""
        code = frame.f_code
        if event == "call" and code not in self.codes and self._is_ours(code) and not importing(frame):
            self.codes[code] = None

    def _is_ours(self, code):
        if code not in self._known:
            is_function = code.co_flags & CO_OPTIMIZED and not code.co_name.startswith("<")
            self._known[code] = bool(is_function) and code.co_filename.startswith(OWN) and TESTS not in code.co_filename
        return self._known[code]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self):
        """Note what a test runs, all of its phases."""
        PauseInstrumentation.__enter__ = lambda self: None  # else nothing would count while `benchmark` times the training
        sys.setprofile(self)
        try:
            return (yield)
        finally:
            sys.setprofile(None)

    def pytest_terminal_summary(self, terminalreporter):
        """Each file with the number of its functions; with `-v` the functions, too."""
        functions = Counter(str(Path(code.co_filename).relative_to(ROOT)) for code in self.codes)
        terminalreporter.section(f"{functions.total()} functions in {len(functions)} files")
        for file, count in functions.items():
            names = ", ".join(code.co_qualname for code in self.codes if code.co_filename == str(ROOT / file))
            shown = terminalreporter.config.option.verbose > 0
            terminalreporter.line(f"{count:4} {file}{': ' + names if shown else ''}")


def importing(frame):
    """Whether a frame runs because a module of ours is being imported."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(OWN):
            return True
        frame = frame.f_back
    return False


def pytest_configure(config):
    config.pluginmanager.register(Executed(), "tunegrid-executed")
