"""Upgrading: environments of a package made here, and runs that are saved for what they hold."""

import argparse
import sys
from pathlib import Path

import pytest

from tunegrid.commands import environments, upgrade
from tunegrid.commands.environments import Environment, suite
from tunegrid.commands.upgrade import STOCK_CELLS, changes
from tunegrid.results import examples
from tunegrid.tests.packages import wheel
from tunegrid.tests.records import FIRST_STEP, MEASURED, begun, complete, hits, record_of, run_file

CELLS = ("bert_sa_lora", "gpt2_sa_lora")
GOOD, BAD = 480, 416  # rows of 512 that are right: 12.5 points between them
# Other gradients with equal losses: numerics changed, and the rows alone tell whether the score is worse.
OTHER = MEASURED["training"] | {"first_step": FIRST_STEP | {"gradients": {"layer 0 attention": 0.2, "head": 1.0}}}
STAND_IN = """
import pathlib, shutil, sys
try:
    import planted
    rows = planted.ROWS
except ImportError:
    rows = "here"
log, folder, stage, cells, out = sys.argv[1:]
with open(log, "a") as file:
    file.write(f"{rows} {stage} {cells}\\n")
source = "stock.xml" if stage == "stock" else f"{rows}-{stage}.json"
shutil.copy(pathlib.Path(folder) / source, out)
"""
STOCK = "<testsuites><testsuite>{}</testsuite></testsuites>"
PASSED = [f'<testcase name="test_it[{cell}-0]"/>' for cell in STOCK_CELLS]
DIFFERS = '<testcase name="test_it[bert_qa_lora-0]"><failure message="Failed: windows: 3 rows, ours are 5&#10;x"/></testcase>'


def whole(cell, right=GOOD, training=MEASURED["training"], **changes):
    return record_of(cell, {"accuracy": hits(512, right)}, training=training, **changes)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs of what the package holds: 1 and 2 are equal, 3 is another training of the second cell, which is worse."""
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    for rows in ("here", 1, 2):
        run_file(tmp_path / f"{rows}-first.json", [begun(cell) for cell in CELLS])
        run_file(tmp_path / f"{rows}-whole.json", [whole(CELLS[1])])
    run_file(tmp_path / "3-first.json", [begun(CELLS[0]), begun(CELLS[1], training=OTHER)])
    run_file(tmp_path / "3-whole.json", [whole(CELLS[1], BAD, OTHER)])
    (tmp_path / "stock.xml").write_text(STOCK.format("".join(PASSED)))
    (tmp_path / "differs.xml").write_text(STOCK.format("".join([DIFFERS, *PASSED[1:]])))
    return tmp_path


def stage_of(options, profile):
    """Which of the saved runs these options ask for."""
    return "stock" if profile == "stock" else "first" if "--first-updates" in options else "whole"


@pytest.fixture
def planned(runs):
    """A suite that copies them, and a log of what it ran."""
    log = runs / "measured.txt"

    def suite(cells, options, profile):
        stage = stage_of(options, profile)
        return lambda python, out: [
            *(str(python), "-c", STAND_IN, str(log), str(runs), stage, ",".join(cells) or "all", str(out))
        ]

    return suite, lambda: log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def made(planned, runs, monkeypatch):
    """The same without environments: the sides are named after the package's versions."""
    _, log = planned
    python = Path(sys.executable)
    sides = tuple(Environment(python=python, folder=runs / name, own={"planted": name}) for name in ("1.0", "2.0"))
    monkeypatch.setattr(upgrade, "environments_of", lambda options: sides)
    rows = {"1.0": "1", "2.0": "3", "1.0 stock": "stock.xml", "2.0 stock": "stock.xml"}

    def suite(cells, options, profile):
        stage = stage_of(options, profile)

        def command(python, out):
            version = out.parent.name
            if stage == "stock":
                return ["cp", str(runs / rows[f"{version} stock"]), str(out)]
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


def test_an_upgrade_that_changes_nothing_takes_first_updates_alone_and_is_not_measured_again(runs, planned, capsys):
    suite, log = planned
    for version, rows in (("1.0", 1), ("1.1", 2)):
        wheel(runs, version, rows)
    arguments = ("planted==1.1", "--from", "planted==1.0", "--find-links", runs)
    code, lines = upgraded(capsys, suite, *arguments)
    said = "Passed: this run was compared with itself: the run before holds its records."
    said += " The libraries' own path is ours in 4 of 4 cells, before in 4."
    assert (code, lines[-1]) == (0, f"planted 1.0 -> 1.1: {said}")
    stock = ",".join(STOCK_CELLS)
    assert log() == ["1 first all", "2 first all", f"1 stock {stock}", f"2 stock {stock}"]
    assert upgraded(capsys, suite, *arguments)[1][-1] == lines[-1]
    assert len(log()) == 4  # all came from disk


def test_only_cells_that_changed_train_to_their_end_on_both_sides(made, capsys):
    suite, log, _ = made
    code, lines = upgraded(capsys, suite, "planted==2.0")
    assert code == 1
    assert log() == ["1.0 first all", "2.0 first all", "1.0 whole gpt2_sa_lora", "2.0 whole gpt2_sa_lora"]
    assert lines[-1].startswith("planted 1.0 -> 2.0: Failed: 1 cell worse: gpt2_sa_lora accuracy -12.50 points, ")
    assert any(line.startswith("bert_sa_lora ") and " equal " in line for line in lines)
    assert any(line.startswith("`tunegrid page ") for line in lines)


