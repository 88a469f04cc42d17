"""Upgrading, by runs that are saved for each side: what runs, and what is said."""

import sys

import pytest

from tunegrid.commands import environments, upgrade
from tunegrid.commands.upgrade import STOCK_CELLS
from tunegrid.tests.packages import pack, wheel
from tunegrid.tests.records import FIRST_STEP, MEASURED, begun, complete, get_record, hits, run_file

CELLS = ("bert_sa_lora", "gpt2_sa_lora")
# Other gradients with equal losses: numerics changed, and the rows alone tell whether the score is
# worse.
OTHER = MEASURED["training"] | {
    "first_step": FIRST_STEP | {"gradients": {"layer 0 attention": 0.2, "head": 1.0}}
}
PASSED = [f'<testcase name="test_it[{cell}-0]"/>' for cell in STOCK_CELLS]
DIFFERS = '<testcase name="test_it[bert_qa_lora-0]"><failure message="Failed: windows: 3 rows, ours are 5&#10;x"/></testcase>'
OBJECTION = [{"name": "base_frozen", "passed": False, "detail": "one changed"}]
OBJECTING = begun(
    CELLS[1], status="failed", audits=OBJECTION, missed=["audit base_frozen: one changed"]
)


def whole(right, training=MEASURED["training"], cell=CELLS[1]):
    """A cell that came to its end, with so many of 512 rows right."""
    return get_record(cell, {"accuracy": hits(512, right)}, training=training)


def broken(cell):
    return complete(
        cell, status="error", missed=["OSError: no room"], scores={}, bounds={}, examples=None
    )


@pytest.fixture
def upgraded(saved_runs, said):
    """Exit code and lines of an upgrade from 1.0 to 2.0; by default the two are equal."""
    folder = saved_runs.folder
    run_file(folder / "first.json", [begun(cell) for cell in CELLS])
    run_file(folder / "other-first.json", [begun(CELLS[0]), begun(CELLS[1], training=OTHER)])
    run_file(folder / "whole.json", [whole(480)])
    run_file(folder / "worse.json", [whole(416, OTHER)])
    (folder / "stock.xml").write_text(f"<testsuite>{''.join(PASSED)}</testsuite>")
    (folder / "differs.xml").write_text(f"<testsuite>{''.join([DIFFERS, *PASSED[1:]])}</testsuite>")
    for version in ("1.0", "2.0"):
        stages = {"first-updates": "first.json", "whole": "whole.json", "stock": "stock.xml"}
        saved_runs.files |= {(version, stage): file for stage, file in stages.items()}
    return lambda *options: said(upgrade.main, ["planted==2.0", "--from", "planted==1.0", *options])


def test_equal_sides_take_first_updates_and_four_cells_of_the_libraries_own_path(
    saved_runs, upgraded
):
    code, lines = upgraded("--", "--seeds", "0-2", "-n", "0")
    answer = "2 cells: 2 equal by their first 2 updates."
    own_path = "The libraries' path equals ours in 4 of 4 cells, before in 4."
    assert code == 0
    assert lines[-1] == f"planted 1.0 -> 2.0: {answer} {own_path}"
    first = "-m quick --resume -n auto --first-updates --seeds 0-2 -n 0"  # the user's own come last
    stock = f"-m stock --cells {','.join(STOCK_CELLS)} -n auto"
    assert saved_runs.asked == [
        ("1.0", "first-updates", first),
        ("2.0", "first-updates", first),
        ("1.0", "stock", stock),
        ("2.0", "stock", stock),
    ]


