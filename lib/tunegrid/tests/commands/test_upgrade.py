"""Upgrading: environments of a package made here, runs that are saved for what they hold, and once a real checkout of PEFT."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tunegrid.commands import requirements, sides, upgrade
from tunegrid.commands.environments import reason_in, suite
from tunegrid.commands.requirements import ADDED, Wanted, checkout_of, copied, source_reported, source_said, used_by
from tunegrid.commands.sides import Question, Side, changes
from tunegrid.machine import cpu_name, library_digests, versions
from tunegrid.results import examples
from tunegrid.tests.packages import repository, wheel
from tunegrid.tests.records import FIRST_STEP, MEASURED, begun, complete, hits, record_of, run_file
from tunegrid.tests.repositories import git

CELLS = ("bert_sa_lora", "gpt2_sa_lora")
GOOD, BAD = 480, 416  # rows of 512 that are right: 12.5 points between them
# Other gradients with equal losses: numerics changed, and the rows alone tell whether the score is worse.
OTHER = MEASURED["training"] | {"first_step": FIRST_STEP | {"gradients": {"layer 0 attention": 0.2, "head": 1.0}}}
STAND_IN = """
import importlib.metadata, pathlib, shutil, sys
try:
    import planted
    rows = planted.ROWS
except ImportError:
    rows = "here"
log, folder, stage, cells, out = sys.argv[1:]
with open(log, "a") as file:
    file.write(f"{rows} {stage} {cells}\\n")
shutil.copy(pathlib.Path(folder) / f"{rows}-{stage}.json", out)
"""


def whole(cell, right=GOOD, training=MEASURED["training"], **changes):
    return record_of(cell, {"accuracy": hits(512, right)}, training=training, **changes)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs of what the package holds: 1 and 2 are equal, 3 is another training of the second cell, which is worse."""
    for module in (sides, upgrade):
        monkeypatch.setattr(module, "RUNS", tmp_path / "upgrade")
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    monkeypatch.setattr(sides, "BASELINE", tmp_path / "none.json")
    monkeypatch.setattr(requirements, "used_by", lambda package: {"planted"})
    for rows in ("here", 1, 2):
        run_file(tmp_path / f"{rows}-first.json", [begun(cell) for cell in CELLS])
        run_file(tmp_path / f"{rows}-whole.json", [whole(CELLS[1])])
    run_file(tmp_path / "3-first.json", [begun(CELLS[0]), begun(CELLS[1], training=OTHER)])
    run_file(tmp_path / "3-whole.json", [whole(CELLS[1], BAD, OTHER)])
    return tmp_path


def stage_of(options):
    """Which of the saved runs these options ask for."""
    return "first" if "--first-updates" in options else "whole"


@pytest.fixture
def planned(runs):
    """A suite that copies them, and a log of what it ran."""
    log = runs / "measured.txt"

    def suite(cells, options, profile):
        stage = stage_of(options)
        return lambda python, out: [
            *(str(python), "-c", STAND_IN, str(log), str(runs), stage, ",".join(cells) or "all", str(out))
        ]

    return suite, lambda: log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def made(planned, runs, monkeypatch):
    """The same without environments: the sides are named after the package's versions."""
    _, log = planned
    before, after = (Side(python=Path(sys.executable), folder=runs / name, own={"planted": name}) for name in ("1.0", "2.0"))
    monkeypatch.setattr(upgrade, "sides", lambda options, locks: (before, after))
    rows = {"1.0": "1", "2.0": "3"}

    def suite(cells, options, profile):
        stage = stage_of(options)

        def command(python, out):
            version = out.parent.name
            with (runs / "measured.txt").open("a") as file:
                file.write(f"{version} {stage} {','.join(cells) or 'all'}\n")
            return ["cp", str(runs / f"{rows[version]}-{stage}.json"), str(out)]

        return command

    return suite, log, rows


def upgraded(capsys, suite, *arguments):
    """Exit code and lines of an upgrade."""
    try:
        code = upgrade.main([*map(str, arguments)], suite)
    except SystemExit as exit_:
        code = exit_.code
    streams = capsys.readouterr()
    return code, (streams.out + streams.err).splitlines()


def next_of(lines):
    """The way on that the answer names, which is said once."""
    [line] = [line for line in lines if line.startswith("Next: ")]
    return line.removeprefix("Next: ").removesuffix(".")


def page_of(lines):
    """The page that the command wrote."""
    [line] = [line for line in lines if line.startswith("page: ")]
    return Path(line.removeprefix("page: "))


# Whole upgrades


