"""Bisecting, by runs that are saved for each version or commit; and environments of a package made here."""

import os
import time
from importlib import import_module
from types import SimpleNamespace

import pytest

from tunegrid.commands import bisect, environments
from tunegrid.commands.environments import get_environment, parse_requirement, pinned
from tunegrid.errors import InputError
from tunegrid.tests.packages import git, wheel
from tunegrid.tests.records import MEASURED, get_record, hits, run_file

EIGHT = [f"1.{minor}" for minor in range(8)]
RIGHT = {"good": 480, "worse": 416, "doubtful": 471}  # rows of 512; 12.5 points between the first two
# The losses of one are others, so it is another training: no noise was calibrated, and one seed a side tells nothing.
OTHER = MEASURED["training"] | {"losses": [0.9, 0.8]}
ENDS = ["--good", "planted==1.0", "--bad", "planted==1.7", "--cells", "bert_sa_lora"]


@pytest.fixture
def bisected(saved_runs, said):
    """Exit code and lines of a bisection of versions 1.0 to 1.7, which are worse from one on, but for the `others`."""
    for name, right in RIGHT.items():
        training = OTHER if name == "doubtful" else MEASURED["training"]
        record = get_record("bert_sa_lora", {"accuracy": hits(512, right)}, training=training)
        run_file(saved_runs.folder / f"{name}.json", [record])

    def call(first_worse, others, *options):
        saved_runs.files |= {version: "worse.json" if version >= first_worse else "good.json" for version in EIGHT}
        saved_runs.files |= {version: f"{name}.json" for version, name in others.items()}
        return said(bisect.main, [*ENDS, "--versions", ",".join(EIGHT), *options])

    return call


@pytest.mark.parametrize(
    ("first_worse", "others", "steps", "answer"),
    [
        ("1.1", {}, "421", "planted 1.1 is the first that is worse; 1.0 is not."),
        ("1.5", {}, "465", "planted 1.5 is the first that is worse; 1.4 is not."),
        ("1.7", {}, "46", "planted 1.7 is the first that is worse; 1.6 is not."),
        # what cannot be told or does not finish is skipped: away from the change that costs a step more
        ("1.6", {"1.4": "none"}, "4365", "planted 1.6 is the first that is worse; 1.5 is not."),
        (
            *("1.4", {"1.4": "none", "1.3": "doubtful"}, "4352"),
            "planted became worse after 1.2: with 1.5, or with one that was skipped: 1.3, 1.4.",
        ),
    ],
)
def test_versions_between_the_ends_are_halved(saved_runs, bisected, first_worse, others, steps, answer):
    code, lines = bisected(first_worse, others, "--", "--seeds", "0-2")
    assert (code, lines[-3]) == ("skipped" in answer, answer)
    assert lines[0] == "planted: 8 versions, at most 3 steps after the two ends"
    assert next(line for line in lines if line.startswith("tries")) == "tries 1.4; at most 3 steps left"
    assert len([line for line in lines if line.startswith("skips")]) == len(others)
    tried = [("1.0", "run"), ("1.0", "again"), ("1.7", "run"), *((f"1.{step}", "run") for step in steps)]
    assert saved_runs.stages == tried
    arguments = "-m quick --cells bert_sa_lora {}--seeds 0-2"
    assert [asked[2] for asked in saved_runs.asked[:2]] == [arguments.format("--resume "), arguments.format("")]


@pytest.mark.parametrize(
    ("options", "others", "sentence"),
    [
        (["--by", "memory"], {}, "nothing to find: 1.7 is not worse than 1.0 by memory (1 cell, numerics: "),
        ([], {"1.7": "good"}, "nothing to find: 1.7 is not worse than 1.0 by quality and memory"),
        ([], {"1.0": "none"}, "no cell runs with planted 1.0"),
        ([], {("1.0", "again"): "worse"}, "1.0 is called worse than itself, so there is nothing to bisect: worse: bert"),
        (["--versions", "new"], {}, "Invalid version: 'new'; versions are those of"),
        (["--good", "planted==1.8"], {}, "planted 1.8 is not older than 1.7"),
        (["--cells", "bert_sa_lora,t5_sa_lora"], {}, "t5_sa_lora does not finish with planted 1.0"),
    ],
)
def test_ends_that_cannot_be_bisected_are_one_sentence(bisected, options, others, sentence):
    code, lines = bisected("1.4", others, *options)
    assert (code, sentence in lines[-1]) == (2, True), lines


