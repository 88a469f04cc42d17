"""Upgrading: environments of a package made here, runs that are saved for what they hold, and once a real checkout of PEFT."""

import inspect
import json
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
from tunegrid.libraries import import_folder, library_digests
from tunegrid.machine import cpu_name, versions
from tunegrid.results import examples
from tunegrid.tests import packages
from tunegrid.tests.packages import PYPROJECT, wheel
from tunegrid.tests.records import FIRST_STEP, MEASURED, complete, hits, record_of, run_file
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


def begun(cell, training=MEASURED["training"], **changes):
    """A cell that made its first updates alone."""
    parts = {"scores": {}, "bounds": {}, "evaluation": None, "examples": None, "status": "begun", "first_updates": 2}
    return complete(cell, training=training, **parts | changes)


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
    run_file(tmp_path / "3-first.json", [begun(CELLS[0]), begun(CELLS[1], OTHER)])
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
    repo = runs / "library"
    repo.mkdir()
    git(repo, "init", "--quiet")
    backend = BACKEND.replace("VERSION", "2.0")
    (repo / "backend.py").write_text(backend)
    (repo / "pyproject.toml").write_text(PYPROJECT.format(name="planted", version="2.0"))
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
    (repo / "rows.txt").write_text("2")
    assert upgraded(capsys, suite, *arguments)[1][-1] == f"planted 1.0 -> 2.0 of {repo}: 2 cells equal"
    (runs / "new.txt").write_text(f"-e {repo}  # ours\n")
    assert "give it by itself, as in `tunegrid upgrade NAME@/" in upgraded(capsys, suite, "-r", runs / "new.txt")[1][-1]
    assert not (repo / "built-here").exists()


BACKEND = f"""
from zipfile import ZipFile
from pathlib import Path

{inspect.getsource(wheel)}

def build_wheel(folder, config_settings=None, metadata_directory=None):
    Path("built-here").touch()  # as builds write into their folder
    return wheel(folder, "VERSION", int(Path("rows.txt").read_text()))
"""


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
    assert next_of(lines) in page_of(lines).read_text()  # in the same words
    assert lines[-1].startswith("planted 1.0 -> 2.0: 1 cell equal, 1 changed (gpt2_sa_lora: ")
    assert any(line.startswith("bert_sa_lora ") and " equal " in line for line in lines)


def test_this_environments_first_updates_are_measured_once_whatever_they_are_compared_with(runs, monkeypatch, capsys):
    """It is the side after for --from; cells that changed train to their end on both sides."""
    here = Side(python=Path(sys.executable), folder=runs / "here")
    older = {name: Side(python=Path(sys.executable), folder=runs / name, own={"planted": name}) for name in ("1.0", "0.9")}
    monkeypatch.setattr(upgrade, "sides", lambda options, locks: (older[options.origin[0]], here))
    run_file(runs / "0.9-first.json", [begun(CELLS[0]), begun(CELLS[1], OTHER)])
    run_file(runs / "0.9-whole.json", [whole(CELLS[1], BAD, OTHER)])
    for stage in ("first", "whole"):
        shutil.copy(runs / f"1-{stage}.json", runs / f"1.0-{stage}.json")
    given = []

    def noted(cells, options, profile):
        stage = stage_of(options)

        def command(python, out):
            given.append(f"{out.parent.name} {stage} {','.join(cells) or 'all'}")
            return ["cp", str(runs / f"{out.parent.name}-{stage}.json"), str(out)]

        return command

    code, lines = upgraded(capsys, noted, "--from", "1.0")
    assert (code, lines[-1].rpartition(": ")[2]) == (0, "2 cells equal")
    code, lines = upgraded(capsys, noted, "--from", "0.9")
    assert code == 0
    assert lines[-1].endswith("; accuracy +12.5, better)")
    assert given == ["1.0 first all", "here first all", "0.9 first all", "0.9 whole gpt2_sa_lora", "here whole gpt2_sa_lora"]


def test_with_whole_every_cell_trains_to_its_end_at_once(made, runs, capsys):
    suite, log, _ = made
    run_file(runs / "3-whole.json", [whole(CELLS[1])])
    code, lines = upgraded(capsys, suite, "planted==2.0", "--whole")
    assert (code, lines[-1]) == (0, "planted 1.0 -> 2.0: 1 cell equal")
    assert log() == ["1.0 whole all", "2.0 whole all"]


def test_what_is_not_worse_but_changed_offers_to_bisect_by_numerics_where_these_count(made, runs, capsys):
    suite, _, _ = made
    run_file(runs / "3-whole.json", [whole(CELLS[1], GOOD, OTHER)])
    code, lines = upgraded(capsys, suite, "planted==2.0", "--by", "numerics", "--", "--seeds", "0")
    assert code == 1
    command = "tunegrid bisect --good planted==1.0 --bad planted==2.0 --cells gpt2_sa_lora --by numerics -- --seeds 0"
    assert next_of(lines) == f"`{command}` finds the release"


