"""Runs several pytest command lines in one process.

`python -m tunegrid.tests.together JSON` prints a list of exit codes, outputs and errors. It suits
command lines that end before a test runs, such as refusals and listings: each takes a fraction of a
second, whereas a new process takes seconds.
"""

import contextlib
import io
import json
import sys

import pytest


def main(command_lines):
    for arguments in command_lines:
        out = io.StringIO()
        err = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = pytest.main(arguments)
        yield int(code), out.getvalue(), err.getvalue()


if __name__ == "__main__":
    answers = list(main(json.loads(sys.argv[1])))
    print(json.dumps(answers))
