"""Environments of a package made here, by pip and by uv where it is installed: what is in them names them and their runs."""

import os
import shutil
import time

import pytest

from tunegrid.commands import environments
from tunegrid.commands.environments import copy_of, environment_with, output_of, pinned, reason_in, requirement_of
from tunegrid.errors import InputError
from tunegrid.tests.packages import repository, wheel
from tunegrid.tests.repositories import git

UV = shutil.which("uv")
HOLDS = "import planted, packaging; print(planted.ROWS)"  # one is the environment's own, the other is shared


@pytest.fixture(params=["pip", pytest.param("uv", marks=pytest.mark.skipif(not UV, reason="uv is not on the PATH"))])
def folder(request, tmp_path, monkeypatch):
    """A folder for wheels, with environments below it that pip makes, or uv."""
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(shutil, "which", lambda name: UV if name == "uv" and request.param == "uv" else None)
    return tmp_path


def made(folder, requirement="planted==1.0"):
    """An environment with what is required, as the wheels in a folder have it."""
    return environment_with([requirement], folder, alone=True)


def holds(environment):
    return int(output_of([str(environment.python), "-c", HOLDS], "it is broken")[-1])


def test_an_environment_is_named_by_what_is_in_it_and_a_wheel_that_is_built_again_is_another_one(folder):
    measured = []

    def rows_of(environment):
        def command(python, out):
            measured.append(environment.folder)
            return [str(python), "-c", f"import planted; open({str(out)!r}, 'w').write(str(planted.ROWS))"]

        return environment.run(command, ["a question"], (), "rows.txt", lambda path: True).read_text()

    wheel(folder, "1.0", 1)
    first, again = made(folder), made(folder)
    assert (first, first.own) == (again, {"planted": "1.0"})
    assert [rows_of(environment) for environment in (first, again)] == ["1", "1"]
    assert len(measured) == 1  # the second one is taken from the disk
    path = folder / wheel(folder, "1.0", 2)
    os.utime(path, (time.time() + 9,) * 2)
    rebuilt = made(folder)
    assert (rebuilt.folder == first.folder, rows_of(rebuilt), rows_of(first)) == (False, "2", "1")
    by_path = made(folder, f"planted @ {path.as_uri()}")
    assert (by_path.folder == first.folder, holds(by_path)) == (False, 2)


@pytest.mark.slow
def test_a_checkout_is_tried_as_it_lies_on_the_disk_and_stays_as_it_is(folder):
    repo = repository(folder / "library", "2.0")
    for rows in ("1", "3"):
        (repo / "rows.txt").write_text(rows)
        git(repo, "add", ".")
        git(repo, "commit", "--quiet", "-m", rows)
    (repo / "rows.txt").write_text("4")  # not committed
    assert holds(made(folder, requirement_of(f"planted@{repo}"))) == 4
    assert holds(made(folder, copy_of(repo, "HEAD~1").as_uri())) == 1
    assert (git(repo, "status", "--short"), (repo / "built-here").exists()) == ("M rows.txt", False)


@pytest.mark.parametrize("spec", ["--target=x==1", "../../x==1", "planted=9", "-r x.txt", "", "x==1 --pre"])
def test_what_is_no_package_is_one_sentence(spec):
    with pytest.raises(InputError, match="is no package: expected one as pip takes it"):
        requirement_of(spec)


def test_what_pip_reads_itself_stays_and_a_folder_without_git_is_one_sentence(tmp_path):
    for spec in ("Rouge_Score>=0.1", "peft @ https://x/peft.zip", "peft @ git+https://x/peft@v1"):
        assert requirement_of(spec) == spec
    with pytest.raises(InputError, match="cannot be read as a checkout of a library: not a git repository"):
        requirement_of(f"peft@{tmp_path}")


def test_a_cache_whose_path_holds_a_colon_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / f"a{os.pathsep}b")
    with pytest.raises(InputError, match="set TUNEGRID_CACHE to another folder"):
        environment_with(["planted"], None)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_installed_leaves_no_half_an_environment(folder, monkeypatch):
    wheel(folder, "1.0", 1)
    monkeypatch.setattr(environments, "lock_of", lambda *_, **__: "planted @ file:///nowhere-1.0-py3-none-any.whl")
    with pytest.raises(InputError, match="cannot be installed: "):
        made(folder)
    assert list(folder.glob("environments/*/environment")) == []


def test_what_pip_reports_is_pinned_to_its_archive_or_commit():
    about = {"name": "peft", "version": "0.22.0"}
    archive = {"url": "https://x/peft-0.22.0.whl", "archive_info": {"hashes": {"sha256": "ab"}}}
    assert pinned({"metadata": about, "download_info": archive}) == "peft @ https://x/peft-0.22.0.whl#sha256=ab"
    commit = {"url": "https://x/peft", "vcs_info": {"vcs": "git", "commit_id": "0123"}, "subdirectory": "python"}
    assert pinned({"metadata": about, "download_info": commit}) == "peft @ git+https://x/peft@0123#subdirectory=python"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ERROR: Could not find x\nERROR: No matching distribution found for x\n", "No matching distribution found for x"),
        ("error: No solution found\n  cause: Because x was not found, no.\n", "Because x was not found, no."),
        ("fatal: not a git repository\nhint: try again\n", "not a git repository"),
        ("Segmentation fault\n", "Segmentation fault"),
        ("", ""),
    ],
)
def test_the_last_error_or_cause_is_the_reason(said, reason):
    assert reason_in(said) == reason


def test_files_that_options_name_are_part_of_the_key(tmp_path, monkeypatch):
    for name, text in {"grid": "import near", "near": "", "plugin_one": "", "plugin_two": ""}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    grid = f"--grid={tmp_path / 'grid.py'}"
    options = [grid, "-p", "plugin_one", "-pplugin_two", "-p", "xdist", "-pno:cacheprovider", "--seeds", "0-2"]
    assert [path.stem for path in environments.files_in(options)] == ["grid", "near", "plugin_one", "plugin_two"]
