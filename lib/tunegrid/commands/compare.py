"""Which method, on which task, at what cost?

`tunegrid compare RUN.json` compares the methods of a run.

For every task and backbone, it shows each method's main score with its interval, the score that the
study published, trained bytes, peak memory and training seconds. It names the methods on the Pareto
front, and says why pairs of methods cannot be told apart. `tunegrid merge` joins runs of other
methods or seeds.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.report.tables import FORMATS, Section
from tunegrid.runs.files import SavedRun, get_saved, read_saved
from tunegrid.terminal import say

if TYPE_CHECKING:
    import pandas as pd

    from tunegrid.report.compare import Comparison


def compare(run: Path | str | Record | Iterable[Record]) -> "pd.DataFrame":
    """The tables of `tunegrid compare` as one frame, with a row for each compared cell.

    `run` is a file, a record or several records. Raises InputError if it cannot be read or
    compared.
    """
    from tunegrid.report.compare import method_frame

    return method_frame(get_comparisons(get_saved(run)))


def get_comparisons(run: SavedRun) -> "list[Comparison]":
    """Compare the methods of a run; raises InputError if they cannot be compared."""
    from tunegrid.gate.noise import load_noise
    from tunegrid.report.compare import compare_methods

    try:
        return compare_methods(run.records, load_noise(own=run.noise))
    except InputError as error:
        raise InputError(f"{run.warning}; {error}" if run.doubt else str(error)) from None


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison; return the exit code.

    Raises InputError if the run cannot be read or compared.
    """
    parser = argparse.ArgumentParser(prog="tunegrid compare", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN.json")
    parser.add_argument("--format", choices=FORMATS, default="text")
    options = parser.parse_args(arguments)
    from tunegrid.report.compare import sections  # imports pandas, which --help does not need

    run = read_saved(options.run)
    tables = sections(get_comparisons(run), run.records)
    if run.doubt:
        tables.insert(0, Section(sentences=[f"{run.warning}."]))
    say(FORMATS[options.format](tables))
    return 0
