"""A program of several commands: the first word of the command line names one, whose exit code it returns."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from tunegrid import ROOT
from tunegrid.terminal import say

BROKEN_PIPE = 141  # exit code, as a shell gives it


def refuse(parser: ArgumentParser, error: object) -> NoReturn:
    """End with one sentence and exit code 2, without the usage, which is for a command line that cannot be read."""
    parser.exit(2, f"{parser.prog}: error: {error}\n")


@dataclass(frozen=True, kw_only=True)
class Program:
    """Commands under one name.

    Attributes:
        name: what one types to start it.
        package: where each command has a module of its name, with a function `main`.
        commands: what each does, in a line.
        former: commands of older versions, with what to do now.
    """

    name: str
    package: str
    commands: Mapping[str, str]
    former: Mapping[str, str] = field(default_factory=dict)

    def main(self, arguments: list[str] | None = None) -> int:
        """Run a command; return its exit code, 2 for one that does not exist."""
        try:
            code = self._run(*(sys.argv[1:] if arguments is None else arguments))
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads has enough, as `head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more when it ends
            return BROKEN_PIPE
        return code

    def _run(self, name: str = "--help", *rest: str) -> int:
        if name == "--version":
            say(f"tunegrid {version('tunegrid')}")
            return 0
        if trouble := self.trouble(name):
            say(trouble, error=True)
            return 2
        if name in ("-h", "--help"):
            say(self.usage)
            return 0
        code: int = import_module(f"{self.package}.{name}").main(list(rest))
        return code

    def trouble(self, name: str) -> str:
        """Why this command cannot run, and what to do; empty where it can."""
        if not (ROOT / "benchmarks").is_dir():
            return f"{ROOT} is not a checkout of tunegrid, which the suite needs: install it with `pip install -e CHECKOUT`"
        if name in (*self.commands, "-h", "--help"):
            return ""
        if name in self.former:
            return f"{self.name} {name} was removed: {self.former[name]}"
        near = get_close_matches(name, self.commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"{self.name} lists them all"
        return f"{self.name}: unknown command {name!r}; {hint}"

    @property
    def usage(self) -> str:
        """Every command with what it does."""
        width = max(map(len, self.commands))
        lines = [f"  {name:<{width}} {what}" for name, what in self.commands.items()]
        return "\n".join([f"usage: {self.name} COMMAND ...", "", *lines, "", f"{self.name} COMMAND --help describes one."])