def test_an_upgrade_that_changes_nothing_takes_first_updates_alone_and_is_not_measured_again(runs, planned, capsys):
    suite, log = planned
    for version, rows in (("1.0", 1), ("1.1", 2)):
        wheel(runs, version, rows)
    arguments = ("planted==1.1", "--from", "planted==1.0", "--find-links", runs)
    code, lines = upgraded(capsys, suite, *arguments)
    assert (code, lines[-1]) == (0, "planted 1.0 -> 1.1: 2 cells equal")
    assert log() == ["1 first all", "2 first all"]
    page = page_of(lines)
    assert "bert_sa_lora" in page.read_text()
    assert "-after-planted-" in page.name  # another upgrade to the same side has another page
    assert upgraded(capsys, suite, *arguments)[1][-1] == lines[-1]
    assert len(log()) == 2  # all came from disk


@pytest.mark.slow
def test_a_checkout_is_tried_as_it_lies_on_the_disk_and_stays_as_it_is(runs, planned, capsys):
    suite, log = planned
    repo = repository(runs / "library", "2.0")
    (repo / "rows.txt").write_text("1")
    git(repo, "add", ".")
    git(repo, "commit", "--quiet", "-m", "one")
    git(repo, "tag", "v1.0")
    (repo / "rows.txt").write_text("3")  # not committed
    wheel(runs, "1.0", 1)
    arguments = (f"planted@{repo}", "--from", "planted==1.0", "--find-links", runs)
    code, lines = upgraded(capsys, suite, *arguments)
    assert code == 1
    [said] = [
        line for line in lines if line.startswith(f"planted 1.0 -> 2.0 of {repo}: 1 cell equal, 1 changed (gpt2_sa_lora: ")
    ]
    assert said.endswith("; accuracy -12.5, worse)")
    command = f"tunegrid bisect --repo {repo} --good v1.0 --bad HEAD --cells gpt2_sa_lora"
    assert next_of(lines) == f"`{command}` finds the commit"
    assert log() == ["1 first all", "3 first all", "1 whole gpt2_sa_lora", "3 whole gpt2_sa_lora"]
    assert git(repo, "status", "--short") == "M rows.txt"
    (runs / "new.txt").write_text(f"-e {repo}  # ours\n")
    assert "give it by itself, as in `tunegrid upgrade NAME@/" in upgraded(capsys, suite, "-r", runs / "new.txt")[1][-1]
    assert not (repo / "built-here").exists()


def test_requirements_may_say_where_packages_are_and_several_packages_are_told_apart_one_at_a_time(runs, planned, capsys):
    suite, log = planned
    wheel(runs, "1.1", 3)
    file = runs / "new.txt"
    file.write_text(f"--no-index\n--find-links {runs}\nplanted>=1\n")
    code, lines = upgraded(capsys, suite, "-r", file, "--cells", ",".join(CELLS))
    assert code == 1
    both = "bert_sa_lora,gpt2_sa_lora"
    assert log() == [f"here first {both}", f"3 first {both}", "here whole gpt2_sa_lora", "3 whole gpt2_sa_lora"]
    assert any(line.startswith("1 package on one side only: 1 cell equal, 1 changed (gpt2_sa_lora: ") for line in lines)


def test_only_cells_that_changed_train_to_their_end_on_both_sides(made, capsys):
    suite, log, _ = made
    code, lines = upgraded(capsys, suite, "planted==2.0")
    assert code == 1
    assert log() == ["1.0 first all", "2.0 first all", "1.0 whole gpt2_sa_lora", "2.0 whole gpt2_sa_lora"]
    assert next_of(lines) == "`tunegrid bisect --good planted==1.0 --bad planted==2.0 --cells gpt2_sa_lora` finds the release"
    shown = page_of(lines).read_text().replace("<code>", "`").replace("</code>", "`")
    assert next_of(lines) in shown  # in the same words
    assert lines[-1].startswith("planted 1.0 -> 2.0: 1 cell equal, 1 changed (gpt2_sa_lora: ")
    assert any(line.startswith("bert_sa_lora ") and " equal " in line for line in lines)


def test_with_whole_every_cell_trains_to_its_end_at_once(made, runs, capsys):
    suite, log, _ = made
    run_file(runs / "3-whole.json", [whole(CELLS[1])])
    code, lines = upgraded(capsys, suite, "planted==2.0", "--whole")
    assert (code, lines[-1]) == (0, "planted 1.0 -> 2.0: 1 cell equal")
    assert log() == ["1.0 whole all", "2.0 whole all"]


