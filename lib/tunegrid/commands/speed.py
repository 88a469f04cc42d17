"""Did training become slower, or larger? `tunegrid speed OLD NEW` compares two environments.

OLD and NEW are virtual environments, or their Pythons. In each round of a quick cell, a fresh process of each warms up; then
they make their updates in turn, A B B A. A cell is done when the interval of the ratio lies within the margin or beyond it;
worse is only what lies wholly beyond. Over all cells, equal environments are called worse in 1 of 100 comparisons at most. The
same command goes on where it was stopped.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from filelock import FileLock, Timeout

from tunegrid import ROOT
from tunegrid.commands.cli import refuse
from tunegrid.commands.turns import answer_of, in_turn
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.profiles import CACHE, QUICK_PROFILE
from tunegrid.machine import cpu_name
from tunegrid.record.turn import Turn
from tunegrid.results.journal import code_digest
from tunegrid.results.pairs import Rule
from tunegrid.results.speed import MIB, SIDES, Comparison, Pair
from tunegrid.terminal import say

KEPT = CACHE / "speed"
LIBRARIES = (
    "import json; from tunegrid.libraries import library_digests; from tunegrid.machine import versions;"
    "print(json.dumps([versions(), library_digests()]))"
)
WORTH_SAYING = 0.05  # of a core that others took


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a turn does.

    Attributes:
        warm: updates before the timed ones.
        updates: timed updates.
        rows: test rows that are evaluated after them.
        device: None takes the CPU, as all quick cells do.
    """

    warm: int = 5
    updates: int = 40
    rows: int = 0
    device: str | None = None

    @property
    def arguments(self) -> list[str]:
        """Of `tunegrid.run.turn`."""
        numbers = {name: value for name, value in asdict(self).items() if value is not None}
        return [f"--{name}={value}" for name, value in numbers.items()]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python and the libraries that it has.

    Attributes:
        versions: of Python and each library; None for one that it lacks.
        digests: of the libraries' code: two commits may have one version.
    """

    python: Path
    versions: dict[str, str | None]
    digests: dict[str, str]


def environment(place: Path) -> Environment:
    """The environment in a folder, or of a Python; raises InputError where it cannot run a cell."""
    pythons = [place / folder / name for folder in ("bin", "Scripts") for name in ("python", "python.exe")]
    python = next((path for path in [place, *pythons] if path.is_file()), None)
    if python is None:
        raise InputError(f"{place} is no virtual environment and no Python; give a folder that `python -m venv` made")
    versions, digests = answer_of([str(python), "-c", LIBRARIES], f"{place} cannot be asked for its libraries")
    if absent := [name for name in ("torch", "transformers", "peft", "accelerate") if versions.get(name) is None]:
        raise InputError(f"{place} has no {absent[0]}: install what tunegrid needs there (`pip install -e {ROOT}`)")
    return Environment(python=python.absolute(), versions=versions, digests=digests)


def differences(before: Environment, after: Environment) -> str:
    """How the libraries differ, in words."""
    names = [name for name in {**before.versions, **after.versions} if _parts(before, name) != _parts(after, name)]
    changes = [_change(name, before.versions.get(name), after.versions.get(name)) for name in names]
    return ", ".join(changes) or "the same libraries in both"


def _change(name: str, old: str | None, new: str | None) -> str:
    return f"{name} {old} (other code)" if old == new else f"{name} {old} -> {new}"


def _parts(one: Environment, name: str) -> tuple[str | None, str | None]:
    return one.versions.get(name), one.digests.get(name)


@dataclass(kw_only=True)
class Rounds:
    """Pairs of turns of two environments; each is written down when it ends, and a known one is not taken again.

    Attributes:
        sides: the environment before, and the one after.
        path: the file of pairs, one per line.
    """

    sides: Sequence[Environment]
    settings: Settings
    path: Path
    _known: dict[tuple[str, int], Pair] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Read what an earlier command took."""
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").split("\n"):
                self._read(line)

    def __len__(self) -> int:
        """How many were taken."""
        return len(self._known)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            self._known[entry["cell"], entry["round"]] = (Turn(**entry["before"]), Turn(**entry["after"]))
        except (ValueError, KeyError, TypeError):
            return  # a line that was cut off

    def pair(self, cell: str, number: int) -> Pair:
        """A cell's pair of a round, from two processes of their own unless it is known; raises InputError where one fails."""
        if (cell, number) not in self._known:
            try:
                before, after = in_turn([self._command(side, cell) for side in self.sides], number, self.settings.updates)
            except InputError as error:
                raise InputError(f"{cell} does not run, so leave it out of --cells; what fails is {error}") from None
            self._keep(cell, number, (Turn(**before), Turn(**after)))
        return self._known[cell, number]

    def _command(self, side: Environment, cell: str) -> list[str]:
        return [str(side.python), "-m", "tunegrid.run.turn", cell, *self.settings.arguments]

    def _keep(self, cell: str, number: int, pair: Pair) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"cell": cell, "round": number} | {side: asdict(turn) for side, turn in zip(SIDES, pair, strict=True)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(entry)}")
        self._known[cell, number] = pair


