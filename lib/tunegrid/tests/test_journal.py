"""A finished cell is not lost, even if the session or a worker is killed or the disk is full."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import evaluate
import huggingface_hub
import pytest
import torch

import fixtures.session as session_module
from fixtures.session import Session, metrics_of
from tunegrid import ROOT
from tunegrid.commands import merge
from tunegrid.data import hub
from tunegrid.errors import InputError
from tunegrid.grid.backbones import Head
from tunegrid.grid.cells import STUDY
from tunegrid.grid.methods import Lora
from tunegrid.grid.profiles import FULL_PROFILE, QUICK_PROFILE
from tunegrid.grid.tasks import Problem
from tunegrid.machine import versions
from tunegrid.results import journal
from tunegrid.results.files import read_records
from tunegrid.results.journal import Journal, code_digest, content_key, latest, passed, read, source_digests, with_own_imports
from tunegrid.tests.test_metrics import SCRIPT
from tunegrid.tests.test_record import complete_json

CELLS = ("gpt2_sa_lora", "gpt2_sa_qlora", "gpt2_sa_sft")
CELL = STUDY.cell("gpt2_sa_lora", QUICK_PROFILE)


def row(cell="gpt2_sa_lora", status="passed"):
    return {"fullname": f"benchmarks::{cell}", "extra_info": complete_json(cell, status=status), "stats": {"data": [1.0]}}


# Lines


def test_rows_are_there_as_soon_as_they_are_written(tmp_path):
    journal = Journal(tmp_path)
    assert list(tmp_path.iterdir()) == []
    journal.append("k1", row())
    assert list(read(journal.path)) == [("k1", row())]
    assert latest(tmp_path) == journal.path


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    journal = Journal(tmp_path)
    journal.append("k1", row())
    with journal.path.open("a") as file:
        file.write('{"key": "k2", "row": {"fulln')
    assert [key for key, _ in read(journal.path)] == ["k1"]


def test_only_what_passed_is_taken_up_and_the_latest_of_it(tmp_path):
    for name, key, status in (("1", "a", "passed"), ("2", "a", "passed"), ("3", "b", "missed")):
        journal = Journal(tmp_path)
        journal.path = tmp_path / f"{name}.jsonl"
        journal.append(key, row(status=status))
    assert {key: path.name for key, (_, path) in passed(tmp_path).items()} == {"a": "2.jsonl"}


def test_without_a_journal_there_is_nothing_to_finish(tmp_path, capsys):
    with pytest.raises(InputError, match="no cell has finished here yet"):
        latest(tmp_path)
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(SystemExit):
        merge.main(["--journal", str(tmp_path / "x.jsonl"), "-o", str(tmp_path / "out.json")])
    assert "holds no finished cell" in capsys.readouterr().err


# Keys


def test_a_key_stands_for_all_that_decides_the_result(tmp_path):
    def key(circumstances=None, **changes):
        return content_key(STUDY.cell(CELL.id, replace(QUICK_PROFILE, **changes)), circumstances or {})

    keys = [
        key(),
        key(seed=1),
        key(train_rows=5),
        key(eval_rows=5),
        key(changes={"learning_rate": 1e-3}),
        key(data_root=tmp_path),
        key(checkpoint_root=tmp_path),
        key({"evaluate_from": "hub"}),
        key({"devices": ["cpu", "EPYC"]}),
        key({"devices": ["cuda", "H100"]}),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_a_key_stands_for_every_part_of_the_cell(tmp_path):
    file = tmp_path / "grid.py"
    file.write_text("one = 1")
    keys = [
        content_key(CELL, {}),
        content_key(replace(CELL, head=replace(CELL.head, new_modules=())), {}),
        content_key(replace(CELL, method=replace(CELL.method, options={"use_dora": True})), {}),
        content_key(replace(CELL, task=replace(CELL.task, text=("content",))), {}),
        content_key(replace(CELL, backbone=replace(CELL.backbone, shape=dict(CELL.backbone.shape) | {"n_embd": 4})), {}),
        content_key(replace(CELL, optimizers={"adamw_torch": STUDY.optimizers["adamw_bnb_8bit"]}), {}),
        content_key(CELL, {}, [file]),
    ]
    file.write_text("one = 2")
    keys.append(content_key(CELL, {}, [file]))
    assert len(set(keys)) == len(keys)


def test_what_a_grid_file_imports_from_its_own_folder_bears_on_the_key(tmp_path):
    file = tmp_path / "grid.py"
    (tmp_path / "parts").mkdir()
    texts = {
        "grid.py": "import json, near\ndef late():\n    from parts import of\nimport os.path",
        "near.py": "from far.away import thing",
        "far.py": "",
        "parts/of.py": "from . import other",
        "parts/other.py": "",
        "stranger.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert {str(path.relative_to(tmp_path)) for path in with_own_imports(file)} == texts.keys() - {"stranger.py"}
    before = content_key(CELL, {}, [file])
    (tmp_path / "stranger.py").write_text("1")
    assert content_key(CELL, {}, [file]) == before
    (tmp_path / "far.py").write_text("1")
    assert content_key(CELL, {}, [file]) != before


def test_the_suites_own_modules_are_no_modules_of_a_grid_file_in_its_root():
    assert with_own_imports(ROOT / "conftest.py") == [ROOT / "conftest.py"]


def test_a_parent_folder_named_tests_leaves_no_code_out(tmp_path, monkeypatch):
    root = tmp_path / "tests" / "tunegrid"
    (root / "lib" / "tests").mkdir(parents=True)
    (root / "conftest.py").write_text("")
    monkeypatch.setattr(journal, "ROOT", root)
    digests = [code_digest.__wrapped__()]
    for name in ("lib/tunegrid/tests/test_a.py", "lib/a.py"):
        (root / name).write_text("1")
        digests.append(code_digest.__wrapped__())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("package", ["numpy", "scipy", "rouge_score", "nltk"])
def test_another_version_of_what_scores_is_another_key(package, monkeypatch):
    before = content_key(CELL, {})
    monkeypatch.setattr(journal, "versions", lambda: versions() | {package: "another"})
    assert versions()[package]
    assert content_key(CELL, {}) != before


# What a session adds


@pytest.fixture
def keys(request, monkeypatch):
    """Keys of a session of its own, for cells of the full profile, as on a machine without the hub."""
    monkeypatch.setattr(session_module, "commit_of", lambda dataset, config: "a" * 40)
    session = Session(request.config)

    def key(cell_id="bert_sa_lora", **changes):
        return session.key_of(STUDY.cell(cell_id, replace(FULL_PROFILE, **changes)))

    return key


def see_gpus(monkeypatch, *names):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(names))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: names[place])


def test_rows_of_the_cpu_are_not_taken_on_a_gpu_nor_those_of_another_gpu(keys, monkeypatch):
    see_gpus(monkeypatch)  # as with CUDA_VISIBLE_DEVICES=
    cpu = keys()
    see_gpus(monkeypatch, "H100", "A100")
    either, second, on_cpu = keys(), keys(device="cuda:1"), keys(device="cpu")
    see_gpus(monkeypatch, "A100")
    assert cpu == on_cpu
    assert len({cpu, either, second}) == 3
    assert keys() == second  # the same card under another number


def test_a_footprint_with_every_gpu_hidden_is_the_cpus(request, monkeypatch):
    monkeypatch.setattr(session_module, "gpus", lambda: [{"name": "H100"}])
    assert Session(request.config).profile("footprint").device is None
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert Session(request.config).profile("footprint").device == "cpu"


def test_threads_bear_on_the_key_on_a_cpu_alone(keys, monkeypatch):
    assert keys(device="cpu", threads=1) != keys(device="cpu", threads=2)
    see_gpus(monkeypatch, "H100")
    assert keys(threads=1) == keys(threads=2)


def test_rows_of_another_commit_of_the_hub_are_not_taken(keys, monkeypatch, tmp_path):
    first = keys()
    monkeypatch.setattr(session_module, "commit_of", lambda dataset, config: "b" * 40)
    assert keys() != first
    folder = keys(data_root=tmp_path)
    monkeypatch.setattr(session_module, "commit_of", lambda dataset, config: None)
    assert keys(data_root=tmp_path) == folder


def test_the_commit_of_a_data_set_is_known_before_its_rows_are_read(monkeypatch):
    monkeypatch.setattr(hub, "prefer_cache_if_unreachable", lambda: True)
    asked = []

    def builder(*arguments):
        asked.append(arguments)
        if arguments == ("nobody/nothing", None):
            raise ConnectionError
        return SimpleNamespace(hash="c" * 40)

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    assert hub.commit_of.__wrapped__("cnn_dailymail", "3.0.0") == "c" * 40
    assert hub.commit_of.__wrapped__("nobody/nothing", None) is None
    assert asked[0] == ("cnn_dailymail", "3.0.0")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Point the name of a checkpoint to a commit in a hub's cache, as a download does."""
    monkeypatch.setattr(hub, "prefer_cache_if_unreachable", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def point(commit):
        repo = tmp_path / "models--someone--model"
        for path, text in ((repo / "refs" / "main", commit), (repo / "snapshots" / commit / "config.json", "{}")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        hub.checkpoint_commit_of.cache_clear()

    yield point
    hub.checkpoint_commit_of.cache_clear()


def test_the_commit_of_a_checkpoint_is_the_one_that_the_hubs_cache_points_to(hub_cache):
    assert hub.checkpoint_commit_of("someone/model") is None
    hub_cache("d" * 40)
    assert hub.checkpoint_commit_of("someone/model") == "d" * 40
    assert hub.checkpoint_commit_of("someone/else") is None


def test_weights_of_another_commit_are_not_taken_where_nothing_pins_them(request, monkeypatch, hub_cache):
    monkeypatch.setattr(session_module, "commit_of", lambda dataset, config: "a" * 40)
    session, pinned = Session(request.config), STUDY.cell("bert_sa_lora", FULL_PROFILE)
    unpinned = replace(pinned, backbone=replace(pinned.backbone, checkpoint="someone/model", revision=None))
    keys = []
    for commit in ("d" * 40, "e" * 40, "d" * 40):
        hub_cache(commit)
        keys.append((session.key_of(unpinned), session.key_of(pinned)))
    (first, own), (second, same), (again, _) = keys
    assert first == again != second
    assert own == same


def test_another_metric_script_is_another_key(tmp_path):
    def source(text):
        folder = tmp_path / text
        (folder / "squad").mkdir(parents=True)
        (folder / "squad" / "squad.py").write_text(text)
        return metrics_of(str(folder), Problem.EXTRACT)[1]

    assert source("1") != source("2")


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_metrics_of_the_hub_are_known_by_the_hash_of_their_code(tmp_path, monkeypatch):
    (tmp_path / "squad.py").write_text(SCRIPT)
    load = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda name, **options: load(str(tmp_path / f"{name}.py"), **options))
    hashes = []
    for text in (SCRIPT, SCRIPT, SCRIPT + "# other code\n"):
        (tmp_path / "squad.py").write_text(text)
        hashes.append(metrics_of.__wrapped__("hub", Problem.EXTRACT))
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(hashes[0][1]["squad"]) == 64


def test_the_files_of_a_users_classes_bear_on_the_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for text in ("class Mine(Lora): pass", "class Mine(Lora): adapts = True"):
        (tmp_path / "users_method.py").write_text(f"from tunegrid.grid.methods import Lora\n{text}\n")
    from users_method import Mine

    cell = replace(CELL, method=Mine(id="mine", name="mine"), head=Head(architecture=Mine))
    before = source_digests(cell)
    (tmp_path / "users_method.py").write_text("class Mine: pass\n")
    assert len(before) == 1  # the method's and architecture's file; the suite's own are in the digest of its code
    assert set(source_digests(cell)) - set(before)


def test_a_key_is_the_same_in_every_process():
    """A value without a text of its own, such as a function, shows its address; the key must not."""
    cells = [replace(CELL, method=Lora(id="mine", name="mine", options={"init": make()})) for _ in range(2)]
    assert content_key(cells[0], {}) == content_key(cells[1], {})


def make():
    def init():
        return None

    return init


def test_one_byte_of_data_is_another_key(tmp_path):
    def key(text):
        folder = tmp_path / text
        (folder / "amazon_polarity").mkdir(parents=True)
        (folder / "amazon_polarity" / "train.jsonl").write_text(text)
        return content_key(STUDY.cell(CELL.id, replace(QUICK_PROFILE, data_root=folder)), {})

    assert key("a") != key("b")


# Kills. Each starts pytest on three small cells with a cache of its own.


def start(cache, out, *options):
    command = [sys.executable, "-m", "pytest", "--cells", ",".join(CELLS), f"--benchmark-json={out}", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["TUNEGRID_CACHE"] = str(cache)
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def finished(cache):
    return [row for path in sorted((cache / "journal").glob("*.jsonl")) for _, row in read(path)]


def wait_for(cache, process, count=1):
    while len(finished(cache)) < count and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, process.stdout.read()


def test_a_killed_session_loses_no_finished_cell_and_the_next_one_resumes(tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "run.json"
    process = start(cache, out)
    wait_for(cache, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    kept = {row["extra_info"]["cell"]: row["extra_info"] for row in finished(cache)}
    assert kept
    assert not out.exists()
    partial = tmp_path / "partial.json"
    assert merge.main(["--journal", str(latest(cache / "journal")), "-o", str(partial)]) == 0
    assert {cell: record.scores for cell, record in read_records(partial).items()} == {
        cell: record["scores"] for cell, record in kept.items()
    }
    process = start(cache, out, "--resume")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"resumed {len(kept)} cells that had passed with all the same: {next(iter(kept))}" in output
    records = read_records(out)
    assert set(records) == set(CELLS)
    assert all(records[cell].scores == record["scores"] for cell, record in kept.items())
    assert list(cache.rglob("*.part")) == []


def test_an_interrupted_session_saves_what_is_done(tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "run.json"
    process = start(cache, out)
    wait_for(cache, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert set(read_records(out)) >= {row["extra_info"]["cell"] for row in finished(cache)} > set()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a worker by /proc, which is not here")
def test_a_killed_worker_loses_its_own_cell_alone(tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "run.json"
    process = start(cache, out, "-n", "2")
    wait_for(cache, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "crashed" in output
    saved = read_records(out)
    assert {row["extra_info"]["cell"] for row in finished(cache)} == set(saved)
    assert len(saved) >= 2  # of three, one was running on the worker


def test_a_full_disk_keeps_the_session_going_and_leaves_no_half_file(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        cache = tmp_path / "cache"
        process = start(cache, disk / "run.json")
        output, _ = process.communicate(timeout=120)
        assert process.returncode != 0
        assert (
            "cannot be written (No space left on device); `tunegrid merge --journal -o RUN.json` makes the run anew" in output
        )
        assert "Traceback" not in output
        assert list(disk.iterdir()) == []
        assert len(finished(cache)) == 3
        assert merge.main(["--journal", str(latest(cache / "journal")), "-o", str(tmp_path / "run.json")]) == 0
        assert set(read_records(tmp_path / "run.json")) == set(CELLS)
    finally:
        subprocess.run(["umount", disk], check=False)


def test_a_journal_without_room_costs_the_journal_not_the_run(tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "run.json"
    cache.mkdir()
    (cache / "journal").write_text("a file where the folder should be")
    process = start(cache, out)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "the journal could not be written" in output
    assert set(read_records(out)) == set(CELLS)
    assert json.loads(out.read_text())["benchmarks"]