def broken(cell):
    return complete(cell, status="error", missed=["OSError: no room"], scores={}, bounds={}, examples=None)


OBJECTION = [{"name": "base_frozen", "passed": False, "detail": "one changed"}]
OBJECTING = begun(CELLS[1], audits=OBJECTION, missed=["audit base_frozen: one changed"])


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ([begun(CELLS[0]), broken(CELLS[1])], "1 cell equal, 1 missing (gpt2_sa_lora: broke off)"),
        (list(map(broken, CELLS)), "no cell finishes (broke off)"),
        ([begun(CELLS[0]), OBJECTING], "1 cell equal, 1 failed (gpt2_sa_lora: failed audit base_frozen)"),
        (None, "no cell runs with planted 2.0: cp: cannot stat "),  # no file: the session itself broke off
    ],
    ids=["a cell that broke off", "none that finishes", "an audit that objects", "no session"],
)
def test_cells_that_fail_after_the_upgrade_are_named_and_measured_again(made, runs, capsys, after, said):
    suite, log, rows = made
    if after:
        run_file(runs / "4-first.json", after)
    rows["2.0"] = "4"
    code, lines = upgraded(capsys, suite, "planted==2.0")
    assert (code, any(line.startswith(f"planted 1.0 -> 2.0: {said}") for line in lines)) == (1, True), lines
    if OBJECTING not in (after or []):  # which came to its end
        rows["2.0"] = "2"
        assert upgraded(capsys, suite, "planted==2.0")[1][-1] == "planted 1.0 -> 2.0: 2 cells equal"
        assert log() == ["1.0 first all", "2.0 first all", "2.0 first all"]


def test_before_the_upgrade_every_cell_must_finish(made, runs, capsys):
    suite, _, rows = made
    run_file(runs / "4-first.json", [begun(CELLS[0]), complete(CELLS[1], status="stopped", missed=["loss is nan"])])
    for saved, sentence in (
        ("4", "gpt2_sa_lora does not finish with planted 1.0, so"),
        ("none", "no cell runs with planted 1.0"),
    ):
        rows["1.0"] = saved
        code, lines = upgraded(capsys, suite, "planted==2.0")
        assert (code, sentence in lines[-1]) == (2, True)


# A run that is known


def test_a_given_run_stands_in_for_the_side_before_with_its_cells_and_seeds(runs, planned, capsys):
    suite, log = planned
    given = []

    def noted(cells, options, profile):
        given.append((tuple(cells), options))
        return suite(cells, options, profile)

    older = versions() | {"peft": "0.20.0"}
    records = [whole("bert_sa_lora", versions=older), whole("bert_sa_lora", seed=1, versions=older)]
    path = run_file(runs / "before.json", records)
    run_file(runs / "here-first.json", [begun("bert_sa_lora")])
    code, lines = upgraded(capsys, noted, "--before", path)
    assert (code, lines[-1]) == (0, f"peft 0.20.0 -> {versions()['peft']}: 1 cell equal")
    [(cells, options)] = given
    assert cells == ("bert_sa_lora",)
    assert options[-2:] == ("--seeds", "0,1")
    assert log() == ["here first bert_sa_lora"]


@pytest.mark.parametrize(
    ("changes", "arguments", "sentence"),
    [
        ({"profile": "full"}, (), "is of full: give -m full, or another run"),
        ({}, ("--cells", "t5_qa_sft"), "has no t5_qa_sft: leave it out of --cells, or leave out --before"),
        ({"rate": 1.0}, (), "trained bert_sa_lora with learning_rate 1.0, which is "),
        ({"seed": 7}, ("--", "--seeds", "0"), "has no bert_sa_lora of seed 0: give its seeds after --, or none"),
    ],
)
def test_a_given_run_of_something_else_is_one_sentence(runs, planned, capsys, changes, arguments, sentence):
    changes = dict(changes)
    record = whole("bert_sa_lora", seed=changes.pop("seed", 0))
    if rate := changes.pop("rate", None):
        record = replace(record, recipe=replace(record.recipe, learning_rate=rate))
    path = run_file(runs / "before.json", [replace(record, **changes)])
    run_file(runs / "here-first.json", [begun("bert_sa_lora")])
    code, lines = upgraded(capsys, planned[0], "--before", path, *arguments)
    assert code == 2
    assert sentence in lines[-1]


