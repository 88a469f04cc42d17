"""A plant: something broken on purpose, and the check that must object to it.

`test_plants.py` runs their tables: `study` (faults), `libraries` (bugs of libraries, from `patches`
on), `controls`, `equal` (settings that must be equal) and `stock` (the libraries' own path).
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from multiprocessing import Value
from pathlib import Path
from typing import Any, TypeVar

from tunegrid.grid.cells import Cell

F = TypeVar("F", bound=Callable[..., Any])
FEW = {"max_steps": 30}  # settings of a cell that need not learn its task


def unchanged(cell: Cell, folder: Path) -> Cell:
    """The cell as it is."""
    return cell


def with_other(part: str, **fields: Any) -> Callable[[Cell, Path], Cell]:
    """The cell with other fields of its recipe, method or profile."""

    def changed(cell: Cell, folder: Path) -> Cell:
        return replace(cell, **{part: replace(getattr(cell, part), **fields)})

    return changed


@dataclass(frozen=True, eq=False)
class Plant:
    """A fault and the checks that must object to it; without the fault, none may."""

    id: str
    what: str  # is wrong, in a line
    source: str  # where it occurred: cells of the study, reports of a library, or "classic"
    cell: str  # that runs; two ids with a comma if it breaks records; empty if it needs no cell
    # It takes a `Planting` if it breaks libraries. If it breaks a fixture, it takes the value and a
    # folder for files, and returns the broken value. If it breaks records, it takes those of both
    # cells, and returns the second, broken.
    broken_by: Callable[..., Any]
    # The checks that must object, with commas: audits, stages of numerics, "bound", "gate"; or an
    # invariant of a library, a row of equal settings, a stage of `stock`, or "refused" for rows
    # that reading must reject. Empty for a change without harm.
    caught_by: str
    _: KW_ONLY
    # Or the fixture whose value is replaced, `trained` (the model after training), `records`.
    breaks: str = "libraries"
    # Makes the cell that runs, with the plant and without; it gets a folder for files.
    cell_as: Callable[[Cell, Path], Cell] = unchanged
    # Fields of the recipe; a cell with such has fewer test rows and no bound.
    settings: Mapping[str, Any] = field(default_factory=dict)
    profile: str = "quick"  # the grid of the cell
    ranks: int = 1  # processes that share the cell
    module: str = ""  # library and class of the module that the gate must name; empty: none

    @property
    def test_id(self) -> str:
        """The name of its case in tests."""
        words = [self.profile, self.id, self.cell]
        if self.ranks > 1:
            words.append(f"{self.ranks}ranks")
        return "-".join(filter(None, words))


class Table(list[Plant]):
    """The plants of a marker, in the order in which they are declared."""

    def plant(
        self,
        id: str,
        what: str,
        source: str,
        cells: str | tuple[str, ...],
        caught_by: str,
        **fields: Any,
    ) -> Callable[[F], F]:
        """Adds the decorated function as a plant of each of these cells.

        Raises ValueError if the table has a plant of this id in the cell.
        """

        def add(broken_by: F) -> F:
            for cell in [cells] if isinstance(cells, str) else cells:
                plant = Plant(id, what, source, cell, broken_by, caught_by, **fields)
                if any(plant.test_id == earlier.test_id for earlier in self):
                    raise ValueError(f"two plants are named {plant.test_id}: give one another id")
                self.append(plant)
            return broken_by

        return add


class Planting:
    """Pytest's monkeypatch with a count: a plant that never acts proves nothing.

    A function that is put in place counts its calls. A patch that changes nothing in most calls is
    put in place with `counted=False`, and calls `act` where it changes something.
    """

    def __init__(self, monkeypatch: Any) -> None:
        """Patches with this monkeypatch, which also undoes them."""
        self._monkeypatch = monkeypatch
        self._acts = Value("q", 0)

    @property
    def acts(self) -> int:
        """The number of acts so far, including those in processes that this one forked."""
        return int(self._acts.value)

    def act(self) -> None:
        """Count one act."""
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
        """Put a value in place of an attribute."""
        self._monkeypatch.setattr(target, name, self._counted(value, counted), raising=raising)

    def setitem(self, target: Any, name: Any, value: Any, *, counted: bool = True) -> None:
        """Put a value in place of an entry."""
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
    """Makes a plant of a function that replaces another.

    The function gets the planting, the original, and the original's arguments.
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
