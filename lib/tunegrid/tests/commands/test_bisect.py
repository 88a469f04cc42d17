"""Bisecting: the search by hand-worked cases, and whole bisections of a package made here, whose fifth release is worse."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

from tunegrid.commands import bisect, environments
from tunegrid.commands.bisect import bisection, releases
from tunegrid.commands.environments import Environment
from tunegrid.results import examples
from tunegrid.tests.outputs import refusal
from tunegrid.tests.packages import repository, wheel
from tunegrid.tests.records import MEASURED, begun, hits, record_of, run_file
from tunegrid.tests.repositories import git

GOOD, BAD = 480, 416  # rows of 512 that are right: 12.5 points between them
EIGHT = [f"1.{minor}" for minor in range(8)]

# The search


def searched(versions, first_bad, broken=()):
    """What is learned, and the questions with the steps left that were announced."""
    probed = []

    def is_worse(version, steps_left):
        probed.append((version, steps_left))
        return None if version in broken else versions.index(version) >= versions.index(first_bad)

    return bisection(versions, is_worse), probed


@pytest.mark.parametrize(
    ("versions", "first_bad", "broken", "found", "steps"),
    [
        (EIGHT, "1.5", [], ("1.4", "1.5", ()), [("1.4", 3), ("1.6", 2), ("1.5", 1)]),
        (["1.0", "1.1"], "1.1", [], ("1.0", "1.1", ()), []),
        # a skipped one away from the change costs a step more, and those at the change are named
        (EIGHT, "1.6", ["1.4"], ("1.5", "1.6", ()), [("1.4", 3), ("1.3", 3), ("1.6", 2), ("1.5", 1)]),
        (EIGHT, "1.4", ["1.3", "1.4"], ("1.2", "1.5", ("1.3", "1.4")), None),
        (EIGHT, "1.4", EIGHT[1:-1], ("1.0", "1.7", tuple(EIGHT[1:-1])), None),
    ],
)
def test_versions_between_the_ends_are_halved(versions, first_bad, broken, found, steps):
    result, probed = searched(versions, first_bad, broken)
    assert (result.last_good, result.first_bad, result.skipped) == found
    assert steps is None or probed == steps


@pytest.mark.parametrize("first_bad", EIGHT[1:])
def test_every_first_bad_one_of_eight_takes_at_most_three_steps(first_bad):
    result, probed = searched(EIGHT, first_bad)
    assert (result.first_bad, result.last_good) == (first_bad, EIGHT[EIGHT.index(first_bad) - 1])
    assert len(probed) <= 3
    assert len(probed) <= probed[0][1]


# Releases and their order


def test_releases_are_in_the_order_of_versions_and_spelled_as_listed(tmp_path):
    assert releases("p", "5.9", "5.20", None, ["5.10.0", "5.9.0", "5.20.0", "5.8.1"]) == ["5.9.0", "5.10.0", "5.20.0"]
    for version in ("1.10", "1.9", "1.8"):
        wheel(tmp_path, version, 1)
    assert releases("planted", "1.8", "1.10", tmp_path) == ["1.8", "1.9", "1.10"]
    import_module("setuptools")  # which fails in a process that asked its hook where pip is


@pytest.mark.parametrize(
    ("good", "bad", "sentence"),
    [
        ("p==1.1", "p==1.0", "p 1.1 is not older than 1.0: give the older release as --good"),
        ("p==1.0", "q==1.1", "give two releases of one package"),
        ("p", "p", "give two releases of one package"),
        ("p==1.0", "p==new", "give two releases of one package"),
        ("../../../p==1.0", "../../../p==1.1", "give two releases of one package"),
        ("--target==1.0", "--target==1.1", "give two releases of one package"),
    ],
)
def test_ends_that_are_none_are_one_sentence(good, bad, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path)
    arguments = (f"--good={good}", f"--bad={bad}", "--cells", "bert_sa_lora", "--versions", "1.0")
    assert sentence in refusal(capsys, bisect.main, *arguments)
    assert list(tmp_path.iterdir()) == []


# Whole bisections


STAND_IN = """
import importlib.metadata, pathlib, shutil, sys
import planted, packaging  # one is this environment's own, the other is shared
log, folder, out = map(pathlib.Path, sys.argv[1:])
with log.open("a") as file:
    file.write(importlib.metadata.version("planted") + "\\n")
