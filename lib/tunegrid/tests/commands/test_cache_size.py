"""The cache has a bound: the oldest goes first, and nothing that a session may still need."""

import json
import os
import time
from types import SimpleNamespace

import pytest
from filelock import FileLock

import fixtures.journal as plugin
from tunegrid.commands import cache as command
from tunegrid.commands.cache import bytes_of, listing, lock_of, prune
from tunegrid.errors import InputError

HOUR = 3600
DEAD = 2**22 + 1  # above the highest pid that Linux gives


def keep(folder, name, hours, size=100):
    """A file of `size` bytes that was written `hours` ago."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - hours * HOUR,) * 2)
    return path


def journal(folder, pid, hours, *keys):
    name = time.strftime("%Y%m%d-%H%M%S", time.localtime(time.time() - hours * HOUR))
    path = folder / "journal" / f"{name}-{pid}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"key": key, "row": {"extra_info": {"status": "passed"}}}) + "\n" for key in keys))
    return path.stat().st_size


def left(folder):
    return {str(file.path.relative_to(folder)) for file in listing(folder) if file.kind != "journal"}


@pytest.fixture
def full(tmp_path):
    """600 bytes: two files of each kind that may go; one checkpoint is of a cell that finished."""
    for kind, suffix in (("features", "parquet"), ("examples", "parquet"), ("checkpoints", "safetensors")):
        keep(tmp_path, f"{kind}/old.{suffix}", 9)
        keep(tmp_path, f"{kind}/new.{suffix}", 2)
    return tmp_path


def test_the_oldest_features_go_first_then_examples_and_no_checkpoint_that_may_be_resumed(full):
    assert prune(600, full) == 0
    assert prune(500, full) == 100
    assert left(full) == {"features/new.parquet", *(f"examples/{age}.parquet" for age in ("old", "new")), *CHECKPOINTS}
    assert prune(350, full) == 200
    assert left(full) == {"examples/new.parquet", *CHECKPOINTS}
    assert prune(0, full) == 100
    assert left(full) == CHECKPOINTS


CHECKPOINTS = {"checkpoints/old.safetensors", "checkpoints/new.safetensors"}


def test_checkpoints_of_finished_cells_go_and_journals_stay(full):
    size = journal(full, DEAD, 1, "new")
    assert prune(0, full) == 500
    assert left(full) == {"checkpoints/old.safetensors"}
    assert sum(file.size_bytes for file in listing(full)) == 100 + size


def test_what_was_written_since_a_running_session_began_stays(full):
    journal(full, os.getppid(), 5, "new", "old")
    prune(0, full)
    assert left(full) == {"features/new.parquet", "examples/new.parquet", "checkpoints/new.safetensors"}


def test_rows_that_somebody_reads_stay(full):
    with FileLock(full / "features" / "old.lock"):
        prune(0, full)
        assert "features/old.parquet" in left(full)
    assert prune(0, full) == 100


@pytest.fixture
def searched(tmp_path):
    """A search with an environment of 200 bytes in two files, and 100 bytes of a run."""
    for name in ("1.0/environment/bin/python", "1.0/environment/lib/planted.py", "1.0/run.json"):
        keep(tmp_path, f"bisect/planted-0123/{name}", 9)
    return tmp_path


def test_environments_of_a_bisection_go_and_its_runs_stay(searched, monkeypatch, capsys):
    monkeypatch.setattr(command, "CACHE", searched)
    assert command.main([]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("bisect            3 files        0.0 MiB  environments")
    assert prune(0, searched) == 200
    assert left(searched) == {"bisect/planted-0123/1.0/run.json"}


def test_environments_of_a_bisection_that_runs_stay(searched):
    with FileLock(lock_of(searched / "bisect" / "planted-0123")):
        assert prune(0, searched) == 0
    assert prune(0, searched) == 200


def test_environments_of_upgrades_go_too_unless_one_runs(tmp_path):
    for name in ("environment/bin/python", "environment/lib/planted.py", "whole-0123.json"):
        keep(tmp_path, f"upgrade/planted-0123/{name}", 9)
    with FileLock(lock_of(tmp_path / "upgrade" / "planted-0123")):
        assert prune(0, tmp_path) == 0
    assert prune(0, tmp_path) == 200
    assert left(tmp_path) == {"upgrade/planted-0123/whole-0123.json"}


def test_the_command_prints_kinds_and_sizes(full, monkeypatch, capsys):
    monkeypatch.setattr(command, "CACHE", full)
    keep(full, "features/large.parquet", 30, size=3 * 2**20)
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "features          3 files        3.0 MiB  tokenised rows"
    assert [line.split()[:2] for line in lines] == [
        ["features", "3"],
        ["bisect", "0"],
        ["upgrade", "0"],
        ["examples", "2"],
        ["checkpoints", "2"],
        ["journal", "0"],
        ["speed", "0"],
        ["all", "7"],
    ]
    assert command.main(["--prune", "--keep", "1MiB"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "removed 3.0 MiB"
    assert "features/large.parquet" not in left(full)


@pytest.mark.parametrize("arguments", [["--keep", "1GiB"], ["--prune", "--keep", "2"], ["--prune", "--keep", "-1GiB"]])
def test_a_size_that_is_none_is_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert "--keep" in capsys.readouterr().err


def test_sizes_have_binary_units():
    assert (bytes_of("500MiB"), bytes_of("1.5GiB")) == (500 * 2**20, 3 * 2**29)
    with pytest.raises(InputError, match="invalid --keep '5GB': expected a size"):
        bytes_of("5GB")


@pytest.mark.parametrize(("records", "is_worker", "prunes"), [({"a": 1}, False, 1), ({"a": 1}, True, 0), ({}, False, 0)])
def test_a_session_that_ran_cells_prunes_at_its_end_and_its_workers_do_not(records, is_worker, prunes, monkeypatch):
    calls = []
    session = SimpleNamespace(records=records, is_worker=is_worker)
    monkeypatch.setattr(plugin, "session_of", lambda config: session)
    monkeypatch.setattr(plugin, "prune", lambda: calls.append("pruned"))
    plugin.pytest_unconfigure(config=None)
    assert len(calls) == prunes


def test_journals_go_after_thirty_days_but_for_those_of_sessions_that_run(tmp_path):
    old_bytes = journal(tmp_path, DEAD, 31 * 24, "a")
    journal(tmp_path, os.getppid(), 31 * 24, "b")
    journal(tmp_path, DEAD, 29 * 24, "c")
    for path in (tmp_path / "journal").iterdir():
        began = time.mktime(time.strptime(path.name[:15], "%Y%m%d-%H%M%S"))
        os.utime(path, (began, began))
    assert prune(folder=tmp_path) == old_bytes
    left_over = {int(path.stem.rpartition("-")[2]) for path in (tmp_path / "journal").iterdir()}
    assert left_over == {DEAD, os.getppid()}
