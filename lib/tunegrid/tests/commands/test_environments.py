"""Environments of a package made here, by pip: what is in them names them."""

import os
import time

import pytest

from tunegrid.commands import environments
from tunegrid.commands.environments import environment_with, pinned, requirement_of
from tunegrid.errors import InputError
from tunegrid.tests.packages import wheel

HOLDS = "import sys, planted, packaging"  # one is the environment's own, the other is shared
WRITES = "open(sys.argv[1], 'w').write(str(planted.ROWS))"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for wheels, with environments below it."""
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(environments, "suite", lambda python, out, _: [str(python), "-c", f"{HOLDS}; {WRITES}", str(out)])
    return tmp_path


def made(folder, requirement="planted==1.0"):
    """An environment with what is required, as the wheels in a folder have it."""
    return environment_with([requirement], folder, alone=True)


def rows_of(environment):
    """What a run in an environment finds there."""
    return environment.run("rows.txt", ()).read_text()


def test_an_environment_is_named_by_what_is_in_it_and_a_wheel_that_is_built_again_is_another_one(folder):
    wheel(folder, "1.0", 1)
    first, again = made(folder), made(folder)
    assert (first, first.own) == (again, {"planted": "1.0"})
    path = folder / wheel(folder, "1.0", 2)
    os.utime(path, (time.time() + 9,) * 2)
    rebuilt = made(folder)
    assert (rebuilt.folder == first.folder, rows_of(rebuilt), rows_of(first)) == (False, "2", "1")
    by_path = made(folder, f"planted @ {path.as_uri()}")
    assert (by_path.folder == first.folder, rows_of(by_path)) == (False, "2")


def test_what_pip_reads_itself_stays_and_a_folder_without_git_is_one_sentence(tmp_path):
    for spec in ("Rouge_Score>=0.1", "peft @ https://x/peft.zip", "peft @ git+https://x/peft@v1"):
        assert requirement_of(spec) == spec
    with pytest.raises(InputError, match="cannot be read as a checkout of a library: not a git repository"):
        requirement_of(f"peft@{tmp_path}")


def test_what_pip_reports_is_pinned_to_its_archive_or_commit():
    about = {"name": "peft", "version": "0.22.0"}
    archive = {"url": "https://x/peft-0.22.0.whl", "archive_info": {"hashes": {"sha256": "ab"}}}
    assert pinned({"metadata": about, "download_info": archive}) == "peft @ https://x/peft-0.22.0.whl#sha256=ab"
    commit = {"url": "https://x/peft", "vcs_info": {"vcs": "git", "commit_id": "0123"}, "subdirectory": "python"}
    assert pinned({"metadata": about, "download_info": commit}) == "peft @ git+https://x/peft@0123#subdirectory=python"
