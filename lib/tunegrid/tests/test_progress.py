import json
from types import SimpleNamespace

import pytest

import fixtures.progress as plugin
from fixtures.screen import bars
from fixtures.session import ROW
from tunegrid.results.estimates import Estimate, pace_of, seconds_left
from tunegrid.run.progress import Progress, Rhythm, Standing


@pytest.fixture
def watch():
    """A clock to set by hand, and what was told so far."""
    state = {"now": 100.0}
    told = []
    return state, told, Progress("bert_sa_sft", told.append, now=lambda: state["now"])


def standing(seconds, stage="train", done=1, total=1000):
    return Standing(name="bert_sa_sft", stage=stage, done=done, total=total, seconds=seconds)


def lined(rhythm, seconds, **fields):
    """Those of these seconds at which a line is due."""
    return [second for second in seconds if rhythm.due([standing(second, **fields)])]


def test_progress_is_told_four_times_a_second(watch):
    state, told, progress = watch
    for tick in range(9):
        state["now"] = 100.0 + tick / 8
        progress.at(tick + 1, 10)
    assert [each.done for each in told] == [1, 3, 5, 7, 9]


def test_a_new_stage_counts_its_own_seconds(watch):
    state, told, progress = watch
    state["now"] = 104.0
    stage = progress.stage("evaluate")
    state["now"] = 106.0
    stage.at(1, 4)
    assert told == [Standing(name="bert_sa_sft", stage="evaluate", done=1, total=4, seconds=2.0)]


def test_a_log_has_no_line_under_five_seconds_then_one_every_fifteen():
    assert lined(Rhythm(), range(60)) == [5, 20, 35, 50]


def test_a_standing_that_is_read_twice_has_one_line():
    assert lined(Rhythm(), [6, 6, 6]) == [6]


def test_a_stage_that_begins_anew_waits_five_seconds_again():
    rhythm = Rhythm()
    assert lined(rhythm, range(30), stage="evaluate") == [5, 20]
    assert lined(rhythm, range(12), stage="evaluate") == [5]


def test_the_end_and_what_has_not_begun_need_no_line():
    assert lined(Rhythm(), range(60), done=80, total=80) == []
    assert lined(Rhythm(), range(60), done=0, total=0) == []


def test_a_line_says_what_where_and_how_long_still():
    half = Standing(name="bert_sa_sft", stage="train", done=40, total=80, detail="loss 0.310", seconds=10.0)
    assert half.line == "bert_sa_sft  train 40/80  loss 0.310  10 s left"


def test_a_line_without_detail_has_no_gap():
    assert standing(6.0, stage="evaluate", done=1, total=4).line == "bert_sa_sft  evaluate 1/4  18 s left"


def test_bars_of_60_columns_hold_cell_update_loss_and_rate():
    training = Standing(name="bert_sum_qlora", stage="train", done=120, total=240, detail="loss 0.310  1687 samples/s")
    loading, narrow = Standing(name="t5_sa_sft"), bars([training], 60)
    assert narrow == ["bert_sum_qlora ████▌     120/240  loss 0.310  1687 samples/s"]  # half of nine
    assert [len(line) <= 60 and line.endswith("load") for line in bars([training, loading], 60)] == [False, True]
    assert bars([training], 60, ascii_only=True) == ["bert_sum_qlora ####5     120/240  loss 0.310  1687 samples/s"]


def test_time_left_is_what_earlier_runs_took_less_what_is_spent():
    assert seconds_left([10.0, 20.0, 30.0], [0.0, 5.0, 40.0], workers=1) == 25.0  # 10 + 15 + 0
    assert seconds_left([10.0, 20.0, 30.0], [0.0, 5.0, 40.0], workers=2) == 15.0  # the longest alone
    assert seconds_left([10.0, 10.0, 10.0], [0.0, 0.0, 0.0], workers=2) == 15.0
    assert seconds_left([10.0, None], [0.0, 0.0], workers=1) is None
    assert seconds_left([], [], workers=2) == 0.0


def test_time_left_goes_by_the_pace_of_the_cells_that_have_ended():
    assert pace_of([(30.0, 20.0), (15.0, 10.0), (9.0, None)]) == 1.5  # 45 seconds of estimated 30
    assert pace_of([]) == pace_of([(9.0, None)]) == 1.0
    assert seconds_left([10.0, 20.0], [0.0, 6.0], workers=1, pace=1.5) == 39.0  # 15 + 24


def report_of(status, *seconds, outcome="passed"):
    """A cell's report, with these seconds of its phases."""
    record = {"status": status, "memory": {"phases": {f"{place}": {"seconds": each} for place, each in enumerate(seconds)}}}
    row = {ROW: json.dumps(["key", {"extra_info": record}])}
    return SimpleNamespace(nodeid=f"{status} {seconds}", skipped=outcome == "skipped", **row)


def test_a_cell_that_ended_tells_the_pace_unless_it_broke_off_or_was_resumed(monkeypatch):
    known = {"a": Estimate(seconds=4.0), "b": Estimate(seconds=10.0)}
    monkeypatch.setattr(plugin, "known_estimates", lambda session, profile: known)
    fast, slow = report_of("passed", 1.0, 5.0), report_of("error", 0.5)
    resumed = report_of("passed", 100.0, outcome="skipped")
    plan = {fast.nodeid: "quick a", slow.nodeid: "quick a", resumed.nodeid: "quick a", "waits": "quick b"}
    foot = plugin.Foot(SimpleNamespace(option=lambda name, default=None: None, places=1), plan)
    assert foot.line([], plan) == "0 of 4 done, 22 s left"
    for report in (fast, slow, resumed):
        foot.end(report)
    assert foot.line([], plan) == "3 of 4 done, 15 s left"  # six seconds where four were estimated
