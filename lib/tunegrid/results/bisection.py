"""Finds the first version that is worse, of versions in order and an oracle that judges one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class VersionState(StrEnum):
    """What an oracle says of a version."""

    GOOD = "not worse"
    BAD = "worse"
    SKIPPED = "skipped"  # it cannot be told, as where the version cannot be installed


# Answers for a version, and is told how many steps are left at most, this one included.
Oracle = Callable[[str, int], VersionState]


@dataclass(frozen=True, kw_only=True)
class Bisection:
    """Between which versions it became worse.

    Attributes:
        last_good: the last version that is known not to be worse.
        first_bad: the first version that is known to be worse.
        skipped: versions between the two; any of them may be the first that is worse.
    """

    last_good: str
    first_bad: str
    skipped: tuple[str, ...]


def most_steps(candidates: int) -> int:
    """How many questions tell so many versions apart, with a good one before and a bad one after them.

    Every version that has to be skipped may cost one more.
    """
    return candidates.bit_length()


def bisection(versions: Sequence[str], oracle: Oracle) -> Bisection:
    """Halve until no version is left to ask about; the first version is good and the last one is bad, unasked."""
    last_good, first_bad, skipped = 0, len(versions) - 1, set[int]()
    while candidates := [index for index in range(last_good + 1, first_bad) if index not in skipped]:
        index = candidates[len(candidates) // 2]
        answer = oracle(versions[index], most_steps(len(candidates)))
        if answer is VersionState.GOOD:
            last_good = index
        elif answer is VersionState.BAD:
            first_bad = index
        else:
            skipped.add(index)
    between = tuple(versions[last_good + 1 : first_bad])
    return Bisection(last_good=versions[last_good], first_bad=versions[first_bad], skipped=between)
