"""Programs of several commands, of which the first word of the command line names one; and how a command ends."""

import os
import sys
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.terminal import say

REFUSED, BROKEN_PIPE, INTERRUPTED = 2, 141, 130  # exit codes, as a shell gives them


class FormerName(Action):
    """An option under the name of an earlier release, which sets the one that took its place and says so."""

    def __call__(self, parser: ArgumentParser, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Set what `dest` names."""
        setattr(namespace, self.dest, values)
        name = self.dest.replace("_", "-")
        say(f"{parser.prog}: {option_string} is now called --{name}", error=True)


def add_gate_on(parser: ArgumentParser, known: Sequence[str], default: Sequence[str], former_name: str) -> None:
    """Add `--gate-on`, which other commands called otherwise."""
    text = f"what counts: {','.join(known)} (default {','.join(default)})"
    parser.add_argument("--gate-on", default=",".join(default), metavar="KIND,KIND", help=text)
    parser.add_argument(former_name, dest="gate_on", action=FormerName, default=SUPPRESS, help=SUPPRESS)


def refuse(parser: ArgumentParser, error: object) -> NoReturn:
    """End with one sentence and exit code 2, without the usage, which is for a command line that cannot be read."""
    parser.exit(REFUSED, f"{parser.prog}: error: {error}\n")


def program(name: str, package: str, commands: Mapping[str, str], arguments: Sequence[str] | None = None) -> int:
    """Run one of some commands, each in a module of its name; return its exit code. `commands` says what each does.

    A command raises InputError if it cannot do what it was asked for: that is one sentence here, and exit code 2.
    """
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    code = 0
    if sys.stdout is None:  # as by `>&-`
        fault = f"standard output is closed; redirect it to a file, or to {os.devnull}"
        say(f"{name} {command}: error: {fault}", error=True)
        return REFUSED
    try:
        if command == "--version":
            say(f"tunegrid {version('tunegrid')}")
        elif command in ("-h", "--help"):
            width = max(map(len, commands))
            lines = [f"  {command:<{width}} {what}" for command, what in commands.items()]
            hint = f"{name} COMMAND --help describes a command; files that messages name are in {ROOT}."
            say("\n".join([f"usage: {name} COMMAND ...", "", *lines, "", hint]))
        elif command in commands:
            code = import_module(f"{package}.{command}").main(rest)
        else:
            names = get_close_matches(command, commands, n=1)
            hint = f"did you mean {names[0]}?" if names else f"{name} lists them all; removed ones are in reports/CHANGELOG.md"
            say(f"{name}: unknown command {command!r}; {hint}", error=True)
            code = REFUSED
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more when it ends
        return BROKEN_PIPE
    except (InputError, OSError) as error:
        say(f"{name} {command}: error: {error}", error=True)
        return REFUSED
    except KeyboardInterrupt:
        say(f"{name} {command} was stopped")
        return INTERRUPTED
    return code
