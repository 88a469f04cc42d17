"""What one process measured of a cell, for `tunegrid speed`."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A few updates of a cell in a process of their own, taken in turn with another's.

    Attributes:
        update_seconds: of each timed update, in the order of training, which is the same on both sides.
        waited_share: of the updates' wall-clock time, what others took of the core, which is not in `update_seconds`; None on a
            GPU, or where the system does not tell.
        rows_per_second: of an evaluation after training; None where no row was evaluated.
        peak_bytes: the most that the process held: resident on a CPU (None where the system does not tell), allocated on a GPU.
    """

    update_seconds: Sequence[float]
    waited_share: float | None
    rows_per_second: float | None
    peak_bytes: int | None