def test_only_cells_that_changed_train_to_their_end(saved_runs, upgraded):
    saved_runs.files |= {
        ("2.0", "first-updates"): "other-first.json",
        ("2.0", "whole"): "worse.json",
    }
    code, lines = upgraded()
    assert code == 1
    assert lines[-1].startswith(
        "planted 1.0 -> 2.0: Failed: 1 cell worse: gpt2_sa_lora accuracy -12.50 points, "
    )
    assert any(line.startswith("bert_sa_lora ") and " equal " in line for line in lines)
    assert ("2.0", "whole", "-m quick --cells gpt2_sa_lora --resume -n auto") in saved_runs.asked
    saved_runs.asked.clear()
    assert upgraded("--whole", "-m", "zoo")[0] == 1
    assert saved_runs.asked == [
        ("1.0", "whole", "-m zoo --resume -n auto"),
        ("2.0", "whole", "-m zoo --resume -n auto"),
    ]


def test_a_difference_of_the_libraries_own_path_that_was_not_there_before_fails(
    saved_runs, upgraded
):
    saved_runs.files |= {("2.0", "stock"): "differs.xml"}
    code, lines = upgraded()
    assert code == 1
    assert lines[-1].endswith(" path equals ours in 3 of 4 cells, before in 4.")
    assert (
        "own path of bert_qa_lora differs from ours now, and did not before: windows: 3 rows, ours are 5"
        in "".join(lines)
    )
    saved_runs.files |= {("1.0", "stock"): "differs.xml"}
    assert upgraded()[0] == 0


@pytest.mark.parametrize(
    ("records", "answer"),
    [
        ([begun(CELLS[0]), broken(CELLS[1])], "Failed: 1 of 2 cells broke off (gpt2_sa_lora: "),
        ([begun(CELLS[0]), OBJECTING], "Failed: one changed (1 of 2 cells, gpt2_sa_lora; failed "),
        (None, "no cell runs with planted 2.0: cp: cannot stat "),  # the session itself broke off
    ],
    ids=["a cell that broke off", "an audit that objects", "no session"],
)
def test_cells_that_fail_after_the_upgrade_fail_it(saved_runs, upgraded, records, answer):
    if records:
        run_file(saved_runs.folder / "failed.json", records)
    saved_runs.files |= {("2.0", "first-updates"): "failed.json"}
    code, lines = upgraded()
    assert code == 1, lines[-1]
    assert lines[-1].startswith(f"planted 1.0 -> 2.0: {answer}"), lines[-1]
    if records:
        [step] = [line for line in lines if line.startswith("Next: ")]
        assert step.startswith(
            f"Next: `{sys.executable} -m tunegrid run -m quick --cells gpt2_sa_lora -n 0`"
        )  # that of its side


def test_a_cell_that_failed_an_audit_before_the_upgrade_is_not_compared(saved_runs, upgraded):
    run_file(saved_runs.folder / "failed.json", [begun(CELLS[0]), OBJECTING])
    saved_runs.files |= {("1.0", "first-updates"): "failed.json"}
    code, lines = upgraded()
    answer = f"1 of 2 cells not compared, since an audit failed before the upgrade ({CELLS[1]})."
    assert code == 6
    assert lines[-1].startswith(f"planted 1.0 -> 2.0: {answer}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "say what to upgrade to, as in `tunegrid upgrade transformers==5.25`"),
        (("planted==9",), "planted==9 cannot be installed: "),  # why, is uv's word
        (("iniconfig",), "nothing to upgrade: iniconfig is installed here already"),
        (("planted@nowhere",), "nowhere cannot be read as a checkout of a library: "),
        (
            ("planted==1.0", "--from", "planted==1.0"),
            "nothing to upgrade: planted==1.0 is what --from planted==1.0 installs",
        ),
        (("planted==1.0", "--gate-on", "beauty"), "unknown kind of figure 'beauty'"),
        # Its name until 0.22
        (("planted==1.0", "--by", "beauty"), "unknown kind of figure 'beauty'"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(tmp_path, monkeypatch, said, arguments, sentence):
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    wheel(tmp_path, "1.0", 1)
    pack(tmp_path, "iniconfig")
    code, lines = said(upgrade.main, [*arguments, "--find-links", str(tmp_path)])
    assert code == 2, lines
    assert sentence in lines[-1], lines
