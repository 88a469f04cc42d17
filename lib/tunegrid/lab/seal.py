"""Adds seals to saved runs of earlier versions: `python -m tunegrid.lab seal RUN.json`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tunegrid.runs.files import load, read_saved, save


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite each file with seals; return 0. Raises InputError if a sealed file was changed."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab seal", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    for path in parser.parse_args(arguments).runs:
        saved = read_saved(path)
        saved.check_unchanged()
        save(load(path), path, saved.records, [path])
        print(f"sealed {path}")
    return 0
