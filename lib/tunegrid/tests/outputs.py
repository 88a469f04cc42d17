"""What a terminal, or a CI that reads a log, would obey in an output; and the sentence of a command
that refuses.
"""

import os
import re
from pathlib import Path

from tunegrid.errors import InputError

COMMAND = re.compile(r"^\s*::|##\w*\[")  # of GitHub Actions, old and new, and of Azure Pipelines


def obeyed(output):
    """The lines that hold a control character or a command."""
    return [line for line in output.split("\n") if not line.isprintable() or COMMAND.search(line)]


def refusal(capsys, main, *arguments):
    """What a command that refuses these arguments says on one line, or wrapped; its exit code is
    2.
    """
    code = 2
    try:
        code = main([*map(str, arguments)])
    except SystemExit as ended:
        code = ended.code
    except (InputError, OSError) as error:  # which `tunegrid NAME` prints
        return f"error: {error}"
    assert code == 2
    return " ".join(capsys.readouterr().err.split())


SNAPSHOTS = Path(__file__).parent / "report" / "snapshots"


def is_snapshot(text, name):
    """Whether an output is what a person has read: `TUNEGRID_SNAPSHOTS=new pytest ...` writes the
    files anew, to be read.
    """
    file = SNAPSHOTS / name
    if os.environ.get("TUNEGRID_SNAPSHOTS") == "new":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return text == file.read_text(encoding="utf-8")
