from dataclasses import replace

import pytest

from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.profiles import FULL_CAPS, FULL_PROFILE, QUICK_PROFILE
from tunegrid.results.estimates import (
    Estimate,
    duration,
    estimates,
    lines,
    planned_rows,
    planned_updates,
    seconds_of,
)
from tunegrid.tests import records
from tunegrid.tests.records import MEASURED, PHASE, complete, footprint

QUICK = STUDY.cells(QUICK_PROFILE)
FULL = {cell.id: cell for cell in STUDY.cells(FULL_PROFILE)}


def saved(path, cell, profile, seconds, status="passed"):
    """A run of one cell: two phases of `seconds` each."""
    phases = {"load": PHASE | {"seconds": seconds}, "train": PHASE | {"seconds": seconds, "rss_peak_gib": 1.5}}
    missed = {"missed": ["why"]} if status == "stopped" else {}
    record = complete(cell, profile=profile, status=status, memory=MEASURED["memory"] | {"phases": phases}, **missed)
    return records.saved(path, record)


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("90s", 90), ("1h30m", 5400), ("2h", 7200)])
def test_a_duration_is_hours_minutes_seconds(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["30", "m", "-5m", "1.5h", "30m!", ""])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InputError, match="expected a duration, as in 30m"):
        seconds_of(text)


def test_a_saved_run_says_what_a_cell_takes_and_goes_before_any_footprint(tmp_path):
    path = saved(tmp_path / "run.json", "t5_qa_sft", "quick", 4.0)
    later = saved(tmp_path / "later.json", "t5_qa_sft", "quick", 9.0)
    assert estimates(QUICK, [tmp_path / "absent.json", path, later]) == {
        "t5_qa_sft": Estimate(seconds=8.0, gib=1.5, source="run.json, a CPU", device="a CPU")
    }
    path = saved(tmp_path / "run.json", "t5_qa_sft", "quick", 4.0)
    other = footprint(tmp_path / "footprint.json", "t5_qa_sft", 2.0)
    assert estimates(QUICK, [path, other])["t5_qa_sft"].seconds == 8.0
    assert estimates(QUICK, [other, path])["t5_qa_sft"].seconds == 8.0


@pytest.mark.parametrize(("profile", "status"), [("full", "passed"), ("quick", "error"), ("quick", "stopped")])
def test_another_profile_or_a_cell_that_did_not_finish_or_a_file_cut_off_says_nothing(tmp_path, profile, status):
    (tmp_path / "cut.json").write_text('{"benchmarks": [')
    run = saved(tmp_path / "run.json", "t5_qa_sft", profile, 4.0, status=status)
    assert estimates(QUICK, [run, tmp_path / "cut.json"]) == {}


@pytest.mark.parametrize(("batch", "scaled"), [(8, ""), (1, ", at 1 row per update: not scaled to 8")])
def test_a_footprint_says_how_long_a_full_training_takes(tmp_path, batch, scaled):
    cell = FULL["bert_sum_lora"]  # batches of 8
    path = footprint(tmp_path / "h100" / "footprint.json", cell.id, 100.0, per_device_train_batch_size=batch)
    estimate = estimates([cell], [path])[cell.id]
    assert estimate.seconds == FULL_CAPS["sum"].train * 3 / 100  # three epochs at 100 rows per second
    assert estimate.source == f"h100/footprint.json, training alone{scaled}"
    assert cell.id not in estimates(QUICK, [path])  # a micro backbone is not of its size


def test_rows_of_a_full_cell_are_the_splits_under_the_cap_and_its_updates_follow_from_them():
    assert planned_rows(FULL["bert_sa_lora"]) == 100_000
    assert planned_rows(FULL["bert_qa_lora"]) == round(87_599 * 0.9)
    assert planned_updates(FULL["bert_sa_lora"]) == 3 * 6250  # batches of 16
    assert planned_updates(FULL["gpt2_qa_lora"]) == 3 * 9855  # 78,839 rows, 2 x 4 per update
    recipe = replace(FULL["gpt2_qa_lora"].recipe, num_train_epochs=3)  # 2 x 4 rows per update
    assert [recipe.updates_per_epoch(features) for features in (8, 9, 16, 17)] == [1, 2, 2, 3]
    assert recipe.planned_updates(17) == 9
    assert replace(recipe, max_steps=5).planned_updates(17) == 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0 s"), (59.4, "59 s"), (60, "1.0 min"), (90, "1.5 min"), (3600, "1.0 h"), (86_400, "1.0 days")],
)
def test_a_time_has_the_unit_that_reads_best(seconds, text):
    assert duration(seconds) == text


def test_the_table_closes_with_the_sum():
    table = lines(QUICK[:2], {QUICK[0].id: Estimate(seconds=90, gib=0.5, source="run.json")}, {QUICK[0].id: 2, QUICK[1].id: 1})
    assert table == [
        "cell            updates     batch  precision  tokens  est. time  est. GiB  from",
        "bert_sum_lora        38    12 x 1  fp32       128+28    1.5 min      0.50  run.json",
        "bert_sum_qlora       38    12 x 1  fp32       128+28          -         -  never measured",
        "2 cells in 3 runs, 3.0 min one after the other for the 1 with an estimate",
    ]
