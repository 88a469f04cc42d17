"""The suite as a user runs it: one small cell through pytest, with what it leaves behind."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.grid.profiles import QUICK

ROOT = Path(__file__).parents[2]
SMALL = ("--train-rows", "48", "--eval-rows", "16")


def run(tmp_path, *options):
    """Exit code, output and the rows of the JSON that a run of the suite writes."""
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", f"--benchmark-json={path}", *SMALL, *options]
    # Without the outer session's variables: this one is no worker of it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    rows = json.loads(path.read_text())["benchmarks"] if path.exists() else []
    return found.returncode, found.stdout + found.stderr, [row["extra_info"] for row in rows]


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


def test_a_loss_that_is_not_a_number_stops_the_cell_and_keeps_its_row(tmp_path):
    broken = tmp_path / "bert-micro"
    shutil.copytree(ROOT / "fixtures" / "backbones" / "bert-micro", broken)
    weights = load_file(broken / "model.safetensors")
    weights["bert.pooler.dense.weight"][:] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    code, output, [record] = run(tmp_path, "-m", "quick", "--cells", "bert_sa_sft", f"--checkpoint-root={tmp_path}")
    assert (code, record["outcome"], record["scores"]) == (1, "stopped", {})
    steps = QUICK["bert_sa_sft"][0]
    assert record["missed"] == [f"loss is nan at update 1 of {steps} (bert_sa_sft, quick)"]
    assert record["missed"][0] in output


def test_full_without_cuda_is_skipped_with_the_way_out(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here, on which full cells run")
    code, output, records = run(tmp_path, "-m", "full", "--cells", "bert_sa_sft", "-rs")
    assert (code, records) == (0, [])
    assert "there is none; --device cpu runs them here, slowly" in output


def test_rows_that_cannot_be_used_end_in_a_sentence_that_names_the_row(tmp_path):
    folder = tmp_path / "squad"
    folder.mkdir()
    row = {"id": "r7", "title": "a", "context": "a red car", "question": "what ?"}
    rows = [row | {"title": str(n), "answers": {"text": ["red"], "answer_start": [3]}} for n in range(20)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "validation.jsonl").write_text(json.dumps(rows[0]) + "\n")
    shutil.copytree(ROOT / "fixtures" / "backbones" / "bert-micro", tmp_path / "bert-base-uncased")
    roots = (f"--data-root={tmp_path}", f"--checkpoint-root={tmp_path}")
    code, output, _ = run(tmp_path, "-m", "full", "--cells", "bert_qa_sft", "--device", "cpu", *roots)
    assert code == 1
    assert "(id r7): answer 'red' does not stand at answer_start 3, where the context has 'ed '" in output
    assert "Traceback" not in output
