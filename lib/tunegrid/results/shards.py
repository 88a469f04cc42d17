"""Checks whether all files of a grid that several machines share came back.

Nobody hands out work: each machine reckons all shards (`tunegrid.results.estimates.shared_out`) and takes its own.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tunegrid.errors import InputError
from tunegrid.record import Record

SHOWN = 30  # missing runs that are named
KEY = "shard"  # of a run's JSON, beside pytest-benchmark's own


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
