"""Defines plants: faults injected on purpose, each with the checks that must object to it.

`test_plants.py` runs the tables in `study` (faults of fine-tuning), `libraries` (library bugs),
`controls` (runs that cannot have learned), `equal` (settings that must give equal results) and
`stock` (the libraries' own path).
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from multiprocessing import Value
from pathlib import Path
from typing import Any, TypeVar

from tunegrid.grid.cells import Cell

F = TypeVar("F", bound=Callable[..., Any])
FEW = {"max_steps": 30}  # recipe settings of a cell that need not learn its task


def unchanged(cell: Cell, folder: Path) -> Cell:
    """Returns the cell as it is."""
    return cell


def with_other(part: str, **fields: Any) -> Callable[[Cell, Path], Cell]:
    """Returns a function that changes fields of a cell's `part`: recipe, method or profile."""

    def changed(cell: Cell, folder: Path) -> Cell:
        return replace(cell, **{part: replace(getattr(cell, part), **fields)})

    return changed


@dataclass(frozen=True, eq=False)
class Plant:
    """A fault and the checks that must object to it, or a harmless change that none may reject."""

    id: str
    what: str  # the fault, in one line
    source: str  # where it occurred: cells of the study, reports to a library, or "classic"
    cell: str  # the cell to run; for records, two ids joined by a comma; empty if none is needed
    # A function that breaks libraries takes a `Planting`. One that breaks a fixture takes the
    # fixture's value and a folder for files, and returns the broken value; instead of the folder,
    # `validation_rows` gets the splits, and `trained` the adapter's initial weights. One that
    # breaks records takes the records of both cells, and returns the second one broken.
    broken_by: Callable[..., Any]
    # The checks that must object, separated by commas: audits, stages of numerics, "bound" or
    # "gate". Otherwise an invariant of a library, the id of two equal settings, the beginning of
    # the sentence that `stock` must report, or "refused" for rows that reading must reject. Empty
    # for a harmless change.
    caught_by: str
    _: KW_ONLY
    # "libraries", the fixture whose value is replaced, "trained" (the model after training), or
    # "records".
    breaks: str = "libraries"
    # Makes the cell that runs, with or without the plant; takes a folder for files.
    cell_as: Callable[[Cell, Path], Cell] = unchanged
    # Changed fields of the recipe. A cell with changes has fewer test rows and no bound.
    settings: Mapping[str, Any] = field(default_factory=dict)
    profile: str = "quick"  # the grid that contains the cell
    ranks: int = 1  # processes that share the cell
    module: str = ""  # library and class of the module that the gate must name; empty if none

    @property
    def test_id(self) -> str:
        """The name of the plant's test case."""
        words = [self.profile, self.id, self.cell]
        if self.ranks > 1:
            words.append(f"{self.ranks}ranks")
        return "-".join(filter(None, words))


class Table(list[Plant]):
    """The plants that a marker selects, in order of declaration."""

    def plant(
        self,
        id: str,
        what: str,
        source: str,
        cells: str | tuple[str, ...],
        caught_by: str,
        **fields: Any,
    ) -> Callable[[F], F]:
        """Adds the decorated function as one plant for each of `cells`.

        Raises ValueError if the table already has a plant with the same `test_id`.
        """
        several = (cells,) if isinstance(cells, str) else cells

        def add(broken_by: F) -> F:
            for cell in several:
                plant = Plant(id, what, source, cell, broken_by, caught_by, **fields)
                if any(plant.test_id == earlier.test_id for earlier in self):
                    raise ValueError(f"two plants are named {plant.test_id}: give one another id")
                self.append(plant)
            return broken_by

        return add


class Planting:
    """Wraps pytest's monkeypatch and counts acts, because a plant that never acts proves nothing.

    Each call of a replacement counts as an act. A replacement that changes nothing in most calls is
    installed with `counted=False` and calls `act` when it does change something.
    """

    def __init__(self, monkeypatch: Any) -> None:
        """Takes the `monkeypatch` that will apply the patches and undo them afterwards."""
        self._monkeypatch = monkeypatch
        self._acts = Value("q", 0)

    @property
    def acts(self) -> int:
        """The number of acts so far, including those in processes forked from this one."""
        return int(self._acts.value)

    def act(self) -> None:
        """Counts one act."""
        with self._acts.get_lock():
            self._acts.value += 1

    def setattr(
        self,
        target: Any,
        name: str,
        value: Any,
        *,
        raising: bool = True,
        counted: bool = True,
    ) -> None:
        """Replaces an attribute; if `counted`, each call of `value` counts as an act."""
        self._monkeypatch.setattr(target, name, self._counted(value, counted), raising=raising)

    def setitem(self, target: Any, name: Any, value: Any, *, counted: bool = True) -> None:
        """Replaces a mapping's entry; if `counted`, each call of `value` counts as an act."""
        self._monkeypatch.setitem(target, name, self._counted(value, counted))

    def _counted(self, value: Any, counted: bool) -> Any:
        if not counted or not callable(value):
            return value

        updated_fields = () if isinstance(value, type) else ("__dict__",)

        @functools.wraps(value, updated=updated_fields)
        def counting(*args: Any, **options: Any) -> Any:
            self.act()
            return value(*args, **options)

        return counting


def around(
    target: Any,
    name: str,
    *,
    counted: bool = True,
) -> Callable[[Callable[..., Any]], Callable[[Planting], None]]:
    """Returns a decorator that creates a plant from a replacement for `target.name`.

    The replacement takes the planting, the original, and the original's arguments.
    """

    def make_plant(change: Callable[..., Any]) -> Callable[[Planting], None]:
        @functools.wraps(change)
        def plant(planting: Planting) -> None:
            original = getattr(target, name)

            @functools.wraps(original)
            def changed(*args: Any, **options: Any) -> Any:
                return change(planting, original, *args, **options)

            planting.setattr(target, name, changed, counted=counted)

        return plant

    return make_plant
