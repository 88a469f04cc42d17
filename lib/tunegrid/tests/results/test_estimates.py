import pytest

from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.results.estimates import duration, estimates
from tunegrid.tests import records
from tunegrid.tests.records import MEASURED, PHASE, complete

QUICK = STUDY.cells(QUICK_PROFILE)


def saved(path, cell, profile, seconds, status="passed"):
    """A run of one cell: two phases of `seconds` each."""
    phases = {name: PHASE | {"seconds": seconds} for name in ("load", "train")}
    missed = {"missed": ["why"]} if status == "stopped" else {}
    record = complete(cell, profile=profile, status=status, memory=MEASURED["memory"] | {"phases": phases}, **missed)
    return records.saved(path, record)


def test_the_first_saved_run_says_what_a_cell_takes(tmp_path):
    path, later = (saved(tmp_path / f"{n}.json", "t5_qa_sft", "quick", n) for n in (4.0, 9.0))
    assert estimates(QUICK, [tmp_path / "absent.json", path, later]) == {"t5_qa_sft": 8.0}


@pytest.mark.parametrize(("profile", "status"), [("full", "passed"), ("quick", "error"), ("quick", "stopped")])
def test_another_profile_or_a_cell_that_did_not_finish_or_a_file_cut_off_says_nothing(tmp_path, profile, status):
    (tmp_path / "cut.json").write_text('{"benchmarks": [')
    run = saved(tmp_path / "run.json", "t5_qa_sft", profile, 4.0, status=status)
    assert estimates(QUICK, [run, tmp_path / "cut.json"]) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0 s"), (59.4, "59 s"), (60, "1.0 min"), (90, "1.5 min"), (3600, "1.0 h"), (86_400, "1.0 days")],
)
def test_a_time_has_the_unit_that_reads_best(seconds, text):
    assert duration(seconds) == text
