"""Measurements of the suite itself: `python -m tunegrid.lab NAME ...` runs one; with `--help` it is described."""

import sys
from functools import partial

from tunegrid.commands.cli import program

COMMANDS = {
    "calibrate": "train a grid with several seeds and write its bounds, its training noise and its tolerances",
    "false_alarms": "count false alarms on healthy runs: judges saved grids",
    "limits": "print the largest value that each audit measured in saved runs, beside its limit",
    "power": "simulate how often the gate is wrong",
}

main = partial(program, "python -m tunegrid.lab", "tunegrid.lab", COMMANDS)

if __name__ == "__main__":
    sys.exit(main())
