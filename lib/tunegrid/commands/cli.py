"""Programs of several commands, of which the first word of the command line names one; and how a command ends."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.terminal import say

BROKEN_PIPE, INTERRUPTED = 141, 130  # exit codes, as a shell gives them


def refuse(parser: ArgumentParser, error: object) -> NoReturn:
    """End with one sentence and exit code 2, without the usage, which is for a command line that cannot be read."""
    parser.exit(2, f"{parser.prog}: error: {error}\n")


def exit_code(parser: ArgumentParser, command: Callable[[], int]) -> int:
    """A command's exit code; one sentence if it cannot do what it was asked for, or was interrupted."""
    try:
        return command()
    except BrokenPipeError:
        raise
    except (InputError, OSError) as error:
        refuse(parser, error)
    except KeyboardInterrupt:
        say(f"{parser.prog} was stopped")
        return INTERRUPTED


def program(name: str, package: str, commands: Mapping[str, str], arguments: Sequence[str] | None = None) -> int:
    """Run one of some commands, each in a module of its name; return its exit code. `commands` says what each does."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    code = 0
    try:
        if command == "--version":
            say(f"tunegrid {version('tunegrid')}")
        elif not (ROOT / "benchmarks").is_dir():
            say(f"{ROOT} is not a checkout of tunegrid; `pip install -e CHECKOUT` installs one", error=True)
            code = 2
        elif command in ("-h", "--help"):
            width = max(map(len, commands))
            lines = [f"  {command:<{width}} {what}" for command, what in commands.items()]
            say("\n".join([f"usage: {name} COMMAND ...", "", *lines, "", f"{name} COMMAND --help describes one."]))
        elif command in commands:
            code = import_module(f"{package}.{command}").main(rest)
        else:
            near = get_close_matches(command, commands, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{name} lists them all; former ones are in reports/CHANGELOG.md"
            say(f"{name}: unknown command {command!r}; {hint}", error=True)
            code = 2
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more when it ends
        return BROKEN_PIPE
    return code
