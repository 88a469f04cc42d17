"""Environments of packages that are made here: their names, and checks of what they hold."""

import os
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
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
# Writes the number that a package holds; packaging is shared
WRITE_ROWS = """
import sys, packaging
from importlib import import_module
from pathlib import Path
Path(sys.argv[1]).write_text(str(import_module(sys.argv[2]).ROWS))
"""


@pytest.fixture(autouse=True)
def own_environments(working_folder, monkeypatch):
    """Environments are made in the working folder; a session writes a package's number."""

    def suite(python, out, arguments):
        return [str(python), "-c", WRITE_ROWS, str(out), *arguments]

    monkeypatch.setattr(environments, "ENVIRONMENTS", working_folder / "environments")
    monkeypatch.setattr(environments, "suite", suite)


def create(requirement, alone=False):
    """Creates an environment from the wheels in the working folder."""
    return get_environment([requirement], Path(), alone=alone)


def rows(environment, name="planted"):
    """The number that a package holds in an environment."""
    return environment.run("rows.txt", [name]).read_text()


def held_packages(environment):
    """The packages of an environment's own folder, by name."""
    [site] = environment.folder.glob("environment/lib/*/site-packages")
    return find_packages([str(site)])


def build_again(release, rows, name="planted"):
    """Writes a wheel that differs from the one before, and is newer."""
    later = time.time() + 9
    os.utime(wheel(".", release, rows, name), (later, later))


def test_a_requirement_or_an_address_stays_as_the_user_wrote_it():
    for spec in ("Rouge_Score>=0.1", "peft @ https://x/peft.zip", "peft @ git+https://x/peft@v1"):
        assert parse_requirement(spec) == spec


def test_a_wheel_that_is_built_again_is_another_environment():
    wheel(".", "1.0", 1)
    first = create("planted==1.0")
    assert create("planted==1.0") == first
    assert first.own == {"planted": "1.0"}
    build_again("1.0", 2)
    rebuilt = create("planted==1.0")
    assert rebuilt.folder != first.folder
    assert rows(rebuilt) == "2"
    assert rows(first) == "1"


def test_an_address_keeps_the_password_that_uv_hides(monkeypatch):
    report = " - needed==1.0\n + needed==2.0\n + planted @ https://user:****@x/planted.zip\n"
    monkeypatch.setattr(
        packages, "run_uv", lambda *_, text="": SimpleNamespace(stderr=report, stdout=text)
    )
    planted = "planted @ https://user:secret@x/planted.zip"
    assert lock_packages([planted], [], alone=False) == f"needed==2.0\n{planted}"


def test_what_is_needed_comes_along_unless_it_is_here_or_the_package_is_alone():
    wheel(".", "1.0", 1, needs=[HERE, "needed>=2"])
    wheel(".", "2.0", 1, name="needed")
    assert create("planted").own == {"planted": "1.0", "needed": "2.0"}
    assert create("planted", alone=True).own == {"planted": "1.0"}


def test_each_commit_of_the_version_that_is_installed_here_is_an_environment():
    repo = Path("library").absolute()
    commit = checkout(repo, version(HERE), 1, HERE)
    spec = f"{HERE}@{repo}"
    environment = create(parse_requirement(spec))
    assert environment.own == {HERE: f"{version(HERE)} at commit {commit[:8]}"}
    assert not environment.is_copy
    assert rows(environment, HERE) == "1"
    backend = repo / "backend.py"
    backend.write_text(f"{backend.read_text()}\n# not committed\n")
    uncommitted = parse_requirement(spec)
    assert create(uncommitted).own != environment.own
    with pytest.raises(InputError, match=rf"^asked for {HERE} @ git.+ is {HERE} .+ at commit"):
        check_packages([], uncommitted, held_packages(environment))
    address = packages.git_address(repo, commit)
    assert create(address, alone=True).own == environment.own


def test_the_very_release_that_is_installed_here_is_a_copy_and_a_rebuilt_one_is_none():
    pack(".", HERE)
    assert create(HERE).is_copy
    build_again(version(HERE), 1, HERE)
    assert not create(HERE).is_copy


def test_another_release_than_was_named_is_one_sentence(monkeypatch):
    for release in ("1.0", "2.0"):
        wheel(".", release, 1)
    overrides = Path("overrides.txt")
    overrides.write_text("planted==2.0")
    monkeypatch.setenv("UV_OVERRIDE", str(overrides))
    sentence = r"asked for planted==1\.0, but what was installed is planted 2.0"
    with pytest.raises(InputError, match=sentence):
        create("planted==1.0")


def test_another_version_a_checkout_and_a_missing_package_differ_from_what_is_installed():
    wheel(".", "1.0", 1)
    held = held_packages(create("planted"))
    check_packages(["planted==1.0"], "planted==1.0 \\\n    --hash=sha256:ab\n", held)
    for asked in ("planted==1.1", f"planted @ git+https://x/planted@{'0' * 40}", "peft"):
        with pytest.raises(InputError, match=r"^asked for p"):
            check_packages([], f"{asked}\n", held)


def test_a_file_that_was_edited_in_an_environment_is_one_sentence_and_installed_again():
    wheel(".", "1.0", 1)
    environment = create("planted==1.0")
    [module] = environment.folder.glob("environment/lib/*/site-packages/planted/__init__.py")
    module.write_text("ROWS = 7")
    sentence = r"planted/__init__.py is not as planted 1.0 has it: it was edited"
    with pytest.raises(InputError, match=sentence):
        create("planted==1.0")
    assert rows(create("planted==1.0")) == "1"


def test_the_command_of_an_environment_runs_its_packages_from_any_folder():
    wheel(".", "1.0", 1)
    words = [*create("planted").command, "--markers", "-p"]
    assert subprocess.run([*words, "planted"], check=False).returncode == 0
    assert subprocess.run([*words, "other"], check=False).returncode == 4
    assert get_environment([], None).command == ["tunegrid", "run"]


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
