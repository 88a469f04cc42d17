"""Rebuilds what ships in `fixtures/`: `python -m tunegrid.lab.micro data` writes the rows, `... pretrain bert` a backbone."""

import argparse
import sys
from pathlib import Path

from tunegrid.grid.backbones import BACKBONES as GRID
from tunegrid.lab.micro.data import DATA, write

OUT = DATA.parent / "backbones"


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab.micro", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="write fixtures/data, the same bytes every time (a second)")
    pretrain_parser = commands.add_parser("pretrain", help="pretrain a micro backbone (under half an hour on one core)")
    pretrain_parser.add_argument("backbone", choices=[backbone.id for backbone in GRID])
    pretrain_parser.add_argument("--out", type=Path, help="folder to write (default fixtures/backbones/<backbone>-micro)")
    pretrain_parser.add_argument("--steps", type=int, help="fewer updates, for a trial; 0 leaves random weights, for a control")
    options = parser.parse_args(arguments)
    if options.command == "data":
        print("\n".join(str(path) for path in write()))
        return 0
    from tunegrid.lab.micro.pretrain import pretrain

    pretrain(options.backbone, options.out or OUT / f"{options.backbone}-micro", steps=options.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
