"""What a session shows while it trains: in a pipe, and on a terminal, which pyte emulates. The trainings are sleeps."""

import contextlib
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import textwrap
from fcntl import ioctl

import pyte
import pytest
from _pytest._io import TerminalWriter

from tunegrid import ROOT

PLUGINS = ("options", "session", "selection", "planning", "progress")
TRAININGS = """
    import time
    import pytest

    @pytest.mark.parametrize("name", ["bert_sa_lora", "gpt2_sum_qlora", "t5_qa_sft"])
    def test_trains(progress, name):
        for update in range(1, 11):
            progress.at(update, 12, "loss 0.310  85 samples/s")
            time.sleep(0.3 if name == "t5_qa_sft" else 0.08)
        assert name != "gpt2_sum_qlora"
"""
ROWS = """
    import pytest
    import tunegrid.run.progress
    from fixtures.session import attach

    tunegrid.run.progress.FIRST_SECONDS, tunegrid.run.progress.EVERY_SECONDS = 0.1, 0.3

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(item, call):
        report = yield
        if call.when == "call":
            attach(report, None, {"extra_info": {"main_score": "f1", "scores": {"f1": 85.5}, "bounds": {"f1": 83.6}}})
        return report
"""
BAR = "█"
LINE = re.compile(r"(bert_sa_lora|gpt2_sum_qlora|t5_qa_sft)  train \d+/12  loss 0.310  85 samples/s  \d+ s left")
DOTS = re.compile(r"(test_trains.py )?[.F]+( +\[ *\d+%\])?")


@pytest.fixture
def trainings(tmp_path):
    """A folder whose three tests train, and a command and an environment to run them in it."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_trains.py").write_text(textwrap.dedent(TRAININGS))
    (tmp_path / "conftest.py").write_text(textwrap.dedent(ROWS))
    plugins = [word for name in PLUGINS for word in ("-p", f"fixtures.{name}")]
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    keep |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", "PYTHONUTF8": "1"}
    return tmp_path, [sys.executable, "-m", "pytest", *plugins], keep


def piped(trainings, *options):
    """The lines of a run in a pipe."""
    folder, command, environment = trainings
    run = subprocess.run([*command, *options], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    return run.stdout.splitlines()


def at_a_terminal():
    """As a shell starts a command: what it reads from is its terminal, and Ctrl-C ends it, also where a job ignores Ctrl-C."""
    ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def on_terminal(trainings, *options, interrupt_at=None, **variables):
    """The screen that a run leaves, 60 columns wide, and all that was written to it."""
    folder, command, environment = trainings
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 60, 0, 0))
    screen, written = pyte.Screen(60, 60), b""
    stream = pyte.ByteStream(screen)
    run = subprocess.Popen(
        [*command, *options], cwd=folder, env=environment | variables, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=at_a_terminal,
    )  # fmt: skip
    os.close(theirs)
    with contextlib.suppress(OSError):  # the terminal's other end was closed
        while data := os.read(ours, 65536):
            stream.feed(data)
            written += data
            if interrupt_at and re.search(interrupt_at, written):
                os.write(ours, b"\x03")
                interrupt_at = None
    os.close(ours)
    run.wait()
    lines = [line.rstrip() for line in screen.display]
    return lines, written.decode(), screen.cursor


def shown(lines, name):
    """The lines that begin with a name."""
    return [line for line in lines if line.startswith(name)]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_in_a_pipe_each_line_is_whole(trainings, workers):
    lines = piped(trainings, "-n", workers)
    assert len([line for line in lines if LINE.fullmatch(line)]) >= 5, "\n".join(lines)
    assert [line for line in lines if "samples/s" in line and "progress.at" not in line and not LINE.fullmatch(line)] == []
    dots = [line for line in lines if DOTS.fullmatch(line)]
    assert sorted("".join(re.sub(r"test_trains.py|[^.F]", "", line) for line in dots)) == ["."] * 2 + ["F"]
    assert "[100%]" in dots[-1]


def test_quiet_shows_no_progress(trainings):
    lines = piped(trainings, "-q")
    assert [line for line in lines if LINE.search(line)] == []
    assert DOTS.fullmatch(lines[0])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_verbose_has_a_line_with_the_score_for_each_finished_cell(trainings, workers):
    lines = piped(trainings, "-v", "-n", workers)
    finished = [line for line in lines if re.search(r"(PASSED|FAILED) f1 85.5 \(bound 83.6\)", line)]
    assert len(finished) == 3
    assert all("test_trains.py::test_trains[" in line for line in finished)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_terminal_ends_with_the_finished_cells_and_no_bar(trainings, workers):
    lines, written, cursor = on_terminal(trainings, "-n", workers)
    assert re.search(rf"bert_sa_lora +{BAR}+\S* +\d+/12  loss 0.310  85 samples/s", written)
    assert f"{2 if workers == '2' else 1} of 3 done" in written
    assert shown(lines, "bert_sa_lora") == ["bert_sa_lora     f1 85.5 (bound 83.6)  passed"]
    assert shown(lines, "gpt2_sum_qlora") == ["gpt2_sum_qlora   f1 85.5 (bound 83.6)  failed"]
    assert shown(lines, "t5_qa_sft") == ["t5_qa_sft        f1 85.5 (bound 83.6)  passed"]
    assert not [line for line in lines if BAR in line or "of 3 done" in line or DOTS.fullmatch(line)]
    assert "FAILED test_trains.py::test_trains[gpt2_sum_qlora]" in "".join(lines)
    assert not cursor.hidden


@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c_takes_the_bars_down(trainings, workers):
    lines, written, cursor = on_terminal(trainings, "-n", workers, interrupt_at=rb"(?s)passed.* of 3 done")
    assert BAR in written
    assert not [line for line in lines if BAR in line or "of 3 done" in line]
    assert shown(lines, "bert_sa_lora") == ["bert_sa_lora     f1 85.5 (bound 83.6)  passed"]
    assert any("KeyboardInterrupt" in line for line in lines), "\n".join(lines)
    assert not cursor.hidden


def test_a_dumb_terminal_reads_like_a_log(trainings):
    _, written, _ = on_terminal(trainings, TERM="dumb")
    assert "\x1b[" not in written.replace("\x1b[0m", "")
    assert LINE.search(written)


def test_without_colour_there_are_bars(trainings):
    _, written, _ = on_terminal(trainings, NO_COLOR="1")
    assert BAR in written
    assert not re.search(r"\x1b\[\d+m", written)


def test_the_writer_still_counts_its_line_where_we_set_it():
    assert "_current_line" in vars(TerminalWriter())
