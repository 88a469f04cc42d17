"""Measurements of the suite itself: `python -m tunegrid.lab NAME ...` runs one; with `--help` it is described."""

import sys

from tunegrid.commands.cli import Program

COMMANDS = {
    "measure": "all that the suite says of itself, once: bounds, noise, baseline, error rates, zoo",
    "calibrate": "train a grid with several seeds and write its bounds and its training noise",
    "power": "how often the gate is wrong: simulated",
    "false_alarms": "does the suite cry wolf? trains healthy runs and counts those that anything calls",
}

main = Program(name="python -m tunegrid.lab", package="tunegrid.lab", commands=COMMANDS).main

if __name__ == "__main__":
    sys.exit(main())
