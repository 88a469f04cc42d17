"""Dispatches to the command named by the first argument and maps errors to exit codes."""

import os
import sys
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import Any

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.terminal import say

# Exit codes as a shell would report them
EXIT_REFUSED = 2
BROKEN_PIPE = 141
INTERRUPTED = 130


class FormerName(Action):
    """An argparse action that lets an option's former name set the renamed option."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Any,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Set the renamed option and tell the user its new name."""
        setattr(namespace, self.dest, values)
        name = self.dest.replace("_", "-")
        say(f"{parser.prog}: {option_string} is now called --{name}", error=True)


def add_gate_on(
    parser: ArgumentParser,
    known: Sequence[str],
    default: Sequence[str],
    former_name: str,
) -> None:
    """Add the option `--gate-on`, and accept `former_name`, its name in earlier releases."""
    add = parser.add_argument
    text = f"what counts: {','.join(known)} (default {','.join(default)})"
    add("--gate-on", default=",".join(default), metavar="KIND,KIND", help=text)
    add(former_name, dest="gate_on", action=FormerName, default=SUPPRESS, help=SUPPRESS)


def program(
    name: str,
    package: str,
    commands: Mapping[str, str],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run the command that the first argument names; return its exit code.

    Each command is the `main` function of the module with that name in `package`; `commands` maps
    names to descriptions. If a command is unknown or raises InputError or OSError, or if standard
    output is closed, a message is printed and the exit code is 2; it is 130 after an interrupt, and
    141 after a broken pipe.
    """
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    code = 0
    if sys.stdout is None:  # closed, for example by `>&-`
        fault = f"standard output is closed; redirect it to a file, or to {os.devnull}"
        say(f"{name} {command}: error: {fault}", error=True)
        return EXIT_REFUSED
    try:
        if command == "--version":
            say(f"tunegrid {version('tunegrid')}")
        elif command in ("-h", "--help"):
            width = max(map(len, commands))
            lines = [f"  {command:<{width}} {about}" for command, about in commands.items()]
            hint = f"{name} COMMAND --help describes a command"
            hint += f"; files that messages name are in {ROOT}."
            say("\n".join([f"usage: {name} COMMAND ...", "", *lines, "", hint]))
        elif command in commands:
            code = import_module(f"{package}.{command}").main(rest)
        else:
            names = get_close_matches(command, commands, n=1)
            hint = f"{name} lists them all; removed ones are in reports/CHANGELOG.md"
            if names:
                hint = f"did you mean {names[0]}?"
            say(f"{name}: unknown command {command!r}; {hint}", error=True)
            code = EXIT_REFUSED
        sys.stdout.flush()
    except BrokenPipeError:  # the reader stopped reading, as `head` does
        # Python flushes stdout again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (InputError, OSError) as error:
        say(f"{name} {command}: error: {error}", error=True)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        say(f"{name} {command} was stopped")
        return INTERRUPTED
    return code
