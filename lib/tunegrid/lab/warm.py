"""Does once what every session does, in the process that forks those of `lab.mutants`."""

import sys

from tunegrid.grid.recipes import CACHE
from tunegrid.lab.false_alarms import BASELINE
from tunegrid.machine import library_digests
from tunegrid.runs.files import read_saved

library_digests()
read_saved(BASELINE)
# Pytest rewrites the assertions of plugins, and may keep what it made.
sys.dont_write_bytecode = False
sys.pycache_prefix = str(CACHE / "bytecode")
