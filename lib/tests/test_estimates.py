import json

import pytest

from lib.errors import InputError
from lib.grid.cells import grid
from lib.grid.profiles import FULL_CAPS, FULL_PROFILE, QUICK_PROFILE
from lib.results.estimates import Estimate, estimates, fitting, lines, planned_rows, planned_updates, seconds_of
from lib.results.record import SCHEMA_VERSION

QUICK = grid(QUICK_PROFILE)
FULL = {cell.id: cell for cell in grid(FULL_PROFILE)}


def known(**seconds):
    return {cell: Estimate(seconds=value) for cell, value in seconds.items()}


def saved(path, cell, profile, seconds, rate=None, outcome="passed"):
    phase = {"seconds": seconds, "rss_peak_gib": 0.5, "reserved_peak_gib": None}
    record = {
        "schema_version": SCHEMA_VERSION,
        "cell": cell,
        "profile": profile,
        "outcome": outcome,
        "device": {"name": "a CPU"},
        "memory": {"phases": {"load": phase, "train": phase | {"rss_peak_gib": 1.5}}},
        "throughput": {"train_samples_per_second": rate},
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"benchmarks": [{"extra_info": record}]}))
    return path


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("90s", 90), ("1h30m", 5400), ("2h", 7200)])
def test_a_duration_is_hours_minutes_seconds(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["30", "m", "-5m", "1.5h", "30m!", ""])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InputError, match="is no duration; write it as in 30m"):
        seconds_of(text)


def test_the_longest_that_fits_comes_first():
    # 100 s less 15 s for the session: 60 s, then 20 s of the 25 s left; 30 s do not fit
    assert fitting(["a", "b", "c"], known(a=20, b=60, c=30), 100) == ["b", "a"]


def test_workers_share_the_cells_but_no_cell_is_cut():
    times = known(a=60, b=60, c=60, d=100)
    assert fitting(["a", "b", "c", "d"], times, 85, workers=2) == ["a", "b"]  # d alone is longer than the time there is


def test_a_cell_never_measured_does_not_fit():
    assert fitting(["a", "b"], known(a=1), 1000) == ["a"]
    assert fitting(["b"], {"b": Estimate()}, 1000) == []


def test_a_saved_run_says_what_a_cell_takes(tmp_path):
    path = saved(tmp_path / "run.json", "t5_qa_sft", "quick", 4.0)
    later = saved(tmp_path / "later.json", "t5_qa_sft", "quick", 9.0)
    assert estimates(QUICK, [tmp_path / "absent.json", path, later]) == {
        "t5_qa_sft": Estimate(seconds=8.0, gib=1.5, source="run.json, a CPU")
    }


@pytest.mark.parametrize(("profile", "outcome"), [("full", "passed"), ("quick", "error"), ("quick", "stopped")])
def test_another_profile_or_a_cell_that_did_not_finish_says_nothing(tmp_path, profile, outcome):
    assert estimates(QUICK, [saved(tmp_path / "run.json", "t5_qa_sft", profile, 4.0, outcome=outcome)]) == {}


def test_a_footprint_says_how_long_a_full_training_takes(tmp_path):
    path = saved(tmp_path / "h100" / "footprint.json", "bert_sum_lora", "footprint", 9.0, rate=100.0)
    found = estimates(list(FULL.values()), [path])["bert_sum_lora"]
    assert found.seconds == FULL_CAPS["sum"].train * 3 / 100  # three epochs at 100 rows a second
    assert found.source == "h100/footprint.json, training alone"
    assert estimates(QUICK, [path])["bert_sum_lora"].seconds is None


def test_rows_of_a_full_cell_are_the_splits_under_the_cap():
    assert planned_rows(FULL["bert_sa_lora"]) == 100_000
    assert planned_rows(FULL["bert_qa_lora"]) == round(87_599 * 0.9)
    assert planned_updates(FULL["bert_sa_lora"]) == 3 * 6250  # batches of 16
    assert planned_updates(FULL["gpt2_qa_lora"]) == 3 * 9855  # 78,839 rows, 2 x 4 an update


def test_the_table_closes_with_the_sum():
    table = lines(QUICK[:2], {QUICK[0].id: Estimate(seconds=90, gib=0.5, source="run.json")})
    assert table[1].split() == ["bert_sum_lora", "80", "16", "x", "1", "fp32", "128+28", "1.5", "0.50", "run.json"]
    assert table[2].endswith("-         -  never measured")
    assert table[3] == "2 cells, 2 min one after the other for the 1 with an estimate"
