"""Runs the pytest sessions that the lab's commands need, and trains none of them twice.

A session is kept in .cache/measure, in a folder of the code and the libraries that trained it, once it is whole: whoever
stops a command loses the session that runs, and the same command goes on. Other code has another folder, so it starts over.
"""

import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

from tunegrid import ROOT, launcher
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.more_tasks import IN_PLACE, more_tasks
from tunegrid.grid.recipes import QUICK_PROFILE, TASKS_PROFILE, ZOO_PROFILE
from tunegrid.grid.zoo import zoo
from tunegrid.machine import identity, library_digests, replacing, thread_share, versions
from tunegrid.record import Record
from tunegrid.results.files import read_list

MEASURED = ROOT / "reports" / "measured.json"


def read(path: Path = MEASURED) -> dict[str, Any]:
    """All sections; none where the file is not there. Raises InputError where it is not JSON."""
    try:
        sections: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); remove it, and run `python -m tunegrid.lab measure`") from None
    return sections


def note(path: Path | None, section: str, figures: Mapping[str, Any]) -> None:
    """Write a command's figures, with the day, in place of its older ones; without a path nothing is written."""
    if path is None:
        return
    sections = read(path) | {section: {"date": str(date.today()), **figures}}
    with replacing(path) as part:
        part.write_text(json.dumps(dict(sorted(sections.items())), indent=1) + "\n", encoding="utf-8")


RUNS = ROOT / ".cache" / "measure"
TRAINS = (
    "lib/tunegrid/grid",
    "lib/tunegrid/data",
    "lib/tunegrid/codecs",
    "lib/tunegrid/run",
    "lib/tunegrid/audits",
    "lib/tunegrid/record",
    "lib/tunegrid/lab/micro",  # draws the weights of controls
    "fixtures",
    "benchmarks",
)
# The cells of a micro grid.
IDS: Mapping[str, Callable[[], tuple[str, ...]]] = {
    QUICK_PROFILE.id: lambda: STUDY_IDS,
    ZOO_PROFILE.id: lambda: zoo().ids(ZOO_PROFILE),
    TASKS_PROFILE.id: lambda: tuple(filter(IN_PLACE["tasks"].has, more_tasks().ids(TASKS_PROFILE))),
}
COMPLETE = (0, 1)  # exit codes of pytest: every test ran
RecordsByCell = Mapping[str, Record]


@cache
def folder() -> Path:
    """Where the sessions of this very code are kept."""
    digest = hashlib.sha256(json.dumps([versions(), library_digests(), identity(thread_share(None))]).encode())
    for path in sorted(path for room in TRAINS for path in (ROOT / room).rglob("*") if path.is_file()):
        if "__pycache__" not in path.parts and path.suffix not in (".md", ".toml"):  # bounds are what is measured
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return RUNS / digest.hexdigest()[:12]