def test_with_whole_every_cell_trains_to_its_end_at_once(made, runs, capsys):
    suite, log, _ = made
    run_file(runs / "3-whole.json", [whole(CELLS[1])])
    assert upgraded(capsys, suite, "planted==2.0", "--whole")[0] == 0
    assert log() == ["1.0 whole all", "2.0 whole all"]


def test_where_the_libraries_own_path_differs_that_did_not_the_upgrade_fails(made, capsys):
    suite, _, rows = made
    rows |= {"2.0": "2", "2.0 stock": "differs.xml"}
    code, lines = upgraded(capsys, suite, "planted==2.0")
    assert code == 1
    [said] = [line for line in lines if line.startswith("Failed: ")]
    assert (
        "the libraries' own path of bert_qa_lora differs from ours now, and did not before: windows: 3 rows, ours are 5" in said
    )
    assert lines[-1].endswith(" The libraries' own path is ours in 3 of 4 cells, before in 4.")


def broken(cell):
    return complete(cell, status="error", missed=["OSError: no room"], scores={}, bounds={}, examples=None)


OBJECTION = [{"name": "base_frozen", "passed": False, "detail": "one changed"}]
OBJECTING = begun(CELLS[1], status="failed", audits=OBJECTION, missed=["audit base_frozen: one changed"])


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (
            [begun(CELLS[0]), broken(CELLS[1])],
            "planted 1.0 -> 2.0: Failed: 1 of 2 cells broke off (gpt2_sa_lora: ",
        ),
        (
            list(map(broken, CELLS)),
            "planted 1.0 -> 2.0: Failed: all 2 cells broke off (bert_sa_lora: ",
        ),
        (
            [begun(CELLS[0]), OBJECTING],
            "planted 1.0 -> 2.0: Failed: one changed (1 of 2 cells, gpt2_sa_lora; failed ",
        ),
        (None, "planted 1.0 -> 2.0: no cell runs with planted 2.0: cp: cannot stat "),  # the session itself broke off
    ],
    ids=["a cell that broke off", "none that finishes", "an audit that objects", "no session"],
)
def test_cells_that_fail_after_the_upgrade_are_named_and_measured_again(made, runs, capsys, after, said):
    suite, log, rows = made
    if after:
        run_file(runs / "4-first.json", after)
    rows["2.0"] = "4"
    code, lines = upgraded(capsys, suite, "planted==2.0")
    assert (code, any(line.startswith(said) for line in lines)) == (1, True), "\n".join(lines)
    if OBJECTING not in (after or []):  # which came to its end
        rows["2.0"] = "2"
        assert upgraded(capsys, suite, "planted==2.0")[0] == 0
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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "say what to upgrade to, as in `tunegrid upgrade transformers==5.25`"),
        (("planted==9",), "planted==9 cannot be installed: "),  # why, is pip's word or uv's
        (("planted=9",), "'planted=9' is no package: expected one as pip takes it"),
        (("--from=--target=x==1",), "'--target=x==1' is no package: expected one as pip takes it"),
        (("packaging",), "nothing to upgrade: what is installed here is as packaging asks"),
        (("planted@nowhere",), "nowhere cannot be read as a checkout of a library: "),
        (("planted==1.0", "--from", "planted==1.0"), "nothing to upgrade: planted==1.0 is what --from planted==1.0 installs"),
        (("planted==1.0", "--by", "beauty"), "unknown kind of figure 'beauty'"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(runs, planned, capsys, arguments, sentence):
    wheel(runs, "1.0", 1)
    code, lines = upgraded(capsys, planned[0], *arguments, "--find-links", runs)
    assert (code, sentence in lines[-1]) == (2, True), lines
    assert planned[1]() == []


def test_changes_name_the_suites_libraries_first():
    def side(**own):
        return Environment(python=Path("python"), folder=Path(), own=own)

    before = side(peft="0.20", safetensors="0.6", torch="2.12", triton="3")
    after = side(peft="0.21", safetensors="0.7", torch="2.13", triton="3", new="1")
    assert changes(before, after) == "peft 0.20 -> 0.21, torch 2.12 -> 2.13, new none -> 1 and 1 more"
    assert changes(side(planted="1"), side(planted="1")) == "planted 1 -> 1 (another archive)"


def test_the_suite_runs_the_cells_of_a_profile_with_the_users_options_last(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(Environment, "run", lambda self, command, *_: commands.append(command(Path("env/python"), Path("out"))))
    side = Environment(python=Path("python"), folder=tmp_path)
    options = argparse.Namespace(profile="quick", pytest_options=["-n", "0"])
    upgrade.run_cells(options, suite, side, "first-updates", ["bert_sa_lora"], "--first-updates")
    assert commands.pop() == [
        *("env/python", "-m", "pytest", "-q", "-m", "quick", "--cells", "bert_sa_lora"),
        *("--resume", "-n", "auto", "--first-updates", "-n", "0", "--benchmark-json=out"),
    ]
    upgrade.run_cells(argparse.Namespace(profile="full", pytest_options=[]), suite, side, "whole", [])
    assert "auto" not in commands.pop()
