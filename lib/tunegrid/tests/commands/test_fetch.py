"""`tunegrid fetch`, from a small hub of our own on this machine."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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
# The address of a repository's description, or of its list of files
API = re.compile(r"/api(/models)?(?P<folder>(/datasets)?/(?P<id>\w+/[\w-]+))(?P<tree>/tree/)?")


class Hub(SimpleHTTPRequestHandler):
    """Answers for the checkpoints below a folder, and the data sets below its folder `datasets`.

    A file's address has `/resolve/COMMIT` before the file's name.
    """

    def do_GET(self):
        api = API.match(self.path)
        if not api:
            super().do_GET()
            return
        files = sorted(Path(self.translate_path(api["folder"])).iterdir())
        answer = {"id": api["id"], "sha": COMMIT, "tags": [], "private": False}
        answer["siblings"] = [{"rfilename": file.name} for file in files]
        if api["tree"]:
            answer = []
            for file in files:
                facts = {"path": file.name, "size": file.stat().st_size, "oid": file.name}
                answer.append({"type": "file", **facts})
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def translate_path(self, path):
        return super().translate_path(re.sub("/resolve/[^/]+", "", path))

    def end_headers(self):
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{Path(self.path).name}"')  # names the file in the cache
        self.send_header("X-Error-Code", "EntryNotFound")  # counts only with status 404
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """The address of a hub with a checkpoint, which also has a pickle, and 40 rows."""
    checkpoint = tmp_path / "hub" / "acme" / "bert-small"
    shutil.copytree(FIXTURES / "backbones" / "bert-micro", checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(b"a pickle")
    rows = tmp_path / "hub" / "datasets" / "acme" / "tickets"
    rows.mkdir(parents=True)
    lines = (FIXTURES / "data" / "amazon_polarity" / "train.jsonl").read_text().splitlines()
    (rows / "train.jsonl").write_text("\n".join(lines[:30]))
    (rows / "test.jsonl").write_text("\n".join(lines[30:40]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=tmp_path / "hub"))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run_python(*words, **variables):
    own = environment()
    own.pop("HF_HUB_OFFLINE", None)  # which many people export
    own |= variables
    return subprocess.run([sys.executable, *words], env=own, capture_output=True, text=True)


def run_fetch(*options, **variables):
    return run_python("-m", "tunegrid", "fetch", *options, **variables)


def test_what_was_fetched_loads_without_a_network(hub):
    Path("own.py").write_text(GRID)
    options = ("--grid=own.py", "--cells=small_tickets_lora")
    fetched = run_fetch(*options, HF_HOME="home", HF_ENDPOINT=hub)
    assert fetched.returncode == 0, fetched.stderr
    assert fetched.stdout.splitlines()[-3:] == [
        "acme/tickets, train: 30 rows",
        "acme/tickets, test: 10 rows",
        "Fetched: 1 checkpoint and 1 data set. `HF_HUB_OFFLINE=1 tunegrid run -m full "
        "--grid=own.py --cells small_tickets_lora` needs no network now.",
    ]
    assert not [*Path("home").glob("**/*.bin")]
    loaded = run_python("-c", READ_CACHE, COMMIT, HF_HOME="home", HF_HUB_OFFLINE="1")
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
    ("variable", "text", "sentence"),
    [
        ("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE is set, which forbids downloads; unset it"),
        ("HF_ENDPOINT", "http://127.0.0.1:9", "the hub cannot be reached"),
    ],
)
def test_without_a_hub_one_sentence_says_so(variable, text, sentence):
    ended = run_fetch("--cells=bert_sa_lora", **{variable: text})
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