class LabSession(ABC):
    """A session of pytest."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of its file."""

    @property
    @abstractmethod
    def arguments(self) -> Sequence[str]:
        """Of pytest."""

    @property
    @abstractmethod
    def trainings(self) -> int:
        """How many cells it trains, each seed by itself."""

    @property
    def path(self) -> Path:
        """Its JSON."""
        return folder() / f"{self.name}.json"

    def check(self, path: Path) -> None:
        """Raises InputError where pytest left no rows."""
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} is not a complete pytest-benchmark JSON ({type(error).__name__}: {error})") from None
        if not rows:
            raise InputError(f"{path} holds no rows: did every cell fail? Run the command again")

    def train(self, workers: str) -> None:
        """Train it; its JSON has its name only once it is whole. Raises InputError where it is not."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".unfinished.json")
        part.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-n", workers, *self.arguments, f"--benchmark-json={part}"]
        code = launcher.run(command, cwd=ROOT)
        if code not in COMPLETE:
            raise InputError(f"{self.name}: pytest ended with exit code {code}; other sessions are kept, run the command again")
        self.check(part)
        part.replace(self.path)


@dataclass(frozen=True, kw_only=True)
class OtherLabSession(LabSession):
    """A session that is not a plain run of a grid, as one of controls."""

    label: str
    options: tuple[str, ...]
    count: int

    @property
    def name(self) -> str:
        """Of its file."""
        return self.label

    @property
    def arguments(self) -> Sequence[str]:
        """Of pytest."""
        return self.options

    @property
    def trainings(self) -> int:
        """About how many."""
        return self.count


@dataclass(frozen=True, kw_only=True)
class GridRun(LabSession):
    """One session of a micro grid: its cells with each of some seeds. A cell that misses a bound still has its row.

    Attributes:
        profile: quick, zoo or tasks.
        seeds: of initialisation, dropout and the order of rows.
        draw: of the noise that moves the start; None moves nothing.
        only: these cells; none takes all.
    """

    profile: str = "quick"
    seeds: Sequence[int]
    draw: int | None = None
    only: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells that it trains."""
        return self.only or IDS[self.profile]()

    @property
    def name(self) -> str:
        """Of its file; some cells alone have their digest in it."""
        draw = "" if self.draw is None else f"-draw-{self.draw}"
        some = f"-{len(self.only)}-cells-{hashlib.sha256(','.join(self.only).encode()).hexdigest()[:6]}" if self.only else ""
        return f"{self.profile}-seeds-{self.seeds[0]}-{self.seeds[-1]}{draw}{some}"

    @property
    def arguments(self) -> Sequence[str]:
        """Of pytest."""
        options = [] if self.draw is None else ["--set", f"perturbation={self.draw}"]
        options += ["--cells", ",".join(self.only)] if self.only else []
        return ["-m", self.profile, "--seeds", ",".join(map(str, self.seeds)), *options]

    @property
    def trainings(self) -> int:
        """How many cells it trains, each seed by itself."""
        return len(self.seeds) * len(self.cells)

    def check(self, path: Path) -> None:
        """Raises InputError where a cell is missing or did not finish, or the file is of another run."""
        self._read(path)

    def grids(self) -> dict[int, RecordsByCell]:
        """The grid's records by seed; raises InputError as `check` does."""
        return self._read(self.path)

    def _read(self, path: Path) -> dict[int, RecordsByCell]:
        records = {(record.seeds.seed, record.cell): record for record in read_list(path)}
        if {(r.seeds.seed, r.seeds.perturbation) for r in records.values()} != {(seed, self.draw) for seed in self.seeds}:
            raise InputError(f"{path} is of other seeds or draws than its name says; remove it")
        for seed in self.seeds:
            for cell in self.cells:
                if (seed, cell) not in records or not records[seed, cell].finished:
                    raise InputError(f"{cell} of seed {seed} did not finish in {path.name}; run the command again")
        return {seed: {cell: records[seed, cell] for cell in self.cells} for seed in self.seeds}


def fives(seeds: range, **parts: object) -> list[GridRun]:
    """Sessions of five seeds: so much is lost at most where somebody stops one."""
    return [GridRun(seeds=seeds[first : first + 5], **parts) for first in range(0, len(seeds), 5)]  # type: ignore[arg-type]


@dataclass(kw_only=True)
class LabSessions:
    """Trains what is missing, and says how far it is.

    Attributes:
        workers: of pytest-xdist.
        fresh: train everything anew.
        waiting: trainings by file, of all sessions that are known and not there.
    """

    workers: str = "auto"
    fresh: bool = False
    waiting: dict[Path, int] = field(default_factory=dict)
    known: set[Path] = field(default_factory=set)
    seconds: float = 0.0
    trained: int = 0

    def expect(self, plan: Sequence[LabSession]) -> None:
        """Count these in the time that is left."""
        for run in plan:
            if run.path not in self.known and self.fresh:
                run.path.unlink(missing_ok=True)
            if run.path not in self.known and not run.path.is_file():
                self.waiting[run.path] = run.trainings
            self.known.add(run.path)

    def train(self, plan: Sequence[LabSession]) -> None:
        """Train those of a plan that are not there."""
        self.expect(plan)
        for number, run in enumerate(plan, start=1):
            if run.path not in self.waiting:
                print(f"{number} of {len(plan)}: keeps {run.name}", flush=True)
                continue
            print(f"{number} of {len(plan)}: trains {run.name}, {run.trainings} trainings; {self.left()}", flush=True)
            started = monotonic()
            run.train(self.workers)
            self.seconds += monotonic() - started
            self.trained += self.waiting.pop(run.path)

    def left(self) -> str:
        """How much there is to do, and how long that takes at the speed so far."""
        trainings = sum(self.waiting.values())
        if not self.trained:
            return f"{trainings} in all, how long is not known yet"
        minutes = trainings * self.seconds / self.trained / 60
        return f"{trainings} in all, about {minutes:.0f} min left"
