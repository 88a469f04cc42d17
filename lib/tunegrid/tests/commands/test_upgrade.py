"""Upgrading, by runs that are saved for each side."""

import sys
from pathlib import Path

import pytest

from tunegrid import __main__ as command
from tunegrid.commands import environments
from tunegrid.commands.upgrade import STOCK_CELLS
from tunegrid.tests.outputs import refusal
from tunegrid.tests.packages import pack, wheel
from tunegrid.tests.records import FIRST_STEP, MEASURED, begun, complete, get_record, hits

CELLS = ("bert_sa_lora", "gpt2_sa_lora")
# Other gradients with equal losses: numerics changed, and the rows alone tell whether the score is
# worse.
OTHER = MEASURED["training"] | {
    "first_step": FIRST_STEP | {"gradients": {"layer 0 attention": 0.2, "head": 1.0}}
}
OBJECTION = {"name": "base_frozen", "passed": False, "detail": "one changed"}
# First updates of both cells
EQUAL = [begun(CELLS[0]), begun(CELLS[1])]
CHANGED = [begun(CELLS[0]), begun(CELLS[1], training=OTHER)]
FAILED = [
    begun(CELLS[0]),
    begun(
        CELLS[1],
        status="failed",
        audits=[OBJECTION],
        missed=["audit base_frozen: one changed"],
    ),
]
# Reports of pytest on the libraries' own path
CASES = "".join(f'<testcase name="test_it[{cell}-0]"/>' for cell in STOCK_CELLS)
PASSES = f"<testsuite>{CASES}</testsuite>"
FAILURE = '<failure message="Failed: windows: 3 rows, ours are 5&#10;x"/>'
DIFFERS = PASSES.replace("/>", f">{FAILURE}</testcase>", 1)


def broken(cell):
    return complete(
        cell, status="error", missed=["OSError: no room"], scores={}, bounds={}, examples=None
    )


@pytest.fixture
def upgrade(saved_runs, run_command):
    """Upgrades from 1.0 to 2.0, which are equal; returns the exit code and the printed lines."""
    Path("passes.xml").write_text(PASSES)
    Path("differs.xml").write_text(DIFFERS)
    for version in ("1.0", "2.0"):
        saved_runs.add(f"{version} first-updates", EQUAL)
        saved_runs.add(f"{version} whole", [get_record(CELLS[1], {"accuracy": hits(512, 480)})])
        saved_runs.files[f"{version} stock"] = "passes.xml"
    line = "upgrade planted==2.0 --from planted==1.0"
    return lambda options="": run_command(f"{line} {options}")


def test_equal_sides_take_first_updates_and_four_cells_of_the_libraries_own_path(
    saved_runs, upgrade
):
    code, lines = upgrade("-- --seeds 0-2 -n 0")
    answer = "2 cells: 2 equal by their first 2 updates."
    own_path = "The libraries' path equals ours in 4 of 4 cells, before in 4."
    assert code == 0
    assert lines[-1] == f"planted 1.0 -> 2.0: {answer} {own_path}"
    # The user's own options come last
    first = "first-updates: -m quick --resume -n auto --first-updates --seeds 0-2 -n 0"
    stock = f"stock: -m stock --cells {','.join(STOCK_CELLS)} -n auto"
    assert saved_runs.sessions == [f"1.0 {first}", f"2.0 {first}", f"1.0 {stock}", f"2.0 {stock}"]


def test_only_cells_that_changed_train_to_their_end(saved_runs, upgrade):
    saved_runs.add("2.0 first-updates", CHANGED)
    worse = get_record(CELLS[1], {"accuracy": hits(512, 416)}, training=OTHER)
    saved_runs.add("2.0 whole", [worse])
    code, lines = upgrade()
    assert code == 1
    answer = "Failed: 1 cell worse: gpt2_sa_lora accuracy -12.50 points, "
    assert lines[-1].startswith(f"planted 1.0 -> 2.0: {answer}")
    assert any(line.startswith("bert_sa_lora ") and " equal " in line for line in lines)
    end = "2.0 whole: -m quick --cells gpt2_sa_lora --resume -n auto"
    assert end in saved_runs.sessions
    saved_runs.sessions.clear()
    code, _ = upgrade("--whole -m zoo")
    assert code == 1
    assert saved_runs.sessions == [
        "1.0 whole: -m zoo --resume -n auto",
        "2.0 whole: -m zoo --resume -n auto",
    ]


def test_a_difference_of_the_libraries_own_path_that_was_not_there_before_fails(
    saved_runs, upgrade
):
    saved_runs.files["2.0 stock"] = "differs.xml"
    code, lines = upgrade()
    assert code == 1
    assert lines[-1].endswith(" path equals ours in 3 of 4 cells, before in 4.")
    difference = "own path of bert_qa_lora differs from ours now, and did not before"
    assert f"{difference}: windows: 3 rows, ours are 5" in "".join(lines)
    saved_runs.files["1.0 stock"] = "differs.xml"
    code, _ = upgrade()
    assert code == 0


@pytest.mark.parametrize(
    ("records", "answer"),
    [
        ([begun(CELLS[0]), broken(CELLS[1])], "Failed: 1 of 2 cells broke off (gpt2_sa_lora: "),
        (FAILED, "Failed: one changed (1 of 2 cells, gpt2_sa_lora; failed "),
    ],
    ids=["a cell that broke off", "an audit that objects"],
)
def test_cells_that_fail_after_the_upgrade_fail_it(saved_runs, upgrade, records, answer):
    saved_runs.add("2.0 first-updates", records)
    code, lines = upgrade()
    assert code == 1
    assert lines[-1].startswith(f"planted 1.0 -> 2.0: {answer}")
    [step] = [line for line in lines if line.startswith("Next: ")]
    python_of_the_new_side = sys.executable
    command_line = f"{python_of_the_new_side} -m tunegrid run -m quick --cells gpt2_sa_lora -n 0"
    assert step.startswith(f"Next: `{command_line}`")


def test_a_session_that_breaks_off_after_the_upgrade_fails_it(saved_runs, upgrade):
    del saved_runs.files["2.0 first-updates"]
    code, lines = upgrade()
    assert code == 1
    answer = "no cell runs with planted 2.0: cp: cannot stat "
    assert lines[-1].startswith(f"planted 1.0 -> 2.0: {answer}")


def test_a_cell_that_failed_an_audit_before_the_upgrade_is_not_compared(saved_runs, upgrade):
    saved_runs.add("1.0 first-updates", FAILED)
    code, lines = upgrade()
    assert code == 6
    answer = f"1 of 2 cells not compared, since an audit failed before the upgrade ({CELLS[1]})."
    assert lines[-1].startswith(f"planted 1.0 -> 2.0: {answer}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("planted==9", "planted==9 cannot be installed: "),  # uv says why
        ("iniconfig", "nothing to upgrade: iniconfig is installed here already"),
        (
            "planted@nowhere",
            "nowhere cannot be read as a checkout of a library: cannot change to 'nowhere'",
        ),
        (
            "planted==1.0 --from planted==1.0",
            "nothing to upgrade: planted==1.0 is what --from planted==1.0 installs",
        ),
        ("planted==1.0 --gate-on beauty", "unknown kind of figure 'beauty'"),
        # Its name until 0.22
        ("planted==1.0 --by beauty", "unknown kind of figure 'beauty'"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    wheel(tmp_path, "1.0", 1)
    pack(tmp_path, "iniconfig")
    arguments = [*words.split(), "--find-links=."]
    assert sentence in refusal(capsys, command.main, "upgrade", *arguments)
