"""The command line of the lab: `python -m tunegrid.lab NAME ...` runs a measurement."""

import sys
from functools import partial

from tunegrid.commands.cli import program
from tunegrid.libraries import prepare_libraries

COMMANDS = {
    "calibrate": (
        "train a grid with several seeds and write its bounds, "
        "its training noise and its tolerances"
    ),
    "costs": "compare the hours and GiB that `--list-cells` predicts with trained cells",
    "false_alarms": "count false alarms on healthy runs: judges saved grids",
    "seal": "seal runs of earlier versions as they are, so that they can be baselines",
    "mutants": "change random lines of libraries, and count what the suite sees",
    "limits": "print the largest value that each audit measured in saved runs, beside its limit",
    "power": "simulate how often the gate is wrong",
}

prepare_libraries()
main = partial(program, "python -m tunegrid.lab", "tunegrid.lab", COMMANDS)

if __name__ == "__main__":
    sys.exit(main())
