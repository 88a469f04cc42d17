"""Environments of a package made here, by pip: what is in them names them."""

import os
import time

import pytest

from tunegrid.commands import environments
from tunegrid.commands.environments import address_of, environment_with, output_of, pinned, requirement_of
from tunegrid.errors import InputError
from tunegrid.tests.packages import repository, wheel
from tunegrid.tests.repositories import git

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


@pytest.mark.slow
def test_a_checkout_is_tried_as_it_lies_on_the_disk_and_stays_as_it_is(folder):
    repo = repository(folder / "library", "2.0")
    for rows in ("1", "3"):
        (repo / "rows.txt").write_text(rows)
        git(repo, "add", ".")
        git(repo, "commit", "--quiet", "-m", rows)
    (repo / "rows.txt").write_text("4")  # not committed
    requirements = {requirement_of(f"planted@{repo}") for _ in (1, 2)}  # equal files are the same commit
    assert [rows_of(made(folder, one)) for one in requirements] == ["4"]
    assert rows_of(made(folder, address_of(repo, "HEAD~1"))) == "1"
    assert (git(repo, "status", "--short"), (repo / "built-here").exists()) == ("M rows.txt", False)


def test_what_pip_reads_itself_stays_and_a_folder_without_git_is_one_sentence(tmp_path):
    for spec in ("Rouge_Score>=0.1", "peft @ https://x/peft.zip", "peft @ git+https://x/peft@v1"):
        assert requirement_of(spec) == spec
    with pytest.raises(InputError, match="cannot be read as a checkout of a library: not a git repository"):
        requirement_of(f"peft@{tmp_path}")


def test_a_cache_whose_path_holds_a_colon_is_one_sentence(folder, monkeypatch):
    wheel(folder, "1.0", 1)
    monkeypatch.setattr(environments, "ENVIRONMENTS", folder / f"a{os.pathsep}b")
    with pytest.raises(InputError, match=r"cannot be made: .*contains the PATH separator"):
        made(folder)


def test_uv_brings_pip_if_there_is_none(monkeypatch):
    monkeypatch.setattr(environments.PathFinder, "find_spec", lambda name: None)
    assert environments.pip_for("env/python")[:4] == ["uv", "tool", "run", "pip"]


def test_what_pip_reports_is_pinned_to_its_archive_or_commit():
    about = {"name": "peft", "version": "0.22.0"}
    archive = {"url": "https://x/peft-0.22.0.whl", "archive_info": {"hashes": {"sha256": "ab"}}}
    assert pinned({"metadata": about, "download_info": archive}) == "peft @ https://x/peft-0.22.0.whl#sha256=ab"
    commit = {"url": "https://x/peft", "vcs_info": {"vcs": "git", "commit_id": "0123"}, "subdirectory": "python"}
    assert pinned({"metadata": about, "download_info": commit}) == "peft @ git+https://x/peft@0123#subdirectory=python"


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ("ERROR: Could not find x\nERROR: No matching distribution found for x\n", "No matching distribution found for x"),
        ("fatal: not a git repository\nhint: try again\n", "not a git repository"),
        ("Segmentation fault\n", "Segmentation fault"),
        ("", "exit code 3"),
    ],
)
def test_the_last_error_is_the_reason(errors, reason):
    with pytest.raises(InputError, match=f"^it failed: {reason}$"):
        output_of(["sh", "-c", 'printf "$0" >&2; exit 3', errors], "it failed")
