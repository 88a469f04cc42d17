"""The full profile from a hub on this machine, and from the cache when that hub is gone."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tunegrid import ROOT
from tunegrid.grid.backbones import BERT
from tunegrid.grid.recipes import FIXTURES
from tunegrid.tests.hub import COMMIT, serving
from tunegrid.tests.small import rows_of

CELL = "bert_sa_qlora"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """bert-micro in place of bert-base-uncased, and some reviews in Parquet shards, as the hub stores them."""
    import datasets

    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(FIXTURES / "backbones" / "bert-micro", root / "bert")
    (root / "polarity" / "data").mkdir(parents=True)
    rows = rows_of("amazon_polarity/train")[:80]
    for split in ("train", "test"):
        dataset = datasets.Dataset.from_list([{name: row[name] for name in ("label", "title", "content")} for row in rows])
        dataset.to_parquet(root / "polarity" / "data" / f"{split}-00000-of-00001.parquet")
    (root / "polarity" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    with serving({BERT.checkpoint: root / "bert", "datasets/fancyzhx/amazon_polarity": root / "polarity"}) as server:
        yield server


def run(tmp_path, home, **environment):
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", "-m", "full", "--device", "cpu", "--cells", CELL, f"--benchmark-json={path}"]
    command += ["--set", "train_rows=16", "--set", "eval_rows=8", "--set", "max_steps=2", "--set", "num_train_epochs=1"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "HF_"))}
    kept |= {"HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **environment}
    answer = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False, timeout=300)
    rows = json.loads(path.read_text())["benchmarks"] if path.exists() else []
    return answer.returncode, answer.stdout, [row["extra_info"] for row in rows]


@pytest.mark.slow
def test_a_cell_runs_from_the_hub_at_its_pinned_revision_and_then_from_the_cache(hub, tmp_path):
    code, output, records = run(tmp_path, tmp_path / "home", HF_ENDPOINT=hub.address)
    assert code == 0, output
    [record] = records
    assert (BERT.checkpoint, BERT.revision) in hub.revisions
    assert record["model"]["fingerprint"] == BERT.revision
    assert record["model"]["checkpoint"] == BERT.checkpoint
    assert record["data"]["revision"] == COMMIT
    assert record["data"]["origins"]["train"] == "hub:fancyzhx/amazon_polarity/train"
    hub.requests.clear()
    code, output, records = run(tmp_path, tmp_path / "home", HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="1")
    assert code == 0, output
    assert (records[0]["data"]["revision"], hub.requests) == (COMMIT, [])
