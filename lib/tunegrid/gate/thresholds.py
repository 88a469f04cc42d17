"""The limits that gate and bounds compare figures with, each with its reason.

People set `margins.toml` and the constants here. `quick.toml` and its like (bounds), `noise.toml`,
and `numerics.toml` (the reach of rounding) are measured, and name the runs that they rest on.
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

# Of the largest group or module: a norm below it has no digits to compare, so this takes its place.
SMALL_NORM = 1e-3
# Of the movement of a module's other side: less is equal, since slow growth crosses any bound.
TENTH = 0.1
# Points of a mean BERTScore: on another CPU 4e-7, and one text of 200 moves it by 5e-4.
BERTSCORE_ROUNDING = 1e-5
# That rounding changes as many test rows in a cell, if on average it changes as many as its
# tolerance.
CHANCE = 3e-4
FIXED_ANSWERS = 0.01  # points of scores of fixed answers: another BERTScore encoder's last digits

Number = Annotated[float, Field(strict=True, ge=-1e9, le=1e9, allow_inf_nan=False)]
Minimum = Annotated[Number, Field(ge=0, le=100)]
Bounds = Mapping[str, float]  # minimum points by metric
# By arithmetic, and by "cell " and a cell's id where its first updates amplify more; the file's
# head explains each figure.
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
    """The file of bounds of a user's cells: sst2.quick.toml beside sst2.py."""
    return grid_file.with_suffix(f".{profile}.toml")


def load_bounds(path: Path) -> dict[str, Bounds]:
    """Bounds by cell id; empty if none have been measured yet.

    Raises InputError for a file that is not sound.
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
            # 0 bounds nothing.
            bounds[cell] = {name: minimum for name, minimum in minima.items() if minimum > 0}
        return bounds


def load_margins(path: Path = THRESHOLDS / "margins.toml") -> dict[str, dict[str, float]]:
    """The smallest changes that count, by kind and quantity.

    Raises InputError for a file that is not sound.
    """
    with read_toml(path, "margins") as content:
        margins = {}
        for kind, names in MARGINS.items():
            margins[kind] = check_shape(content[kind], dict[str, Number], names)
        return margins


def load_tolerances(path: Path = TOLERANCES) -> Tolerances:
    """The largest differences of numerics that are rounding.

    Raises InputError for a file that is not sound.
    """
    with read_toml(path, "tolerances", LAB_CALIBRATE) as content:
        tolerances = {}
        for name, figures in content.items():
            if name != "evidence":
                needed = () if name.startswith("cell ") else TOLERATED
                tolerances[name] = check_shape(figures, dict[str, Number], needed)
        return tolerances


def cell_tolerance(cell: str, arithmetic: str, tolerances: Tolerances) -> Mapping[str, float]:
    """The largest differences that are rounding in a cell of this arithmetic."""
    return {**tolerances[arithmetic], **tolerances.get(f"cell {cell}", {})}


@contextmanager
def read_toml(path: Path, what: str, command: str = "") -> Iterator[Mapping[str, Any]]:
    """A TOML file's content, for a block whose errors are InputErrors.

    `command` writes the file, if any does.
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
    """The value, of this shape.

    Raises ValueError for anything else, and KeyError if a needed key is missing.
    """
    missing_keys = set(needed) - set(value) if needed else set()
    if missing_keys:
        raise KeyError(min(missing_keys))
    return TypeAdapter(shape).validate_python(value)
