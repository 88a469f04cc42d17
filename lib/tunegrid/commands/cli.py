"""A program of several commands: the first word of the command line names one, whose exit code it returns."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module

from tunegrid import ROOT


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
        name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
        if trouble := self.trouble(name):
            print(trouble, file=sys.stderr)
            return 2
        if name in ("-h", "--help"):
            print(self.usage)
            return 0
        code: int = import_module(f"{self.package}.{name}").main(rest)
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
