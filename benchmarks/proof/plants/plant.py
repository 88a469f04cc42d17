"""A plant: something broken on purpose, and the check that must object to it.

`test_plants.py` runs the tables of them: `study` (faults), `libraries` (bugs of libraries), `controls`, `equal` (settings that
must be equal), and `stock` (the libraries' own path). `patches` break libraries: what each does, its row says.
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
    """With this broken, that must object; without it, nothing may."""

    id: str
    what: str  # is wrong, in a line
    source: str  # where it really happened: cells of the study, reports of a library, or "classic"
    cell: str  # that runs; of several records, two ids with a comma between; empty if no cell is needed
    # Of `libraries` it takes a `Planting`; of a fixture its value and a folder for files, and returns the broken value; of
    # `records` the records of both cells, and returns the second as it then is.
    broken_by: Callable[..., Any]
    # What must object, with commas between: audits, stages of numerics, "bound", "gate"; or an invariant of a library, a row of
    # equal settings, a stage of `stock`, or "refused" for rows that reading must refuse. Empty for a change without harm.
    caught_by: str
    _: KW_ONLY
    breaks: str = "libraries"  # or the fixture whose value is replaced, `trained` (the model after training), `records`
    cell_as: Callable[[Cell, Path], Cell] = unchanged  # the cell that runs, with the plant and without, and a folder for files
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the recipe; such a cell has fewer test rows, and no bound
    profile: str = "quick"  # of which grid the cell is
    ranks: int = 1  # processes that share the cell
    module: str = ""  # library and class of the module that the gate must name; empty if there is none

    @property
    def test_id(self) -> str:
        """The name of its tests' case."""
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
        """Adds the decorated function as a plant of each of these cells; see `Plant` for the fields.

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

    A function that is put in place counts its calls. A patch that changes nothing in most calls is put in place with
    `counted=False`, and calls `act` where it changes something.
    """

    def __init__(self, monkeypatch: Any) -> None:
        """Patches go by this monkeypatch, which also undoes them."""
        self._monkeypatch, self._acts = monkeypatch, Value("q", 0)

    @property
    def acts(self) -> int:
        """How often a patch acted so far, in the processes that this one forked, too."""
        return int(self._acts.value)

    def act(self) -> None:
        """Count one act."""
        with self._acts.get_lock():
            self._acts.value += 1

    def setattr(self, target: Any, name: str, value: Any, *, raising: bool = True, counted: bool = True) -> None:
        """Put a value in place of an attribute."""
        self._monkeypatch.setattr(target, name, self._counted(value, counted), raising=raising)

    def setitem(self, target: Any, name: Any, value: Any, *, counted: bool = True) -> None:
        """Put a value in place of an entry."""
        self._monkeypatch.setitem(target, name, self._counted(value, counted))

    def _counted(self, value: Any, counted: bool) -> Any:
        if not counted or not callable(value):
            return value

        @functools.wraps(value, updated=() if isinstance(value, type) else ("__dict__",))
        def counting(*args: Any, **options: Any) -> Any:
            self.act()
            return value(*args, **options)

        return counting


def around(target: Any, name: str, *, counted: bool = True) -> Callable[[Any], Callable[[Planting], None]]:
    """Makes a plant of a function that takes the place of another: it gets the planting, the other, and its arguments."""

    def make_plant(change: Any) -> Callable[[Planting], None]:
        @functools.wraps(change)
        def plant(planting: Planting) -> None:
            original = getattr(target, name)

            @functools.wraps(original)
            def changed(*args: Any, **options: Any) -> Any:
                return change(planting, original, *args, **options)

            planting.setattr(target, name, changed, counted=counted)

        return plant

    return make_plant
