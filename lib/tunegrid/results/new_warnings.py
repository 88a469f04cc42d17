"""Says which warnings of libraries are new in a run and which are gone, as the gate shows it. They fail no run."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tunegrid.record import Record

Kind = tuple[str, str, str]  # library, category and message with its numbers left out
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def warnings_that_differ(before: Sequence[Record], after: Sequence[Record]) -> list[str]:
    """A sentence for each warning that one run has and the other has not; none where a run did not count them.

    Runs are compared as a whole: what a library says once a process, the first cell that imports it has. Nothing is gone where
    a run has not all cells of the other.
    """
    old, new = _cells_by_warning(before), _cells_by_warning(after)
    if old is None or new is None:
        return []
    whole = {record.cell for record in before} <= {record.cell for record in after}
    return [
        *(_sentence("new", kind, new[kind]) for kind in sorted(new.keys() - old.keys())),
        *(_sentence("gone", kind, old[kind]) for kind in sorted(old.keys() - new.keys()) if whole),
    ]


def _cells_by_warning(records: Iterable[Record]) -> dict[Kind, dict[str, str]] | None:
    """By warning, its message in each cell; None where no record counted any."""
    counted = [record for record in records if record.warnings is not None]
    cells: dict[Kind, dict[str, str]] = defaultdict(dict)
    for record in counted:
        for one in record.warnings or ():
            cells[one.library, one.category, NUMBER.sub("0", one.message)][record.cell] = one.message
    return cells if counted else None


def _sentence(change: str, kind: Kind, messages: dict[str, str]) -> str:
    library, category, _ = kind
    where = next(iter(messages)) if len(messages) == 1 else f"{len(messages)} cells"
    return f"{change} warning of {library}: {category} in {where}: {next(iter(messages.values()))}"
