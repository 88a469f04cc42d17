"""Bisecting, by runs that are saved for each version or commit."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tunegrid import __main__ as command
from tunegrid.commands import bisect
from tunegrid.tests.outputs import refusal
from tunegrid.tests.packages import git, wheel
from tunegrid.tests.records import MEASURED, get_record, hits

VERSIONS = [f"1.{minor}" for minor in range(8)]
LINE = "bisect --good planted==1.0 --bad planted==1.7 --cells bert_sa_lora"
LINE += f" --versions {','.join(VERSIONS)}"


def get_run(right, training=MEASURED["training"]):
    """A run with so many of 512 rows right."""
    return [get_record("bert_sa_lora", {"accuracy": hits(512, right)}, training=training)]


@pytest.fixture
def save_runs(saved_runs):
    """Saves a run for each version: "good", "worse", "doubtful" or None for no run."""
    # Other losses make it another training run. No noise was calibrated, and one seed per side
    # tells nothing.
    other_training = MEASURED["training"] | {"losses": [0.9, 0.8]}
    records = {
        "good": get_run(480),
        "worse": get_run(416),  # by 12.5 points
        "doubtful": get_run(471, other_training),
    }

    def save(runs):
        for version, name in runs.items():
            if name:
                saved_runs.add(version, records[name])

    return save


def eight_runs(first_worse, changes):
    """The names of the versions' runs, which are worse from one version on, except for changes."""
    runs = {}
    for version in VERSIONS:
        runs[version] = "worse" if version >= first_worse else "good"
    return runs | changes


@pytest.mark.parametrize(
    ("first_worse", "changes", "minors_tried", "answer"),
    [
        ("1.1", {}, "421", "planted 1.1 is the first that is worse; 1.0 is not."),
        ("1.5", {}, "465", "planted 1.5 is the first that is worse; 1.4 is not."),
        ("1.7", {}, "46", "planted 1.7 is the first that is worse; 1.6 is not."),
        # A version that cannot be judged or does not finish is skipped: away from the change, that
        # costs a step more.
        ("1.6", {"1.4": None}, "4365", "planted 1.6 is the first that is worse; 1.5 is not."),
        (
            "1.4",
            {"1.4": None, "1.3": "doubtful"},
            "4352",
            "planted became worse after 1.2: with 1.5, or with one that was skipped: 1.3, 1.4.",
        ),
    ],
)
def test_versions_between_the_ends_are_halved(
    saved_runs, save_runs, run_command, first_worse, changes, minors_tried, answer
):
    save_runs(eight_runs(first_worse, changes))
    code, lines = run_command(f"{LINE} -- --seeds 0-2")
    assert code == ("skipped" in answer)
    assert lines[-3] == answer
    assert lines[0] == "planted: 8 versions, at most 3 steps after the two ends"
    tries = [line for line in lines if line.startswith("tries")]
    assert tries[0] == "tries 1.4; at most 3 steps left"
    skips = [line for line in lines if line.startswith("skips")]
    assert len(skips) == len(changes)
    whole = "whole: -m quick --cells bert_sa_lora --resume -n auto --seeds 0-2"
    again = "again: -m quick --cells bert_sa_lora -n auto --seeds 0-2"
    assert saved_runs.sessions == [
        f"1.0 {whole}",
        f"1.0 {again}",
        f"1.7 {whole}",
        *(f"1.{minor} {whole}" for minor in minors_tried),
    ]


@pytest.mark.parametrize(
    ("options", "changes", "sentence"),
    [
        (
            "--gate-on memory",
            {},
            "nothing to find: 1.7 is not worse than 1.0 by memory (1 cell, numerics: ",
        ),
        ("", {"1.7": "good"}, "nothing to find: 1.7 is not worse than 1.0 by quality and memory"),
        ("", {"1.0": None}, "no cell runs with planted 1.0"),
        (
            "",
            {"1.0 again": "worse"},
            "1.0 is called worse than itself, so there is nothing to bisect: worse: bert",
        ),
        ("--versions new", {}, "Invalid version: 'new'; give versions of planted as"),
        ("--good planted==1.8", {}, "planted 1.8 is not older than 1.7"),
        ("--cells bert_sa_lora,t5_sa_lora", {}, "t5_sa_lora does not finish with planted 1.0"),
    ],
)
def test_ends_that_cannot_be_bisected_are_one_sentence(
    capsys, save_runs, options, changes, sentence
):
    save_runs(eight_runs("1.4", changes))
    assert sentence in refusal(capsys, command.main, *LINE.split(), *options.split())


def test_releases_are_those_between_the_ends_in_the_order_of_versions(tmp_path, capsys):
    for version in ("1.11", "1.10.0", "1.9", "1.8", "1.7"):
        wheel(tmp_path, version, 1)
    options = SimpleNamespace(
        good="Planted==1.8.0", bad="planted==1.10", find_links=tmp_path, versions=None
    )
    assert bisect.releases(options) == ("planted", ["1.8", "1.9", "1.10.0"])
    line = "bisect --good=p==1 --bad=p==2 --cells=bert_sa_lora --find-links=."
    sentence = "the releases of p cannot be listed (give them with --versions A,B,C): Because p "
    assert sentence in refusal(capsys, command.main, *line.split())


def test_the_commit_of_a_checkout_is_named(save_runs, run_command):
    repo = Path("library").absolute()
    git(".", "init", "--quiet", repo)
    commits = []
    for name in ("good", "worse", "worse"):
        git(repo, "commit", "--quiet", "--allow-empty", "-m", name)
        commits.append(git(repo, "rev-parse", "--short", "HEAD"))
        save_runs({commits[-1]: name})
    line = "bisect --repo library --cells bert_sa_lora"
    code, lines = run_command(f"{line} --good=HEAD~2 --bad=HEAD")
    assert code == 0
    assert lines[-3] == f"library {commits[1]} is the first that is worse; {commits[0]} is not."
    assert lines[-1] == f"Next: `git -C {repo} show {commits[1]}` is the change."
    code, lines = run_command(f"{line} --good=HEAD --bad=HEAD~1")
    assert code == 2
    assert "HEAD is not an ancestor of HEAD~1" in lines[-1]