def test_releases_are_those_that_pip_lists_in_the_order_of_versions(tmp_path, said):
    for version in ("1.10.0", "1.9", "1.8"):
        wheel(tmp_path, version, 1)
    options = SimpleNamespace(good="Planted==1.8.0", bad="planted==1.10", find_links=tmp_path, versions=None)
    assert bisect.releases(options) == ("planted", ["1.8", "1.9", "1.10.0"])
    import_module("setuptools")  # which fails in a process that asked its hook where pip is
    code, lines = said(bisect.main, ["--good=p==1", "--bad=p==2", "--cells=bert_sa_lora", f"--find-links={tmp_path}"])
    assert (code, "the releases of p cannot be listed (give them with --versions A,B,C): No" in lines[-1]) == (2, True)


@pytest.mark.usefixtures("bisected")
def test_the_commit_of_a_checkout_is_named(tmp_path, saved_runs, said):
    repo, commits = tmp_path / "library", []
    git(tmp_path, "init", "--quiet", repo)
    for name in ("good", "worse", "worse"):
        git(repo, "commit", "--quiet", "--allow-empty", "-m", name)
        commits.append(git(repo, "rev-parse", "--short", "HEAD"))
        saved_runs.files[commits[-1]] = f"{name}.json"

    def run_bisect(good, bad):
        return said(bisect.main, ["--repo", str(repo), "--good", good, "--bad", bad, "--cells", "bert_sa_lora"])

    code, lines = run_bisect("HEAD~2", "HEAD")
    assert (code, lines[-3]) == (0, f"library {commits[1]} is the first that is worse; {commits[0]} is not.")
    assert lines[-1] == f"Next: `git -C {repo} show {commits[1]}` is the change."
    code, lines = run_bisect("HEAD", "HEAD~1")
    assert (code, "HEAD is not an ancestor of HEAD~1" in lines[-1]) == (2, True)


# Environments of a package made here, by pip: what is in them names them.


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
    return get_environment([requirement], folder, alone=True)


def test_an_environment_is_named_by_what_is_in_it_and_a_wheel_that_is_built_again_is_another_one(folder):
    wheel(folder, "1.0", 1)
    first, again = made(folder), made(folder)
    assert (first, first.own) == (again, {"planted": "1.0"})
    os.utime(folder / wheel(folder, "1.0", 2), (time.time() + 9,) * 2)
    rebuilt = made(folder)
    found = [environment.run("rows.txt", ()).read_text() for environment in (rebuilt, first)]
    assert (rebuilt.folder == first.folder, found) == (False, ["2", "1"])


def test_what_pip_reads_itself_stays_and_a_folder_without_git_is_one_sentence(tmp_path):
    for spec in ("Rouge_Score>=0.1", "peft @ https://x/peft.zip", "peft @ git+https://x/peft@v1"):
        assert parse_requirement(spec) == spec
    with pytest.raises(InputError, match="cannot be read as a checkout of a library: not a git repository"):
        parse_requirement(f"peft@{tmp_path}")


def test_what_pip_reports_is_pinned_to_its_archive_or_commit():
    about = {"name": "peft", "version": "0.22.0"}
    archive = {"url": "https://x/peft-0.22.0.whl", "archive_info": {"hashes": {"sha256": "ab"}}}
    assert pinned({"metadata": about, "download_info": archive}) == "peft @ https://x/peft-0.22.0.whl#sha256=ab"
    commit = {"url": "https://x/peft", "vcs_info": {"vcs": "git", "commit_id": "0123"}, "subdirectory": "python"}
    assert pinned({"metadata": about, "download_info": commit}) == "peft @ git+https://x/peft@0123#subdirectory=python"