def test_the_committed_baseline_serves_where_its_libraries_and_machine_are_those_here(tmp_path, monkeypatch):
    device = MEASURED["device"] | {"name": cpu_name()}
    path = run_file(tmp_path / "baseline.json", [complete(cell, device=device) for cell in CELLS])
    monkeypatch.setattr(sides, "BASELINE", path)
    assert sides.shipped_baseline(Question(options=("-n", "0"))) == path
    assert sides.shipped_baseline(Question(cells=("t5_qa_sft",))) is None
    assert sides.shipped_baseline(Question(options=("--seeds", "3"))) is None
    assert sides.shipped_baseline(Question(profile="zoo")) is None
    for other in ({"versions": versions() | {"peft": "0"}}, {"device": MEASURED["device"]}, {"libraries": {"peft": "0" * 16}}):
        run_file(path, [complete(CELLS[0], device=device), complete(CELLS[1], **{"device": device} | other)])
        assert sides.shipped_baseline(Question()) is None
    assert complete(CELLS[0]).libraries == library_digests()


# Errors


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "say what to upgrade to, as in `tunegrid upgrade transformers==5.25`"),
        (("planted==9",), "planted==9 cannot be installed: "),  # why, is pip's word or uv's
        (("planted=9",), "planted=9 cannot be installed: "),
        (("packaging",), "nothing to upgrade: what is installed here is as packaging asks"),
        (("foreign==1.0",), "foreign: no library that the suite imports is among what would change, so no cell can tell"),
        (("planted@nowhere",), "nowhere is no checkout of a library: expected a folder with a pyproject.toml or setup.py"),
        (("-r", "nowhere.txt"), "nowhere.txt is no file of requirements"),
        (("planted==1.0", "--from", "planted==1.0"), "nothing to upgrade: planted==1.0 is what --from planted==1.0 installs"),
        (("--from", "planted==1.0", "--before", "x.json"), "x.json does not exist"),
        (("planted==1.0", "--by", "beauty"), "unknown kind of figure 'beauty'"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(runs, planned, capsys, arguments, sentence):
    for name in ("planted", "foreign"):
        wheel(runs, "1.0", 1, name)
    shutil.copy(runs / "1-first.json", runs / "given.json")
    code, lines = upgraded(capsys, planned[0], *arguments, "--find-links", runs)
    assert code == 2
    assert sentence in lines[-1]
    assert planned[1]() == []


def test_a_disk_without_room_is_one_sentence_and_leaves_no_half_an_environment(runs, planned, monkeypatch, capsys):
    wheel(runs, "1.0", 1)

    def full(self, folder):
        Path(folder).mkdir(parents=True)
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("venv.EnvBuilder.create", full)
    code, lines = upgraded(capsys, planned[0], "planted==1.0", "--find-links", runs)
    assert code == 2
    assert "planted==1.0 cannot be installed: No space left on device (" in lines[-1]
    assert lines[-1].endswith(" makes room")
    assert list((runs / "upgrade").glob("*/environment")) == []


# What pip and uv say


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ERROR: Could not find x\nERROR: No matching distribution found for x\n", "No matching distribution found for x"),
        ("error: No solution found\n  cause: Because x was not found, no.\n", "Because x was not found, no."),
        ('error: Failed to parse\n  cause: no such operator "="\n         x=9\n          ^^\n', 'no such operator "="'),
        ("fatal: not a git repository\nhint: try again\n", "not a git repository"),
        ("Segmentation fault\n", "Segmentation fault"),
        ("", ""),
    ],
)
def test_the_last_error_or_cause_is_the_reason(said, reason):
    assert reason_in(said) == reason


def test_what_pip_reports_is_what_it_installs():
    about = {"name": "peft", "version": "0.22.0"}
    index = {"metadata": about, "is_direct": False, "download_info": {"url": "https://x/peft-0.22.0.whl", "archive_info": {}}}
    commit = {"url": "https://x/peft", "vcs_info": {"vcs": "git", "commit_id": "0123", "requested_revision": "main"}}
    assert source_reported(index) == "peft==0.22.0"
    assert source_reported({"metadata": about, "is_direct": True, "download_info": commit}) == "peft @ git+https://x/peft@0123"
    inside = commit | {"subdirectory": "python"}
    assert source_reported({"metadata": about, "is_direct": True, "download_info": inside}).endswith(
        "@0123#subdirectory=python"
    )


UV_SAYS = """Using Python 3.11.7 environment at: /venv
Resolved 41 packages in 514ms
Would download 1 package
Would uninstall 1 package
Would install 2 packages
 - peft==0.21.2
 + peft==0.21.1
 + planted @ file:///tmp/co
 + other==1.0 (from git+https://x/other@0123)
"""  # by uv 0.9


