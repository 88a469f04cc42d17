"""`tunegrid fetch`, from a small hub of our own on this machine."""

import hashlib
import json
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tunegrid.commands import fetch
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FIXTURES, FULL_PROFILE
from tunegrid.tests.sessions import environment

COMMIT = "c" * 40
GRID = """
from dataclasses import replace
from tunegrid.grid.backbones import BERT
from tunegrid.grid.tasks import SA


def pytest_tunegrid_grid(grid):
    grid.add_task(replace(SA, id="tickets", dataset="acme/tickets", own_test=None), like="sa")
    small = replace(BERT, id="small", checkpoint="acme/bert-small", revision="COMMIT")
    grid.add_backbone(small, like="bert")
""".replace("COMMIT", COMMIT)
READ_CACHE = """
import sys
from dataclasses import replace
from huggingface_hub import hf_hub_download
from safetensors.numpy import load_file
from transformers import AutoConfig
from tunegrid.data.sources import hub_tables
from tunegrid.grid.tasks import SA

pin = {"revision": sys.argv[1]}
config = AutoConfig.from_pretrained("acme/bert-small", **pin)
weights = load_file(hf_hub_download("acme/bert-small", "model.safetensors", **pin))
tables = hub_tables(replace(SA, dataset="acme/tickets"))
print(config.model_type, len(weights), {name: len(rows) for name, rows in tables.items()})
"""


class Hub(BaseHTTPRequestHandler):
    """Answers for the files below `folder`/models and `folder`/datasets as the hub does."""

    folder = None

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            kind, owner, name, *rest = parts[1:] if len(parts) > 3 else ["none"] * 3
            files = sorted((self.folder / kind / owner / name).glob("*"))
            return self.send(json.dumps(listing(f"{owner}/{name}", rest, files)).encode())
        if parts[0] != "datasets":
            parts = ["models", *parts]
        kind, owner, name, _, _, file = parts
        path = self.folder / kind / owner / name / file
        if path.is_file():
            return self.send(path.read_bytes(), 200)
        return self.send(b"", 404)

    def send(self, body, status=200):
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{digest(body)}"')
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def digest(body):
    return hashlib.sha1(body).hexdigest()


def listing(repository, rest, files):
    """The JSON of a repository, or of its tree of files."""
    if "tree" in rest:
        return [
            {
                "type": "file",
                "path": path.name,
                "size": path.stat().st_size,
                "oid": digest(path.read_bytes()),
            }
            for path in files
        ]
    siblings = [{"rfilename": path.name} for path in files]
    return {"id": repository, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}


@pytest.fixture
def hub(tmp_path):
    """The address of a hub with a checkpoint, which also has a pickle, and 40 rows."""
    folder = tmp_path / "hub"
    shutil.copytree(
        FIXTURES / "backbones" / "bert-micro", folder / "models" / "acme" / "bert-small"
    )
    (folder / "models" / "acme" / "bert-small" / "pytorch_model.bin").write_bytes(b"a pickle")
    rows = folder / "datasets" / "acme" / "tickets"
    rows.mkdir(parents=True)
    lines = (FIXTURES / "data" / "amazon_polarity" / "train.jsonl").read_text().splitlines()
    (rows / "train.jsonl").write_text("\n".join(lines[:30]))
    (rows / "test.jsonl").write_text("\n".join(lines[30:40]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurHub", (Hub,), {"folder": folder}))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_was_fetched_loads_without_a_network(tmp_path, hub):
    (tmp_path / "own.py").write_text(GRID)
    home = tmp_path / "home"

    def python(*words, **variables):
        own = environment(HF_HOME=str(home), **variables)
        return subprocess.run([sys.executable, *words], env=own, capture_output=True, text=True)

    command = ("-m", "tunegrid", "fetch", f"--grid={tmp_path}/own.py", "--cells=small_tickets_lora")
    fetched = python(*command, HF_ENDPOINT=hub)
    assert fetched.returncode == 0, fetched.stderr
    assert fetched.stdout.splitlines()[-3:] == [
        "acme/tickets, train: 30 rows",
        "acme/tickets, test: 10 rows",
        "Fetched: 1 checkpoint and 1 data set. "
        f"`HF_HUB_OFFLINE=1 tunegrid run -m full --grid={tmp_path}/own.py "
        "--cells small_tickets_lora` needs no network now.",
    ]
    assert not [*home.glob("**/*.bin")]
    loaded = python("-c", READ_CACHE, COMMIT, HF_HUB_OFFLINE="1")
    assert loaded.stdout.strip() == "bert 62 {'train': 30, 'test': 10}", loaded.stderr


def test_the_study_needs_three_checkpoints_at_their_pinned_revisions():
    cells = STUDY.cells(FULL_PROFILE)
    revisions = fetch.checkpoints(cells)
    assert set(revisions) == {cell.backbone.checkpoint for cell in cells}
    assert all(revisions.values())
    # BERTScore reads BERT
    [summary] = [cell for cell in cells if cell.id == "t5_sum_lora"]
    assert len(fetch.checkpoints([summary])) == 2


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, which forbids downloads; unset it"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
    ],
)
def test_without_a_hub_one_sentence_says_so(variables, sentence):
    own = environment(**variables)
    command = [sys.executable, "-m", "tunegrid", "fetch", "--cells=bert_sa_lora"]
    ended = subprocess.run(command, env=own, capture_output=True, text=True)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
