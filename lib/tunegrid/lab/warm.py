"""Preloads what all sessions need, in the process that `lab.mutants` forks them from."""

import sys

from tunegrid.grid.recipes import CACHE
from tunegrid.lab.false_alarms import BASELINE
from tunegrid.machine import library_digests
from tunegrid.runs.files import read_saved

library_digests()
read_saved(BASELINE)
# pytest rewrites the assertions of plugins; these settings let it store the bytecode.
sys.dont_write_bytecode = False
sys.pycache_prefix = str(CACHE / "bytecode")