def test_uv_plans_and_installs_where_it_is_on_the_path(tmp_path, monkeypatch):
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path}/asked.txt\ncat >&2 <<'END'\n{UV_SAYS}END\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    sources = requirements.changed_by(["peft==0.21.1"], Wanted(specs=["peft==0.21.1"], options=["--no-index"]))
    assert sources == ["peft==0.21.1", "planted @ file:///tmp/co", "other @ git+https://x/other@0123"]
    asked = (tmp_path / "asked.txt").read_text().split()
    assert asked[:5] == ["pip", "install", "--dry-run", "--python", sys.executable]
    assert asked[5:] == ["--upgrade-package", "peft", "--no-index", "peft==0.21.1"]
    assert [source_said(match) for line in UV_SAYS.splitlines() if (match := ADDED.fullmatch(line))] == sources


def test_what_is_asked_for_by_name_is_upgraded_and_nothing_else(tmp_path):
    used = used_by("tunegrid")
    assert {"torch", "peft", "huggingface-hub", "safetensors", "jinja2"} <= used
    assert "flask" not in used
    file = tmp_path / "new.txt"
    file.write_text("--pre\n# note\n\ntorch>=2.6  # why\nscikit-learn[a] ; python_version > '3'\n./local\nhttps://x/y.whl\n")
    wanted = Wanted(
        specs=["peft", "accelerate~=1.1", "tokenizers@../tokenizers", "../datasets", "git+https://x/z"], files=[file]
    )
    assert wanted.names == ["peft", "accelerate", "tokenizers", "torch", "scikit-learn"]
    assert wanted.places == ["--pre"]


# Checkouts


def test_a_folder_is_a_checkout_with_or_without_its_name_and_what_pip_reads_itself_is_none(tmp_path):
    (tmp_path / "setup.py").touch()
    for spec, name in (("peft@{}", "peft"), ("peft[dev] @ {}", "peft[dev]"), ("{}", "")):
        assert checkout_of(spec.format(tmp_path)) == (name, tmp_path)
    for spec in ("peft", "peft==0.22", "peft @ https://x/peft.zip", "git+https://x/peft@v1", "./peft.whl"):
        assert checkout_of(spec) == ("", None)


def test_a_copy_leaves_caches_builds_and_environments_behind(tmp_path):
    kept = ("src/build/one.py", "pyproject.toml", "data.json", ".flake8")
    left = (".cache/x", "build/y", "own/pyvenv.cfg", "src/__pycache__/z.pyc", "src.egg-info/PKG-INFO")
    for name in (*kept, *left, ".git/HEAD"):
        (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repo" / name).touch()
    copy = copied(tmp_path / "repo", tmp_path / "copy")
    assert {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()} - {".git/HEAD"} == set(kept)
    assert (copy / ".git").resolve() == tmp_path / "repo" / ".git"


# Names and commands


def side(**own):
    return Side(python=Path("python"), folder=Path(), own=own)


def test_changes_name_the_suites_libraries_first_and_of_several_packages_each_is_upgraded_by_itself():
    before = side(peft="0.20", safetensors="0.6", torch="2.12", triton="3")
    after = side(peft="0.21", safetensors="0.7", torch="2.13")
    assert changes(before, after) == "torch 2.12 -> 2.13, peft 0.20 -> 0.21, safetensors 0.6 -> 0.7 and 1 more"
    assert changes(side(peft="0.20"), side(peft="0.20")) == ""
    options = upgrade.parsed(["peft==0.21", "accelerate"])[1]
    before, after = side(peft="0.20", accelerate="1.1", numpy="1"), side(peft="0.21", accelerate="1.2", numpy="2")
    assert upgrade.way_on(before, after, ["a", "b"], options) == (
        "`tunegrid upgrade peft==0.21 --cells a,b` and `tunegrid upgrade accelerate==1.2 --cells a,b` tell which of them it was"
    )
    assert upgrade.way_on(side(peft="0.21"), side(peft="0.20"), ["a"], upgrade.parsed(["peft==0.20"])[1]) == ""


def test_the_suite_runs_the_cells_of_a_profile_with_the_users_options_last():
    command = Question(profile="quick", options=("-n", "0"), suite=suite).command(["bert_sa_lora"], ("--first-updates",))
    assert command(Path("env/python"), Path("out.json")) == [
        *("env/python", "-m", "pytest", "-q", "-m", "quick", "--cells", "bert_sa_lora"),
        *("--resume", "-n", "auto", "--first-updates", "-n", "0", "--benchmark-json=out.json"),
    ]
    assert "auto" not in Question(profile="full", suite=suite).command([], ())(Path("p"), Path("o"))
