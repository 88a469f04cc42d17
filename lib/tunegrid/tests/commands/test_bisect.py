"""Bisecting, by runs that are saved for each version or commit."""

from types import SimpleNamespace

import pytest

from tunegrid.commands import bisect
from tunegrid.tests.packages import git, wheel
from tunegrid.tests.records import MEASURED, get_record, hits, run_file

EIGHT = [f"1.{minor}" for minor in range(8)]
# Rows of 512; 12.5 points between the first two
RIGHT = {"good": 480, "worse": 416, "doubtful": 471}
# One release has other losses, so it is another training run. No noise was calibrated, and one seed
# per side tells nothing.
OTHER = MEASURED["training"] | {"losses": [0.9, 0.8]}
ENDS = ["--good", "planted==1.0", "--bad", "planted==1.7", "--cells", "bert_sa_lora"]


@pytest.fixture
def bisected(saved_runs, said):
    """Exit code and lines of a bisection of versions 1.0 to 1.7, which are worse from one on, but
    for the `others`.
    """
    for name, right in RIGHT.items():
        training = OTHER if name == "doubtful" else MEASURED["training"]
        record = get_record("bert_sa_lora", {"accuracy": hits(512, right)}, training=training)
        run_file(saved_runs.folder / f"{name}.json", [record])

    def call(first_worse, others, *options):
        saved_runs.files |= {
            version: "worse.json" if version >= first_worse else "good.json" for version in EIGHT
        }
        saved_runs.files |= {version: f"{name}.json" for version, name in others.items()}
        return said(bisect.main, [*ENDS, "--versions", ",".join(EIGHT), *options])

    return call


@pytest.mark.parametrize(
    ("first_worse", "others", "steps", "answer"),
    [
        ("1.1", {}, "421", "planted 1.1 is the first that is worse; 1.0 is not."),
        ("1.5", {}, "465", "planted 1.5 is the first that is worse; 1.4 is not."),
        ("1.7", {}, "46", "planted 1.7 is the first that is worse; 1.6 is not."),
        # what cannot be told or does not finish is skipped: away from the change that costs a step
        # more
        ("1.6", {"1.4": "none"}, "4365", "planted 1.6 is the first that is worse; 1.5 is not."),
        (
            "1.4",
            {"1.4": "none", "1.3": "doubtful"},
            "4352",
            "planted became worse after 1.2: with 1.5, or with one that was skipped: 1.3, 1.4.",
        ),
    ],
)
def test_versions_between_the_ends_are_halved(
    saved_runs, bisected, first_worse, others, steps, answer
):
    code, lines = bisected(first_worse, others, "--", "--seeds", "0-2")
    assert code == ("skipped" in answer)
    assert lines[-3] == answer
    assert lines[0] == "planted: 8 versions, at most 3 steps after the two ends"
    tries = [line for line in lines if line.startswith("tries")]
    assert tries[0] == "tries 1.4; at most 3 steps left"
    skips = [line for line in lines if line.startswith("skips")]
    assert len(skips) == len(others)
    tried = [("1.0", "whole"), ("1.0", "again"), ("1.7", "whole")]
    tried += [(f"1.{step}", "whole") for step in steps]
    assert saved_runs.stages == tried
    first, again, *_ = saved_runs.asked
    assert first[2] == "-m quick --cells bert_sa_lora --resume -n auto --seeds 0-2"
    assert again[2] == "-m quick --cells bert_sa_lora -n auto --seeds 0-2"


@pytest.mark.parametrize(
    ("options", "others", "sentence"),
    [
        (
            ["--gate-on", "memory"],
            {},
            "nothing to find: 1.7 is not worse than 1.0 by memory (1 cell, numerics: ",
        ),
        ([], {"1.7": "good"}, "nothing to find: 1.7 is not worse than 1.0 by quality and memory"),
        ([], {"1.0": "none"}, "no cell runs with planted 1.0"),
        (
            [],
            {("1.0", "again"): "worse"},
            "1.0 is called worse than itself, so there is nothing to bisect: worse: bert",
        ),
        (["--versions", "new"], {}, "Invalid version: 'new'; give versions of planted as"),
        (["--good", "planted==1.8"], {}, "planted 1.8 is not older than 1.7"),
        (["--cells", "bert_sa_lora,t5_sa_lora"], {}, "t5_sa_lora does not finish with planted 1.0"),
    ],
)
def test_ends_that_cannot_be_bisected_are_one_sentence(bisected, options, others, sentence):
    code, lines = bisected("1.4", others, *options)
    assert code == 2, lines
    assert sentence in lines[-1], lines


def test_releases_are_those_between_the_ends_in_the_order_of_versions(tmp_path, said):
    for version in ("1.11", "1.10.0", "1.9", "1.8", "1.7"):
        wheel(tmp_path, version, 1)
    options = SimpleNamespace(
        good="Planted==1.8.0", bad="planted==1.10", find_links=tmp_path, versions=None
    )
    assert bisect.releases(options) == ("planted", ["1.8", "1.9", "1.10.0"])
    code, lines = said(
        bisect.main,
        ["--good=p==1", "--bad=p==2", "--cells=bert_sa_lora", f"--find-links={tmp_path}"],
    )
    assert code == 2
    assert (
        "the releases of p cannot be listed (give them with --versions A,B,C): Because p "
        in lines[-1]
    )


@pytest.mark.usefixtures("bisected")
def test_the_commit_of_a_checkout_is_named(tmp_path, saved_runs, said):
    repo = tmp_path / "library"
    commits = []
    git(tmp_path, "init", "--quiet", repo)
    for name in ("good", "worse", "worse"):
        git(repo, "commit", "--quiet", "--allow-empty", "-m", name)
        commits.append(git(repo, "rev-parse", "--short", "HEAD"))
        saved_runs.files[commits[-1]] = f"{name}.json"

    def run_bisect(good, bad):
        return said(
            bisect.main,
            ["--repo", str(repo), "--good", good, "--bad", bad, "--cells", "bert_sa_lora"],
        )

    code, lines = run_bisect("HEAD~2", "HEAD")
    assert code == 0
    assert lines[-3] == f"library {commits[1]} is the first that is worse; {commits[0]} is not."
    assert lines[-1] == f"Next: `git -C {repo} show {commits[1]}` is the change."
    code, lines = run_bisect("HEAD", "HEAD~1")
    assert code == 2
    assert "HEAD is not an ancestor of HEAD~1" in lines[-1]
