"""How far the two sides may lie apart at a stage that has numbers, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What is rounding.

    Attributes:
        largest: of one difference.
        mean: of all of them, with their signs: a constant difference is none of chance, however small.
        why: where both come from.
    """

    largest: float
    mean: float
    why: str


# Losses are held as shares of themselves where they are above 1. Largest of the 27 quick cells with three seeds, on a CPU:
# 2.4e-7 for losses, 7.7e-8 for gradient norms, and 0 for rates, weights and resumed runs: both sides call the same kernels in
# the same order. A GPU was not measured.
LOSS = Tolerance(largest=2e-6, mean=1e-6, why="theirs is a mean, ours a sum that is divided: a few last digits of fp32")
GRADIENT = Tolerance(largest=2e-6, mean=2e-6, why="as the loss that it is taken of")
RATE = Tolerance(largest=1e-9, mean=1e-9, why="the same formula in doubles")
LATER = Tolerance(largest=1e-5, mean=2e-6, why="Adam's first steps are as long as the rate, so that last digits grow")
MOVED = Tolerance(largest=1e-4, mean=1e-5, why="as the losses of later updates; a tensor that hardly moves has few digits")
RESUMED = Tolerance(largest=0.0, mean=0.0, why="a resumed run repeats the same arithmetic on the same numbers")
SCORED = Tolerance(largest=2e-6, mean=2e-6, why="as the loss of an update")


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far two lists of numbers lie apart: theirs less ours."""

    largest: float
    mean: float
    at: int

    def exceeds(self, tolerance: Tolerance) -> bool:
        """Whether it is more than rounding."""
        return not (self.largest <= tolerance.largest and abs(self.mean) <= tolerance.mean)


def apart(theirs: Sequence[float], ours: Sequence[float]) -> Apart:
    """The largest difference, the mean one, and where the largest stands; lists of two lengths have nothing to subtract."""
    differences = [a - b for a, b in zip(theirs, ours, strict=False)]
    if len(theirs) != len(ours) or not differences:
        return Apart(largest=float("inf"), mean=float("inf"), at=min(len(theirs), len(ours)))
    at = max(range(len(differences)), key=lambda index: _size(differences[index]))
    return Apart(largest=_size(differences[at]), mean=fmean(differences), at=at)


def _size(difference: float) -> float:
    return abs(difference) if difference == difference else float("inf")
