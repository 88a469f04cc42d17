"""Which method, on which task, at what cost? `tunegrid compare RUN.json [RUN2.json ...]` sets methods beside each other.

For every task and backbone: the main score with its interval, what was published, trained bytes, peak memory and seconds of
training, which methods are on the Pareto front of these, and which cannot be told apart, and why. Several runs count as one:
they may hold other methods, or other seeds of the same ones. Published results, as reports/study.json, may be given like a run.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.compare import compared, published_scores, sections
from tunegrid.results.files import read_list
from tunegrid.results.noise import load_noise
from tunegrid.results.report import FORMATS
from tunegrid.terminal import say


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid compare", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("--format", choices=FORMATS, default="text")
    options = parser.parse_args(arguments)
    try:
        runs, published = parted({path: read_list(path) for path in options.runs})
        report = sections(compared(runs, load_noise()), published_scores(published))
    except InputError as error:
        refuse(parser, error)
    say(FORMATS[options.format](report))
    return 0


def parted(files: Mapping[Path, Sequence[Record]]) -> tuple[dict[Path, list[Record]], list[Record]]:
    """The runs, and what was published; raises InputError where nothing was run, or none of what was published."""
    runs = {path: [record for record in records if record.status != "reported"] for path, records in files.items()}
    published = [record for records in files.values() for record in records if record.status == "reported"]
    own = {path: records for path, records in runs.items() if records}
    names = " and ".join(map(str, files))
    if not own:
        raise InputError(f"{names}: only published results, which were not run here; give a run to set them beside")
    if published and not {record.cell for record in published} & {record.cell for each in own.values() for record in each}:
        raise InputError(f"{names}: no cell was both published and run, so there is nothing to set side by side")
    return own, published
