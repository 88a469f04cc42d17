"""What a reader meets who follows one cell: the files and functions of ours that one passing quick cell executes.

`tunegrid.tests.executed` says what is counted: functions and methods that run from the start of the cell's set-up to the end of
its teardown, its audits and its row included; no module's top level, no import, no lambda or comprehension, no collection, and
not the table at the end. `pytest lib/tunegrid/tests/project/test_one_cell.py -n 0 -s` prints the figures, folder by folder.
"""

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import PurePath

import pytest

from tunegrid import ROOT
from tunegrid.data import rows
from tunegrid.grid import quick
from tunegrid.tests.executed import VARIABLE, Executed

CELL = "gpt2_sum_lora"
# What there was when these were last lowered. A change that asks less of a reader lowers them; one that asks more says why.
# By the same count, commit a0f770c had 83 and 510, and a2f80d8 had 83 and 591: the audits grew. 3d290a7 had 68 and 588; since
# then a cell has a time limit, a row whatever becomes of it, keys by the libraries' code, text that no terminal obeys, and
# audits of AdamW's steps, of an adapter's switches and of gradients after an evaluation. 2026-11-28: figures of modules, first
# updates, energy, confidence, one loss of choices for all codecs. Then a user's own files, labels and bounds, and places that
# are checked early, for which a checkpoint's place stands in a file without torch: 12 functions, one file. Then what pytest
# shows of a failed cell: two functions, one file.
MOST_FILES, MOST_FUNCTIONS = 91, 738


def executed_by(call):
    """Names of our functions that a call runs."""
    executed = Executed()
    before = sys.getprofile()
    sys.setprofile(executed)
    try:
        call()
    finally:
        sys.setprofile(before)
    return executed.names


def test_a_function_counts_once_and_its_comprehension_and_lambda_do_not():
    def twice():
        list(map(lambda text: rows.joined({"a": text}, [name for name in ("a",)]), ("x", "y")))

    assert executed_by(twice) == ["lib/tunegrid/data/rows.py:joined"]


def test_what_runs_because_a_module_is_imported_does_not_count():
    assert executed_by(lambda: quick.quick_changes("bert_sa_lora"))
    assert executed_by(lambda: importlib.reload(quick)) == []


@pytest.mark.slow
def test_a_reader_follows_one_cell_through_so_many_files_and_functions(tmp_path):
    path = tmp_path / "executed.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {VARIABLE: str(path), "PYTHONPATH": str(ROOT / "lib"), "TUNEGRID_CACHE": str(tmp_path / "cache")}
    options = ("-m", "quick", "--cells", CELL, "-n", "0", "--isolate=no", f"--benchmark-json={tmp_path / 'run.json'}")
    command = [sys.executable, "-m", "pytest", "-p", "tunegrid.tests.executed", *options]
    session = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert session.returncode == 0, session.stdout[-2000:]
    functions = json.loads(path.read_text())
    files = {name.partition(":")[0] for name in functions}
    by_folder = Counter(str(PurePath(name.partition(":")[0]).parent) for name in functions)
    print(f"\n{CELL} executes {len(functions)} functions in {len(files)} files")
    for folder, count in sorted(by_folder.items()):
        print(f"  {folder}: {count} in {sum(str(PurePath(file).parent) == folder for file in files)}")
    assert len(files) <= MOST_FILES
    assert len(functions) <= MOST_FUNCTIONS
