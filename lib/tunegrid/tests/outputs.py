"""Checks of output: what a terminal or CI would obey in it, refusals, and snapshots."""

import os
import re
from pathlib import Path

from tunegrid.errors import InputError

# Commands of GitHub Actions, old and new, and of Azure Pipelines
COMMAND = re.compile(r"^\s*::|##\w*\[")


def obeyed(output):
    """The lines that hold a control character or a CI command."""
    return [line for line in output.split("\n") if not line.isprintable() or COMMAND.search(line)]


def refusal(capsys, main, *arguments):
    """The message, on one line, of a command that must refuse these arguments with exit code 2."""
    code = 2
    try:
        code = main([*map(str, arguments)])
    except SystemExit as ended:
        code = ended.code
    except (InputError, OSError) as error:  # `tunegrid NAME` prints such errors
        return f"error: {error}"
    assert code == 2
    return " ".join(capsys.readouterr().err.split())


SNAPSHOTS = Path(__file__).parent / "report" / "snapshots"


def is_snapshot(text, name):
    """Checks that output equals a snapshot that a person has reviewed.

    `TUNEGRID_SNAPSHOTS=new pytest ...` rewrites the snapshots for review.
    """
    file = SNAPSHOTS / name
    if os.environ.get("TUNEGRID_SNAPSHOTS") == "new":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return text == file.read_text(encoding="utf-8")
