"""The suite as a user runs it: one small cell through pytest, with what it leaves behind."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).parents[2]
SMALL = ("--train-rows", "48", "--eval-rows", "16")


def run(tmp_path, *options):
    """Exit code, output and the rows of the JSON that a run of the suite writes."""
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", f"--benchmark-json={path}", *SMALL, *options]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    rows = json.loads(path.read_text())["benchmarks"] if path.exists() else []
    return found.returncode, found.stdout, [row["extra_info"] for row in rows]


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    return run(tmp_path_factory.mktemp("two"), "-m", "quick", "--cells", "bert_sa_qlora", "--epochs", "2")


def test_a_run_that_the_command_line_bounds_is_held_to_no_bound(two_epochs):
    code, output, [record] = two_epochs
    assert (code, record["outcome"], record["bounds"]) == (0, "passed", {})
    assert "no bound yet" in output


def test_the_row_fits_the_schema_and_is_plain_json(two_epochs):
    _, _, [record] = two_epochs
    jsonschema.validate(record, json.loads((ROOT / "reports" / "schema.json").read_text()))
    assert "UNSERIALIZABLE" not in json.dumps(record)


def test_validation_chooses_among_epochs(two_epochs):
    _, _, [record] = two_epochs
    training = record["training"]
    assert training["updates"] == 6  # 48 rows in batches of 16, twice
    assert len(training["epoch_scores"]) == 2
    assert training["chosen_epoch"] == 1 + training["epoch_scores"].index(max(training["epoch_scores"]))
