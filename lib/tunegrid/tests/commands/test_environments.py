"""Environments of packages that are made here: what names them, and whether they hold what was
named.
"""

import os
import subprocess
import time
from importlib.metadata import version
from types import SimpleNamespace

import pytest

from tunegrid.commands import environments, packages
from tunegrid.commands.environments import get_environment
from tunegrid.commands.packages import (
    check_packages,
    find_packages,
    index_options,
    lock_packages,
    parse_requirement,
)
from tunegrid.errors import InputError
from tunegrid.tests.packages import checkout, pack, wheel

HERE = "iniconfig"  # a small package that is installed here
# Packaging is shared
WRITES = "import sys, packaging, {}; open(sys.argv[1], 'w').write(str({}.ROWS))"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for wheels, with environments below it."""
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    return tmp_path


def rows(environment, monkeypatch, name="planted"):
    """The number that a package holds in an environment."""
    code = WRITES.format(name, name)
    monkeypatch.setattr(
        environments, "suite", lambda python, out, _: [str(python), "-c", code, str(out)]
    )
    return environment.run("rows.txt", ()).read_text()


def test_what_a_user_names_stays_and_a_folder_without_git_is_one_sentence(tmp_path):
    for spec in ("Rouge_Score>=0.1", "peft @ https://x/peft.zip", "peft @ git+https://x/peft@v1"):
        assert parse_requirement(spec) == spec
    with pytest.raises(
        InputError, match="cannot be read as a checkout of a library: not a git repository"
    ):
        parse_requirement(f"peft@{tmp_path}")


def test_a_wheel_that_is_built_again_is_another_environment(folder, monkeypatch):
    wheel(folder, "1.0", 1)
    first = get_environment(["planted==1.0"], folder)
    assert get_environment(["planted==1.0"], folder) == first
    assert first.own == {"planted": "1.0"}
    os.utime(folder / wheel(folder, "1.0", 2), (time.time() + 9,) * 2)
    rebuilt = get_environment(["planted==1.0"], folder)
    assert rebuilt.folder != first.folder
    assert [rows(rebuilt, monkeypatch), rows(first, monkeypatch)] == ["2", "1"]


def test_an_address_keeps_the_password_that_uv_hides(monkeypatch):
    report = " - needed==1.0\n + needed==2.0\n + planted @ https://user:****@x/planted.zip\n"
    monkeypatch.setattr(
        packages, "run_uv", lambda *_, text="": SimpleNamespace(stderr=report, stdout=text)
    )
    planted = "planted @ https://user:secret@x/planted.zip"
    assert lock_packages([planted], [], alone=False) == f"needed==2.0\n{planted}"


def test_what_is_needed_comes_along_unless_it_is_here_or_the_package_is_alone(folder):
    wheel(folder, "1.0", 1, needs=[HERE, "needed>=2"])
    wheel(folder, "2.0", 1, name="needed")
    assert get_environment(["planted"], folder).own == {"planted": "1.0", "needed": "2.0"}
    assert get_environment(["planted"], folder, alone=True).own == {"planted": "1.0"}


def test_a_checkout_of_the_version_that_is_installed_here_is_installed(folder, monkeypatch):
    repo = folder / "library"
    commit = checkout(repo, version(HERE), 1, HERE)
    environment = get_environment([parse_requirement(f"{HERE}@{repo}")], folder)
    assert environment.own == {HERE: f"{version(HERE)} at commit {commit[:8]}"}
    assert not environment.is_copy
    assert rows(environment, monkeypatch, HERE) == "1"
    backend = repo / "backend.py"
    backend.write_text(f"{backend.read_text()}\n# not committed\n")
    assert get_environment([parse_requirement(f"{HERE}@{repo}")], folder).own != environment.own
    assert (
        get_environment([packages.git_address(repo, commit)], folder, alone=True).own
        == environment.own
    )


def test_the_very_release_that_is_installed_here_is_a_copy_and_a_rebuilt_one_is_none(folder):
    pack(folder, HERE)
    assert get_environment([HERE], folder).is_copy
    os.utime(folder / wheel(folder, version(HERE), 1, HERE), (time.time() + 9,) * 2)
    assert not get_environment([HERE], folder).is_copy


def test_another_release_than_was_named_is_one_sentence(folder, monkeypatch):
    for release in ("1.0", "2.0"):
        wheel(folder, release, 1)
    (folder / "overrides.txt").write_text("planted==2.0")
    monkeypatch.setenv("UV_OVERRIDE", str(folder / "overrides.txt"))
    with pytest.raises(
        InputError, match=r"asked for planted==1\.0, but what was installed is planted 2.0"
    ):
        get_environment(["planted==1.0"], folder)


def test_another_commit_and_none_at_all_differ_from_what_was_named(folder):
    wheel(folder, "1.0", 1)
    environment = get_environment(["planted"], folder)
    [site] = (environment.folder / "environment").glob("lib/*/site-packages")
    held = find_packages([str(site)])
    check_packages(["planted==1.0"], "planted==1.0 \\\n    --hash=sha256:ab\n", held)
    for asked in ("planted==1.1", f"planted @ git+https://x/planted@{'0' * 40}", "peft"):
        with pytest.raises(InputError, match=r"^asked for p"):
            check_packages([], f"{asked}\n", held)


def test_a_file_that_was_edited_in_an_environment_is_one_sentence_and_installed_again(
    folder, monkeypatch
):
    wheel(folder, "1.0", 1)
    environment = get_environment(["planted==1.0"], folder)
    [module] = environment.folder.glob("environment/lib/*/site-packages/planted/__init__.py")
    module.write_text("ROWS = 7")
    with pytest.raises(
        InputError, match=r"planted/__init__.py is not as planted 1.0 has it: it was edited"
    ):
        get_environment(["planted==1.0"], folder)
    assert rows(get_environment(["planted==1.0"], folder), monkeypatch) == "1"


def test_the_command_of_an_environment_runs_its_packages_from_any_folder(folder):
    wheel(folder, "1.0", 1)
    words = [*get_environment(["planted"], folder).command, "--markers", "-p"]
    assert subprocess.run([*words, "planted"], cwd=folder, check=False).returncode == 0
    assert subprocess.run([*words, "other"], cwd=folder, check=False).returncode == 4
    assert get_environment([], folder).command == ["tunegrid", "run"]


def test_indexes_of_pip_are_used_unless_uv_has_its_own(monkeypatch, tmp_path):
    listing = (
        "global.index-url='https://old/simple'\n"
        "install.timeout='9'\n"
        ":env:.index-url='https://x/simple'\n"
        "global.extra-index-url='\\nhttps://a/simple\\nhttps://b/simple'"
    )
    answer = SimpleNamespace(stdout=listing)
    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: answer)
    expected = [
        "--index-url=https://x/simple",
        "--extra-index-url=https://a/simple",
        "--extra-index-url=https://b/simple",
    ]
    assert index_options(None)[1:] == expected
    assert index_options(tmp_path) == ["--no-index", f"--find-links={tmp_path}"]
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv/simple")
    assert index_options(None) == []
