import pytest

from lib.run.progress import Progress


@pytest.fixture
def watch():
    """A clock to set by hand, and the lines written so far."""
    state = {"now": 100.0}
    lines = []
    return state, lines, Progress("bert_sa_sft", lines.append, now=lambda: state["now"])


def written_at(watch, seconds):
    """Those of these seconds at which a line was written."""
    state, lines, progress = watch
    line_seconds = []
    for second in seconds:
        state["now"] = 100.0 + second
        before = len(lines)
        progress.at(1 + second, 1000)
        line_seconds += [second] * (len(lines) - before)
    return line_seconds


def test_nothing_under_five_seconds_then_a_line_then_one_every_fifteen(watch):
    assert written_at(watch, range(60)) == [5, 20, 35, 50]


def test_a_new_stage_waits_five_seconds_again(watch):
    state, lines, progress = watch
    state["now"] = 104.0
    stage = progress.stage("evaluate")
    assert written_at((state, lines, stage), range(4, 12)) == [9]


def test_a_line_says_what_where_and_how_long_still(watch):
    state, lines, progress = watch
    state["now"] = 110.0
    progress.at(40, 80, "loss 0.310")
    assert lines == ["bert_sa_sft  train 40/80  loss 0.310  10 s left"]  # half done in 10 s


def test_a_line_without_detail_has_no_gap(watch):
    state, lines, progress = watch
    stage = progress.stage("evaluate")
    state["now"] = 106.0
    stage.at(1, 4)
    assert lines == ["bert_sa_sft  evaluate 1/4  18 s left"]


def test_the_end_needs_no_line(watch):
    state, lines, progress = watch
    state["now"] = 200.0
    progress.at(80, 80)
    assert lines == []