def compared(rounds: Rounds, cells: Sequence[str], rule: Rule) -> Comparison:
    """Take rounds, cell by cell, until every cell is told or had all its rounds."""
    pairs: dict[str, list[Pair]] = {cell: [] for cell in cells}
    for number in range(1, rule.rounds + 1):
        for cell in Comparison(pairs=pairs, rule=rule).open_cells:
            pairs[cell].append(rounds.pair(cell, number))
            say(f"round {number} of at most {rule.rounds}  {cell}  {shown(*pairs[cell][-1])}")
    return Comparison(pairs=pairs, rule=rule)


def shown(before: Turn, after: Turn) -> str:
    """A pair in a few words."""
    speeds = " -> ".join(f"{1000 * median(turn.update_seconds):.1f}" for turn in (before, after))
    peaks = [f"{turn.peak_bytes / MIB:.0f}" for turn in (before, after) if turn.peak_bytes is not None]
    memory = f", {' -> '.join(peaks)} MiB" if peaks else ""
    taken = max(turn.waited_share or 0.0 for turn in (before, after))
    return f"{speeds} ms an update{memory}" + (f" (others had {taken:.0%} of the core)" if taken >= WORTH_SAYING else "")


def path_of(before: Environment, after: Environment, settings: Settings) -> Path:
    """The file of rounds of two environments here, with these settings and this code."""
    sides = [[str(side.python), side.versions, side.digests] for side in (before, after)]
    question = json.dumps([sides, asdict(settings), code_digest(), cpu_name()], sort_keys=True)
    return KEPT / f"{hashlib.sha256(question.encode()).hexdigest()[:12]}.jsonl"


def comparison_of(places: Sequence[Path], cells: Sequence[str], rule: Rule, settings: Settings) -> Comparison:
    """Compare two environments, the one before and the one after, on quick cells; say how far it is.

    Raises:
        InputError: where an environment or a cell cannot run, or another command compares the same two.
    """
    cells, (before, after) = checked(cells), map(environment, places)
    say(differences(before, after))
    path = path_of(before, after, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0):
            rounds = Rounds(sides=(before, after), settings=settings, path=path)
            if len(rounds):
                say(f"{len(rounds)} rounds are known from an earlier command; remove {path} to take them again")
            return compared(rounds, cells, rule)
    except Timeout:
        raise InputError(f"another command compares these two right now and writes {path}: wait for its end") from None


def checked(cells: Sequence[str]) -> list[str]:
    """Cells that exist; raises InputError for another."""
    return [STUDY.cell(cell, QUICK_PROFILE).id for cell in dict.fromkeys(cells)]


def some_of_each() -> list[str]:
    """A third of the quick cells, in which every two of backbone, task and method meet once (a Latin square)."""
    ids = [cell.id for cell in STUDY.cells(QUICK_PROFILE)]
    parts = [list(dict.fromkeys(words)) for words in zip(*(cell.split("_") for cell in ids), strict=True)]
    places = {cell: sum(part.index(word) for part, word in zip(parts, cell.split("_"), strict=True)) for cell in ids}
    return [cell for cell in ids if places[cell] % len(parts) == 0]


# The command line


def parsed(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tunegrid speed", description=__doc__)
    parser.add_argument("before", type=Path, metavar="OLD", help="a virtual environment, or its Python")
    parser.add_argument("after", type=Path, metavar="NEW", help="another one")
    parser.add_argument("--cells", metavar="ID,ID", help=f"quick cells (default {','.join(some_of_each())})")
    parser.add_argument("--rounds", type=int, default=Rule.rounds, metavar="N", help=f"at most (default {Rule.rounds})")
    percent = 100 * Rule.margin
    parser.add_argument("--margin", type=float, default=percent, metavar="PERCENT", help=f"that counts (default {percent:g})")
    updates = f"timed in a turn (default {Settings.updates})"
    parser.add_argument("--updates", type=int, default=Settings.updates, metavar="N", help=updates)
    parser.add_argument("--rows", type=int, default=0, metavar="N", help="also evaluate so many test rows (default none)")
    parser.add_argument("--device", metavar="DEVICE", help="cuda or cuda:N; quick cells take the CPU by default")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, say what was found; return the exit code."""
    parser, options = parsed(arguments)
    cells = options.cells.split(",") if options.cells else some_of_each()
    try:
        rule = Rule(margin=options.margin / 100, rounds=options.rounds)
        settings = Settings(updates=options.updates, rows=options.rows, device=options.device)
        comparison = comparison_of((options.before, options.after), cells, rule, settings)
    except InputError as error:
        refuse(parser, error)
    except KeyboardInterrupt:
        say("stopped; the same command goes on with the rounds that were taken")
        return 130
    say("\n".join([*comparison.table, comparison.answer]))
    return comparison.outcome.exit_code
