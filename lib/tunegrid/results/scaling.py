"""How cost grows with the number of rows. In: seconds and bytes by stage and size. Out: exponents, a table, JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunegrid.results.table import Column, lines, number

MIB = 2**20
LEAST_SECONDS = 0.05  # below, a clock says more of the machine than of the rows
COLUMNS = (
    Column(title="stage", width=18),
    Column(title="rows", right=True, gap=2),
    Column(title="CPU s", right=True, gap=2),
    Column(title="rows/s", right=True, gap=2),
    Column(title="exponent", right=True, gap=2),
    Column(title="peak MiB", right=True, gap=2),
    Column(title="of it mapped", right=True, gap=2),
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One stage at one size.

    Attributes:
        seconds: of one processor.
        peak_bytes: by how much the process grew at most; None where the system does not tell.
        mapped_bytes: of files mapped into memory when the stage ended, which the kernel may take back; None as above.
    """

    stage: str
    rows: int
    seconds: float
    peak_bytes: int | None
    mapped_bytes: int | None


def exponent(small: Measured, large: Measured) -> float | None:
    """The power of the rows by which seconds grow, 1 where they are linear; None where the smaller size takes no time."""
    if small.seconds < LEAST_SECONDS:
        return None
    return math.log(large.seconds / small.seconds) / math.log(large.rows / small.rows)


def exponents(measured: Sequence[Measured]) -> list[float | None]:
    """For each measurement, the exponent from the size before it; None for the first of a stage."""
    pairs = zip([None, *measured], measured, strict=False)
    return [exponent(before, after) if before and before.stage == after.stage else None for before, after in pairs]


def as_text(measured: Sequence[Measured]) -> list[str]:
    """A table."""
    rows = [
        (
            one.stage,
            f"{one.rows}",
            number(one.seconds, 2),
            number(one.rows / one.seconds, 0),
            number(power, 2),
            number(None if one.peak_bytes is None else one.peak_bytes / MIB, 0),
            number(None if one.mapped_bytes is None else one.mapped_bytes / MIB, 0),
        )
        for one, power in zip(measured, exponents(measured), strict=True)
    ]
    return lines(COLUMNS, rows)


def as_json(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """A mapping a measurement."""
    return [asdict(one) | {"exponent": power} for one, power in zip(measured, exponents(measured), strict=True)]
