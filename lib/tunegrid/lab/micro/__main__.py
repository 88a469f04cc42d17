"""Rebuilds the micro data and the micro backbones in `fixtures/`.

`python -m tunegrid.lab.micro data` writes the rows; `... pretrain bert` pretrains a backbone.
"""

import argparse
from pathlib import Path

from tunegrid.grid.backbones import BACKBONES
from tunegrid.lab.micro.data import DATA, jsonl, make_tables
from tunegrid.libraries import prepare_libraries


def main(arguments: list[str] | None = None) -> None:
    """Write the rows or pretrain a backbone."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.lab.micro", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="write fixtures/data, the same bytes every time (a second)")
    pretrain_help = "pretrain a micro backbone (under half an hour on one core)"
    add = commands.add_parser("pretrain", help=pretrain_help).add_argument
    add("backbone", choices=[backbone.id for backbone in BACKBONES])
    add(
        "--out",
        type=Path,
        help="folder to write (default fixtures/backbones/<backbone>-micro)",
    )
    add(
        "--steps",
        type=int,
        help="fewer updates, for a trial; 0 leaves random weights, for a control",
    )
    options = parser.parse_args(arguments)
    if options.command == "data":
        for name, rows in make_tables().items():
            path = DATA / f"{name}.jsonl"
            path.write_text(jsonl(rows), encoding="utf-8")
            print(path)
    else:
        from tunegrid.lab.micro.pretrain import pretrain

        folder = options.out or DATA.parent / "backbones" / f"{options.backbone}-micro"
        pretrain(options.backbone, folder, steps=options.steps)


if __name__ == "__main__":
    prepare_libraries()
    main()
