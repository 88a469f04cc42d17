"""The whole full profile on local checkpoints and data: every cell of the study runs through, whatever it scores."""

import json
import os
import subprocess
import sys

import pytest

from tunegrid import ROOT
from tunegrid.grid.cells import STUDY_IDS

ROOTS = {"--checkpoint-root": "TUNEGRID_CHECKPOINT_ROOT", "--data-root": "TUNEGRID_DATA_ROOT"}
LIMITS = ("--train-rows", "32", "--eval-rows", "8", "--max-steps", "4")
MISSING = [name for name in ROOTS.values() if name not in os.environ]


@pytest.mark.skipif(
    bool(MISSING), reason=f"needs {' and '.join(MISSING)}: folders as benchmarks/guides/air-gapped.md describes"
)
def test_all_27_full_cells_run_through_on_local_folders(tmp_path):
    path = tmp_path / "full.json"
    command = [sys.executable, "-m", "pytest", "-m", "full", "--device", "cpu", *LIMITS, f"--benchmark-json={path}"]
    command += [f"{option}={os.environ[name]}" for option, name in ROOTS.items()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout
    records = [row["extra_info"] for row in json.loads(path.read_text())["benchmarks"]]
    assert {record["cell"] for record in records} == set(STUDY_IDS)
    assert {record["status"] for record in records} == {"passed"}
    assert answer.stdout.count("no bound yet") == 27
    assert all(record["training"]["updates"] == 4 and record["scores"] for record in records)
