"""Loads the thresholds that figures are compared with: bounds, margins and tolerances.

`margins.toml` and the constants here are set by hand. Bounds (`quick.toml` and the like),
`noise.toml` and `numerics.toml` (tolerances for rounding) are measured, and describe the runs that
they were measured on.
"""

import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from tunegrid import ROOT
from tunegrid.errors import InputError, first_line
from tunegrid.gate.judgements import PEAKS, SPEEDS, TRACED
from tunegrid.terminal import defuse

THRESHOLDS = ROOT / "benchmarks" / "thresholds"
TOLERANCES = THRESHOLDS / "numerics.toml"
LAB_CALIBRATE = "python -m tunegrid.lab calibrate"
OWN_CALIBRATE = "tunegrid calibrate"

# A norm below this share of the largest group's or module's norm has no digits to compare, so it
# counts as this share.
SMALL_NORM = 1e-3
# A module's figure is equal only if it moved by less than this share of the movement on the
# module's other side, since a movement that grows slowly crosses any bound.
TENTH = 0.1
# Points of a mean BERTScore. Another CPU moves it by 4e-7, a change of one text in 200 by 5e-4.
BERTSCORE_ROUNDING = 1e-5
# The chance below which rounding does not explain the changed test rows of a cell, given the number
# that it changes on average (from the tolerance).
CHANCE = 3e-4
FIXED_ANSWERS = 0.01  # in points; another BERTScore encoder may change the last digits

Number = Annotated[float, Field(strict=True, ge=-1e9, le=1e9, allow_inf_nan=False)]
Minimum = Annotated[Number, Field(ge=0, le=100)]
Bounds = Mapping[str, float]  # minimum points by metric
# By arithmetic, and by "cell " plus a cell's id for figures that have their own tolerance in that
# cell. The head of the file explains each figure.
Tolerances = Mapping[str, Mapping[str, float]]
MARGINS = {"points": ("other",), "memory": ("ledger", *PEAKS, *TRACED), "speed": SPEEDS}
TOLERATED = (
    "first",
    "later",
    "weights",
    "probe_gradients",
    "gradients",
    "moved",
    "moved_alone",
    "curve",
    "decoded",
    "module_outputs",
    "module_gradients",
)


def bounds_file(grid_file: Path, profile: str) -> Path:
    """The bounds file for a user's cells, for example sst2.quick.toml next to sst2.py."""
    return grid_file.with_suffix(f".{profile}.toml")


def load_bounds(path: Path) -> dict[str, Bounds]:
    """Loads bounds by cell id; empty if there is no such file.

    Raises InputError for an invalid file.
    """
    if not path.is_file():
        return {}
    command = LAB_CALIBRATE if path.parent == THRESHOLDS else OWN_CALIBRATE
    with read_toml(path, "bounds", command) as content:
        facts_by_name = dict[str, Number | list[Number]]
        cells = check_shape(content["cells"], dict[str, dict[str, facts_by_name]])
        if not cells:
            raise InputError("cells is empty: no cell has a bound")
        bounds = dict[str, Bounds]()
        for cell, scores in cells.items():
            if not scores:
                raise InputError(f"cells.{cell} is empty: no score has a bound")
            minima = {name: facts["minimum"] for name, facts in scores.items()}
            check_shape({cell: minima}, dict[str, dict[str, Minimum]])
            # A minimum of 0 bounds nothing.
            bounds[cell] = {name: minimum for name, minimum in minima.items() if minimum > 0}
        return bounds


def load_margins(path: Path = THRESHOLDS / "margins.toml") -> dict[str, dict[str, float]]:
    """Loads the smallest changes that count, by kind and quantity.

    Raises InputError for an invalid file.
    """
    with read_toml(path, "margins") as content:
        margins = {}
        for kind, names in MARGINS.items():
            margins[kind] = check_shape(content[kind], dict[str, Number], names)
        return margins


def load_tolerances(path: Path = TOLERANCES) -> Tolerances:
    """Loads the largest differences in numerics that count as rounding.

    Raises InputError for an invalid file.
    """
    with read_toml(path, "tolerances", LAB_CALIBRATE) as content:
        tolerances = {}
        for name, figures in content.items():
            if name != "evidence":
                needed = () if name.startswith("cell ") else TOLERATED
                tolerances[name] = check_shape(figures, dict[str, Number], needed)
        return tolerances


def cell_tolerance(cell: str, arithmetic: str, tolerances: Tolerances) -> Mapping[str, float]:
    """The largest differences that count as rounding in a cell with this arithmetic."""
    return {**tolerances[arithmetic], **tolerances.get(f"cell {cell}", {})}


@contextmanager
def read_toml(path: Path, what: str, command: str = "") -> Iterator[Mapping[str, Any]]:
    """Yields a TOML file's content; turns errors in reading or checking it into InputErrors.

    The messages say that the file holds no `what`, and name the `command` that writes it.
    """
    try:
        yield tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        cause = f"{kind}{first_line(error)[:200]}"
        if isinstance(error, ValidationError):
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"]))
            cause = defuse(f"{field}: {fault['msg']}")[:200]
        way_out = f"`{command}` writes it" if command else "take the repository's"
        raise InputError(f"{path} holds no {what} ({cause}); {way_out}") from None


def check_shape(value: Any, shape: Any, needed: Collection[str] = ()) -> Any:
    """Validates a value against a type and returns it.

    Raises ValueError if it does not match, and KeyError if a needed key is missing.
    """
    missing_keys = set(needed) - set(value) if needed else set()
    if missing_keys:
        raise KeyError(min(missing_keys))
    return TypeAdapter(shape).validate_python(value)
