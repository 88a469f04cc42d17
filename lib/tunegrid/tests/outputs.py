"""What a terminal, or a CI that reads a log, would obey in an output."""

import re

COMMAND = re.compile(r"^\s*::|##\w*\[")  # of GitHub Actions, old and new, and of Azure Pipelines


def obeyed(output):
    """The lines that hold a control character or a command."""
    return [line for line in output.split("\n") if not line.isprintable() or COMMAND.search(line)]