shutil.copy(folder / f"{planted.ROWS}.json", out)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A command in place of the suite, which copies a run saved for what the installed version holds; and its log."""
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    for right in (GOOD, BAD):
        run_file(tmp_path / f"{right}.json", [record_of("bert_sa_lora", {"accuracy": hits(512, right)})])
    log = tmp_path / "measured.txt"
    return lambda python, out: [str(python), "-c", STAND_IN, str(log), str(tmp_path), str(out)], log


@pytest.fixture
def saved(tmp_path, stand_in, monkeypatch):
    """A command that needs no environment: it copies the run that is saved for each version; and what is saved."""

    def environment_with(requirements, wheels, alone):
        return Environment(python=Path(sys.executable), folder=tmp_path / "environments" / requirements[0].partition("==")[2])

    monkeypatch.setattr(environments, "environment_with", environment_with)
    rows = {"1.0": GOOD, "1.0 again": GOOD, "1.1": GOOD, "1.7": BAD}

    def command(_, out):
        version = out.parent.name + (" again" if out.name.startswith("again") else "")
        return ["cp", str(tmp_path / f"{rows[version]}.json"), str(out)]

    return command, rows


def bisected(capsys, command, *options, good="planted==1.0", bad="planted==1.7"):
    """Exit code and lines of a bisection."""
    try:
        code = bisect.main(["--good", good, "--bad", bad, "--cells", "bert_sa_lora", *map(str, options)], lambda *_: command)
    except SystemExit as exit_:
        code = exit_.code
    streams = capsys.readouterr()
    return code, (streams.out + streams.err).splitlines()


def test_a_stopped_bisection_goes_on_where_it_was(saved, capsys):
    command, _ = saved
    measured = []

    def stopped(python, out):
        if out.parent.name == "1.1" and measured.count(out.parent.name) == 0:
            measured.append("1.1")
            raise KeyboardInterrupt
        measured.append(f"{out.parent.name} {out.stem.partition('-')[0]}")
        return command(python, out)

    code, lines = bisected(capsys, stopped, "--versions", "1.1")
    assert (code, lines[-1].split(";")[0]) == (130, "stopped")
    code, lines = bisected(capsys, stopped, "--versions", "1.1")
    assert (code, lines[-3]) == (0, "planted 1.7 is the first that is worse; 1.1 is not.")
    assert measured == ["1.0 run", "1.0 again", "1.7 run", "1.1", "1.1 run"]


def test_versions_that_the_gate_cannot_tell_or_that_do_not_finish_are_skipped_and_named(tmp_path, saved, capsys):
    """The losses of one are others, so it is another training: no noise was calibrated, and one seed a side tells nothing."""
    command, rows = saved
    training = MEASURED["training"] | {"losses": [0.9, 0.8]}
    run_file(tmp_path / "other.json", [record_of("bert_sa_lora", {"accuracy": hits(512, GOOD - 9)}, training=training)])
    rows |= {"1.1": "other", "1.2": "none"}  # of which no run is saved
    code, lines = bisected(capsys, command, "--versions", "1.1,1.2")
    assert (code, lines[-3]) == (1, "planted became worse after 1.0: with 1.7, or with one that was skipped: 1.1, 1.2.")
    assert lines[-1] == "Next: the same command tries what was skipped again."
    [unfinished, doubtful] = [line for line in lines if line.startswith("skips")]
    assert unfinished.startswith("skips 1.2: no cell runs with the libraries here: cp: cannot stat ")
    assert doubtful.startswith("skips 1.1: cannot tell: bert_sa_lora accuracy -1.76 points (no noise was calibrated, ")


@pytest.mark.parametrize(
    ("right", "options", "kinds"),
    [(GOOD, (), "quality and memory"), (BAD, ("--by", "memory"), "memory"), (GOOD, ("--by", "numerics"), "numerics")],
)
def test_a_bad_end_that_is_not_worse_by_what_was_asked_for_is_one_sentence(tmp_path, saved, capsys, right, options, kinds):
    command, rows = saved
    training = MEASURED["training"] | {"seconds": 99.0}  # as of another run: its records are not the good end's
    run_file(tmp_path / "later.json", [record_of("bert_sa_lora", {"accuracy": hits(512, right)}, training=training)])
    rows["1.7"] = "later"
    code, lines = bisected(capsys, command, "--versions", "1.1", *options)
    assert (code, [line for line in lines if "usage" in line]) == (1, [])
    assert lines[-1].startswith(f"nothing to find: by {kinds} 1.7 is not worse than 1.0 (1 cell, numerics: 1 ")


def test_a_good_end_that_is_worse_than_itself_is_one_sentence(saved, capsys):
    command, rows = saved
    rows["1.0 again"] = BAD
    code, lines = bisected(capsys, command, "--versions", "1.1")
    assert code == 2
    assert "1.0 is called worse than itself, so nothing can be told: worse: bert_sa_lora accuracy" in lines[-1]


def test_releases_that_cannot_be_listed_are_one_sentence(tmp_path, stand_in, capsys):
    code, lines = bisected(capsys, stand_in[0], "--find-links", tmp_path)
    assert code == 2
    assert "the releases of planted cannot be listed (give them with --versions A,B,C): No matching" in lines[-1]


# First updates


@pytest.fixture
def early(tmp_path, saved):  # of which it takes the environments that are none
    """A suite by whose first updates 1.4 and later are another training, and by whole runs, too; and the stages it ran."""
    other = MEASURED["training"] | {"losses": [0.9, 0.8]}
    for name, training in (("same", MEASURED["training"]), ("other", other)):
        run_file(tmp_path / f"first-{name}.json", [begun(losses=training["losses"])])
        run_file(tmp_path / f"whole-{name}.json", [record_of("bert_sa_lora", {"accuracy": hits(512, GOOD)}, training=training)])
    stages, seen_early = [], [True]

    def suite(cells, options, profile):
        stage = "first" if "--first-updates" in options else "whole"

        def command(_, out):
            stages.append(f"{out.parent.name} {stage}")
            changed = EIGHT.index(out.parent.name) >= 4 and (stage == "whole" or seen_early[0])
            return ["cp", str(tmp_path / f"{stage}-{'other' if changed else 'same'}.json"), str(out)]

        return command

    return suite, stages, seen_early


def by(suite, kinds, capsys):
    ends = ("--good", "planted==1.0", "--bad", "planted==1.7", "--versions", ",".join(EIGHT))
    code = bisect.main([*ends, "--cells", "bert_sa_lora", "--by", kinds], suite)
    return code, capsys.readouterr().out.splitlines()


def test_by_numerics_alone_first_updates_tell_the_release(early, capsys):
    suite, stages, _ = early
    code, lines = by(suite, "numerics", capsys)
    assert (code, lines[-3]) == (0, "planted 1.4 is the first that is worse; 1.3 is not.")
    assert lines[0] == "planted: 8 versions, at most 3 steps after the two ends"
    tried = [line for line in lines if line.startswith("tries")]
    assert tried == [f"tries {step} left" for step in ("1.4; at most 3 steps", "1.2; at most 2 steps", "1.3; at most 1 step")]
    assert lines[-1].startswith("Next: the release notes of planted 1.4 say what changed; ")
    assert by(suite, "numerics", capsys)[1][-3:] == lines[-3:]  # all came from disk
    assert stages == [f"{version} first" for version in ("1.0", "1.0", "1.7", "1.4", "1.2", "1.3")]


def test_where_first_updates_do_not_tell_the_ends_apart_whole_runs_do(early, capsys):
    suite, stages, seen_early = early
    seen_early[0] = False
    code, lines = by(suite, "numerics", capsys)
    assert (code, lines[-3]) == (0, "planted 1.4 is the first that is worse; 1.3 is not.")
    assert any(line.startswith("nothing to find in first updates: by numerics 1.7 is not worse than 1.0 ") for line in lines)
    assert stages[:4] == ["1.0 first", "1.0 first", "1.7 first", "1.0 whole"]
    assert not any(stage.endswith("first") for stage in stages[3:])


def test_where_scores_count_every_cell_trains_to_its_end(early, capsys):
    suite, stages, _ = early
    code, _ = by(suite, "quality,numerics", capsys)
    assert code == 0
    assert {stage.split()[1] for stage in stages} == {"whole"}


@pytest.mark.slow
def test_the_commit_of_a_checkout_is_named(tmp_path, stand_in, capsys):
    command, log = stand_in
    repo, commits = repository(tmp_path / "library", "1.0"), []
    for rows in (GOOD, BAD, BAD):
        (repo / "rows.txt").write_text(str(rows))
        git(repo, "add", ".")
        git(repo, "commit", "--quiet", "--allow-empty", "-m", f"{rows}")
        commits.append(git(repo, "rev-parse", "--short", "HEAD"))
    (repo / "rows.txt").write_text("12")  # what is not committed is neither tried nor touched
    code, lines = bisected(capsys, command, "--repo", repo, "--find-links", tmp_path, good="HEAD~2", bad="HEAD")
    assert (code, lines[-3]) == (0, f"library {commits[1]} is the first that is worse; {commits[0]} is not.")
    assert lines[-1] == f"Next: `git -C {repo} show {commits[1]}` is the change."
    assert len(log.read_text().split()) == 3  # the good end twice and the bad end, which holds what the step does
    assert git(repo, "status", "--short", "-uno") == "M rows.txt"
    assert git(repo, "worktree", "list").count("\n") == 0
    code, lines = bisected(capsys, command, "--repo", repo, good="HEAD", bad="HEAD~1")
    assert (code, "HEAD is not an ancestor of HEAD~1" in lines[-1]) == (2, True)


def test_the_suite_runs_the_cells_with_pytests_own_options():
    command = environments.suite(["t5_qa_lora", "bert_sa_sft"], ["--seeds", "0-2"])
    assert command(Path("env/bin/python"), Path("out.part")) == [
        *("env/bin/python", "-m", "pytest", "-q", "-m", "quick", "--cells", "t5_qa_lora,bert_sa_sft"),
        *("--seeds", "0-2", "--benchmark-json=out.part"),
    ]
