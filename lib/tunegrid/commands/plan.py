"""How long the full grid takes on so many GPUs, in how much memory, at what price: `tunegrid plan --gpus 64`.

It rests on a footprint of your GPU (`pytest -m footprint --benchmark-json=FILE`) or on an earlier full run, and says which
figures are measured and which are reckoned. Each run of a cell has one GPU; the longest go first.
"""

import argparse
import json
from pathlib import Path

from tunegrid.commands.cli import refuse
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY, STUDY_IDS
from tunegrid.grid.larger import is_larger, larger
from tunegrid.grid.profiles import FULL_PROFILE
from tunegrid.results.estimates import committed_runs, estimates
from tunegrid.results.files import read_list
from tunegrid.results.plan import as_json, lines, plan_of
from tunegrid.terminal import say


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not 0 <= price < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a price: expected a number, as in 2.50")
    return price


def main(arguments: list[str] | None = None) -> int:
    """Print the plan; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid plan", description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="*", metavar="RUN.json", help="footprints or full runs; default: the committed"
    )
    parser.add_argument("--gpus", type=_count, required=True, metavar="N")
    parser.add_argument("--seeds", type=_count, default=1, metavar="N", help="runs of each cell (default 1)")
    parser.add_argument("--price-per-hour", type=_price, metavar="PRICE", help="of one GPU, as in 2.50")
    parser.add_argument("--larger", action="store_true", help="the 36 cells of larger backbones in place of the study's 27")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args(arguments)
    try:
        for path in options.runs:
            read_list(path)  # one that is named must be sound
        grid = larger() if options.larger else STUDY
        ids = tuple(filter(is_larger, grid.ids(FULL_PROFILE))) if options.larger else STUDY_IDS
        known = estimates([grid.cell(cell_id, FULL_PROFILE) for cell_id in ids], options.runs or committed_runs())
    except InputError as error:
        refuse(parser, error)
    plan = plan_of(ids, known, gpus=options.gpus, seeds=options.seeds, price=options.price_per_hour)
    say(json.dumps(as_json(plan), indent=1) if options.format == "json" else "\n".join(lines(plan)))
    return 0
