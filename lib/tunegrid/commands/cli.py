"""Programs of several commands, of which the first word of the command line names one; and how a command ends."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Program:
    """Commands under one name, each in a module of its name in `package`, with a function `main`."""

    name: str
    package: str
    commands: Mapping[str, str]  # what each does, in a line

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run a command; return its exit code, 2 for one that does not exist."""
        name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
        try:
            code = self._run(name, rest)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads has enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more when it ends
            return BROKEN_PIPE
        return code

    def _run(self, name: str, rest: Sequence[str]) -> int:
        if name == "--version":
            say(f"tunegrid {version('tunegrid')}")
        elif not (ROOT / "benchmarks").is_dir():
            say(f"{ROOT} is no checkout of tunegrid, which the suite needs: `pip install -e CHECKOUT` installs one", error=True)
            return 2
        elif name in ("-h", "--help"):
            width = max(map(len, self.commands))
            lines = [f"  {command:<{width}} {what}" for command, what in self.commands.items()]
            say("\n".join([f"usage: {self.name} COMMAND ...", "", *lines, "", f"{self.name} COMMAND --help describes one."]))
        elif name in self.commands:
            return int(import_module(f"{self.package}.{name}").main(list(rest)))
        else:
            near = get_close_matches(name, self.commands, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{self.name} lists them all"
            say(f"{self.name}: unknown command {name!r}; {hint}", error=True)
            return 2
        return 0