def test_a_stopped_upgrade_goes_on_where_it_was(made, capsys):
    suite, log, _ = made
    stops = [True]

    def stopped(cells, options, profile):
        command = suite(cells, options, profile)

        def once(python, out):
            if out.parent.name == "2.0" and stops.pop() if stops else False:
                raise KeyboardInterrupt
            return command(python, out)

        return once

    code, lines = upgraded(capsys, stopped, "planted==2.0")
    assert (code, lines[-1].split(";")[0]) == (130, "stopped")
    assert upgraded(capsys, stopped, "planted==2.0")[0] == 1
    assert log() == ["1.0 first all", "2.0 first all", "1.0 whole gpt2_sa_lora", "2.0 whole gpt2_sa_lora"]


def test_a_run_with_a_cell_that_did_not_finish_is_measured_again(made, runs, capsys):
    suite, log, rows = made
    broken = complete(CELLS[1], status="error", missed=["OSError: no room"], scores={}, bounds={}, examples=None)
    run_file(runs / "4-first.json", [begun(CELLS[0]), broken])
    rows["2.0"] = "4"
    code, lines = upgraded(capsys, suite, "planted==2.0")
    assert code == 1
    assert "planted 1.0 -> 2.0: 1 cell equal, 1 missing (gpt2_sa_lora: broke off)" in lines
    rows["2.0"] = "2"
    assert upgraded(capsys, suite, "planted==2.0")[1][-1] == "planted 1.0 -> 2.0: 2 cells equal"
    assert log() == ["1.0 first all", "2.0 first all", "2.0 first all"]


def test_an_upgrade_with_which_no_cell_finishes_is_worse(made, runs, capsys):
    suite, _, rows = made
    broken = [
        complete(cell, status="error", missed=["ImportError: no name"], scores={}, bounds={}, examples=None) for cell in CELLS
    ]
    run_file(runs / "4-first.json", broken)
    rows["2.0"] = "4"
    code, lines = upgraded(capsys, suite, "planted==2.0")
    assert (code, lines[-1]) == (1, "planted 1.0 -> 2.0: no cell finishes (broke off)")
    rows["2.0"] = "none"  # no file: the session itself broke off
    code, lines = upgraded(capsys, suite, "planted==2.0")
    assert code == 1
    assert lines[-1].startswith("planted 1.0 -> 2.0: no cell runs with planted 2.0: cp: cannot stat ")


def test_an_audit_that_objects_after_the_upgrade_is_named_though_all_figures_are_equal(made, runs, capsys):
    suite, _, rows = made
    audits = [{"name": "base_frozen", "passed": False, "detail": "one changed"}]
    objecting = begun(CELLS[1], audits=audits, missed=["audit base_frozen: one changed"])
    run_file(runs / "4-first.json", [begun(CELLS[0]), objecting])
    rows["2.0"] = "4"
    code, lines = upgraded(capsys, suite, "planted==2.0")
    assert code == 1
    assert "planted 1.0 -> 2.0: 1 cell equal, 1 failed (gpt2_sa_lora: failed audit base_frozen)" in lines


def test_before_the_upgrade_every_cell_must_finish(made, runs, capsys):
    suite, _, rows = made
    run_file(runs / "4-first.json", [begun(CELLS[0]), complete(CELLS[1], status="stopped", missed=["loss is nan"])])
    rows["1.0"] = "4"
    code, lines = upgraded(capsys, suite, "planted==2.0")
    assert code == 2
    assert "gpt2_sa_lora does not finish with planted 1.0, so nothing can be told (" in lines[-1]
    assert lines[-1].endswith("): loss is nan")
    rows["1.0"] = "none"
    code, lines = upgraded(capsys, suite, "planted==2.0")
    assert (code, "no cell runs with planted 1.0: cp: cannot stat " in lines[-1]) == (2, True)


# A run that is known


def test_with_a_whole_run_to_judge_by_only_what_changed_trains_to_its_end(runs, planned, capsys):
    suite, log = planned
    path = run_file(runs / "before.json", [whole(cell) for cell in CELLS])
    run_file(runs / "here-first.json", [begun(CELLS[0]), begun(CELLS[1], OTHER)])
    run_file(runs / "here-whole.json", [whole(CELLS[1], BAD, OTHER)])
    code, lines = upgraded(capsys, suite, "--before", path)
    assert code == 1
    assert lines[-1].startswith("the same libraries: 1 cell equal, 1 changed (gpt2_sa_lora: ")
    assert log() == ["here first bert_sa_lora,gpt2_sa_lora", "here whole gpt2_sa_lora"]


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
    wheel(runs, "1.0", 1)
    foreign = runs / wheel(runs, "1.0", 1).replace("planted", "foreign")
    _renamed(runs / "planted-1.0-py3-none-any.whl", foreign)
    shutil.copy(runs / "1-first.json", runs / "given.json")
    code, lines = upgraded(capsys, planned[0], *arguments, "--find-links", runs)
    assert code == 2
    assert sentence in lines[-1]
    assert planned[1]() == []


