"""A grid over several machines. In: seconds of each run, how many machines. Out: who runs what; whether all came back.

Nobody hands out work: each machine reckons all shards and takes its own. So nothing here may depend on the machine.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Protocol, TypeVar

from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.profiles import FULL_PROFILE, QUICK_PROFILE
from tunegrid.record import Record
from tunegrid.results.estimates import estimates

SHOWN = 30  # missing runs that are named
KEY = "shard"  # of a run's JSON, beside pytest-benchmark's own


class Ordered(Protocol):
    """What can be sorted."""

    def __lt__(self, other: Any, /) -> bool:
        """Whether it comes first."""


Unit = TypeVar("Unit", bound=Ordered)


class Case(NamedTuple):
    """One run of one cell."""

    profile: str
    cell: str
    seed: int | None

    def __str__(self) -> str:
        """As a sentence names it."""
        return f"{self.cell} ({self.profile}, seed {self.seed})"


def case_of(record: Record) -> Case:
    """Which run a record is of."""
    return Case(record.profile, record.cell, record.seeds.seed)


def shared_out(seconds: Mapping[Unit, float], count: int) -> list[list[Unit]]:
    """Shares of about equal length: the longest unit first, each to the share that has least (LPT, Graham 1969).

    Equal units come in the order of their names, so that every machine shares out alike.
    """
    shares: list[list[Unit]] = [[] for _ in range(count)]
    loads = [(0.0, place) for place in range(count)]
    for unit in sorted(seconds, key=lambda unit: (-seconds[unit], unit)):
        load, place = heappop(loads)
        shares[place].append(unit)
        heappush(loads, (load + seconds[unit], place))
    return shares


def seconds_of_cells(cells: Sequence[Cell], paths: Iterable[Path]) -> dict[str, float]:
    """By cell, what saved runs say of it; else of the study's cells of its backbone and task; else of all; 1 where nothing."""
    paths = list(paths)
    study = STUDY.cells(QUICK_PROFILE if any(cell.profile.micro for cell in cells) else FULL_PROFILE)
    known, kin = ({name: e.seconds for name, e in estimates(some, paths).items() if e.seconds} for some in (cells, study))
    kinds: dict[str, list[float]] = {}
    for name, seconds in (kin | known).items():
        kinds.setdefault(name.rpartition("_")[0], []).append(seconds)
    middle = fmean(seconds for kind in kinds.values() for seconds in kind) if kinds else 1.0
    by_kind = {kind: fmean(seconds) for kind, seconds in kinds.items()}
    return {cell.id: known.get(cell.id) or by_kind.get(cell.id.rpartition("_")[0], middle) for cell in cells}


# What a shard's file says of itself


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard of a run.

    Attributes:
        number: from 1.
        of: how many there are.
        whole: what all of them run together.
    """

    number: int
    of: int
    whole: frozenset[Case]

    def to_json(self) -> dict[str, Any]:
        """For the run's file."""
        return {"number": self.number, "of": self.of, "whole": sorted(self.whole)}


def shard_of(run: Mapping[str, Any], path: Path) -> Shard | None:
    """The shard that a saved run is; None for a run that was not divided. Raises InputError where it cannot be read."""
    if KEY not in run:
        return None
    try:
        number, of, whole = (run[KEY][name] for name in ("number", "of", "whole"))
        return Shard(number=int(number), of=int(of), whole=frozenset(Case(*case) for case in whole))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not say which shard it is ({type(error).__name__}: {error})") from None


def check_divided_alike(shards: Mapping[Path, Shard]) -> None:
    """Raises InputError where files are not shards of one run."""
    for (one, first), (other, second) in pairwise(shards.items()):
        if first.of != second.of:
            raise InputError(
                f"{one} is shard {first.number}/{first.of} and {other} is shard {second.number}/{second.of}: "
                "merge the shards of one division"
            )
        if apart := first.whole ^ second.whole:
            raise InputError(
                f"{one} and {other} are shards of different runs, of which one alone has {min(apart)}: give all the same "
                "-m, --cells and --seeds"
            )


def missing(shards: Collection[Shard], present: Collection[Case]) -> list[str]:
    """A sentence for the shards that left no file, and one for the runs that are nowhere; nothing where all are there."""
    first = next(iter(shards), None)
    lost = sorted(first.whole.difference(present)) if first else []
    if not first or not lost:
        return []
    numbers = {shard.number for shard in shards}
    absent = [f"{number}/{first.of}" for number in range(1, first.of + 1) if number not in numbers]
    files = [f"no file of shard {', '.join(absent)}"] if absent else []
    names = ", ".join(map(str, lost[:SHOWN])) + (f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else "")
    return [*files, f"{len(lost)} of {len(first.whole)} runs are missing: {names}"]