def _renamed(one, other):
    """The wheel of another package."""
    with packages.ZipFile(one) as source, packages.ZipFile(other, "w") as target:
        for name in source.namelist():
            target.writestr(name.replace("planted", "foreign"), source.read(name).replace(b"planted", b"foreign"))


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
        (
            "ERROR: Could not find x\nERROR: No matching distribution found for x==9\n",
            "No matching distribution found for x==9",
        ),
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
    file = tmp_path / "new.txt"
    file.write_text("--pre\n# note\n\ntorch>=2.6  # why\nscikit-learn[a] ; python_version > '3'\n./local\nhttps://x/y.whl\n")
    wanted = Wanted(
        specs=["peft", "accelerate~=1.1", "tokenizers@../tokenizers", "../datasets", "git+https://x/z"], files=[file]
    )
    assert wanted.names == ["peft", "accelerate", "tokenizers", "torch", "scikit-learn"]
    assert wanted.places == ["--pre"]


def test_what_the_suite_may_use_is_what_its_libraries_name():
    used = used_by("tunegrid")
    assert {"torch", "peft", "huggingface-hub", "safetensors", "jinja2"} <= used
    assert "flask" not in used


# Checkouts


@pytest.mark.parametrize("spec", ["peft", "peft==0.22", "peft @ https://x/peft.zip", "git+https://x/peft@v1", "./peft.whl"])
def test_what_pip_reads_itself_is_no_checkout(spec):
    assert checkout_of(spec) == ("", None)


@pytest.mark.parametrize(("spec", "name"), [("peft@{}", "peft"), ("peft[dev] @ {}", "peft[dev]"), ("{}", "")])
def test_a_folder_is_a_checkout_with_or_without_its_name(spec, name, tmp_path):
    (tmp_path / "setup.py").touch()
    assert checkout_of(spec.format(tmp_path)) == (name, tmp_path)


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


def test_changes_name_the_suites_libraries_first_and_three_of_them():
    before = side(peft="0.20", safetensors="0.6", torch="2.12", triton="3")
    after = side(peft="0.21", safetensors="0.7", torch="2.13")
    assert changes(before, after) == "torch 2.12 -> 2.13, peft 0.20 -> 0.21, safetensors 0.6 -> 0.7 and 1 more"
    assert changes(side(peft="0.20"), side(peft="0.20")) == ""


def test_an_older_release_is_no_end_to_bisect_to():
    options = upgrade.parsed(["peft==0.20"])[1]
    assert upgrade.way_on(side(peft="0.21"), side(peft="0.20"), ["bert_sa_lora"], options) == ""


def test_of_several_packages_each_is_upgraded_by_itself():
    options = upgrade.parsed(["peft==0.21", "accelerate"])[1]
    before, after = side(peft="0.20", accelerate="1.1", numpy="1"), side(peft="0.21", accelerate="1.2", numpy="2")
    assert upgrade.way_on(before, after, ["a", "b"], options) == (
        "`tunegrid upgrade peft==0.21 --cells a,b` and `tunegrid upgrade accelerate==1.2 --cells a,b` tell which of them it was"
    )


def test_the_suite_runs_the_cells_of_a_profile_with_the_users_options_last():
    command = Question(profile="quick", options=("-n", "0"), suite=suite).command(["bert_sa_lora"], ("--first-updates",))
    assert command(Path("env/python"), Path("out.json")) == [
        *("env/python", "-m", "pytest", "-q", "-m", "quick", "--cells", "bert_sa_lora"),
        *("--resume", "-n", "auto", "--first-updates", "-n", "0", "--benchmark-json=out.json"),
    ]
    assert "auto" not in Question(profile="full", suite=suite).command([], ())(Path("p"), Path("o"))


# A real library


@pytest.mark.slow
def test_a_bug_that_is_planted_into_a_checkout_of_peft_is_named(tmp_path, monkeypatch, capsys):
    for module in (sides, upgrade):
        monkeypatch.setattr(module, "RUNS", tmp_path / "upgrade")
    repo = tmp_path / "peft"
    shutil.copytree(import_folder("peft"), repo / "src" / "peft", ignore=shutil.ignore_patterns("__pycache__"))
    (repo / "backend.py").write_text(packages.BACKEND)
    (repo / "pyproject.toml").write_text(PYPROJECT.format(name="peft", version="1.0.dev0"))
    layer = repo / "src" / "peft" / "tuners" / "lora" / "layer.py"
    code, right = layer.read_text(), "self.scaling[adapter_name] = lora_alpha / r\n"
    assert right in code
    layer.write_text(code.replace(right, "self.scaling[adapter_name] = lora_alpha / r / r\n"))
    code, lines = upgraded(capsys, suite, f"peft@{repo}", "--cells", "bert_sa_lora", "--by", "numerics", "--", "-n", "0")
    assert code == 1
    [said] = [line for line in lines if line.startswith("peft ") and f" -> 1.0.dev0 of {repo}: 1 cell changed (" in line]
    assert "(bert_sa_lora: " in said
    assert "accuracy" in said
    assert json.loads(next((tmp_path / "upgrade").glob("peft-*/*.json")).read_text())["benchmarks"]
