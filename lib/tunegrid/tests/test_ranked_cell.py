"""A cell on two ranks as a user runs it: one row, one table; and what becomes of it when a rank is killed."""

import json

import pytest

from fixtures.process import heard, killed
from tunegrid.tests import test_isolation
from tunegrid.tests.test_suite import run

one_gpu = test_isolation.one_gpu

CELLS = ("-m", "quick", "--cells", "bert_sa_lora,gpt2_sa_lora", "--max-steps", "3", "--ranks", "2")
KILLER = """
import os, signal, time
from pathlib import Path
import pytest

@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    value = yield
    if fixturedef.argname == "trainer" and os.environ.get("RANK") == "1" and "gpt2_sa_lora" in request.node.nodeid:
        update = value.update
        value.update = lambda group: (update(group), kill())  # the other rank waits for its gradients
    return value

def kill():
    Path(os.environ["KILLED"]).write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)

def pytest_runtest_logreport(report):
    if report.failed and "RANK" not in os.environ:
        Path(os.environ["TOLD"]).write_text(str(time.time()))
"""
TOLD_BY_TORCHRUN = """
============================================================
pytest FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-25_18:00:00
  host      : here
  rank      : 2 (local_rank: 2)
  exitcode  : {second} (pid: 12)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-25_18:00:00
  host      : here
  rank      : 0 (local_rank: 0)
  exitcode  : {first} (pid: 10)
  error_file: <N/A>
"""


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """Two cells on two ranks each; a rank of the second one is killed in mid-training."""
    folder = tmp_path_factory.mktemp("ranked")
    (folder / "killer.py").write_text(KILLER)
    when = {name: folder / name.lower() for name in ("KILLED", "TOLD")}
    variables = {name: str(path) for name, path in when.items()} | {"PYTHONPATH": str(folder)}
    answer = run(folder, *CELLS, "-p", "killer", timeout=600, **variables)
    return *answer, {name: float(path.read_text()) for name, path in when.items() if path.exists()}


def test_a_cell_on_two_ranks_leaves_one_row_that_says_so(ranked):
    _, output, records, _ = ranked
    [record] = [record for record in records if record["cell"] == "bert_sa_lora"]
    assert record["status"] == "passed", output
    assert (record["ranks"]["count"], record["ranks"]["backend"]) == (2, "gloo")
    assert [rank["train_samples"] for rank in record["ranks"]["each"]] == [24, 24]  # 48 rows in all
    assert all(rank["rss_peak_gib"] > 0 for rank in record["ranks"]["each"])
    assert {"ranks_train_as_one", "ranks_end_alike"} <= {finding["name"] for finding in record["audits"]}


def test_a_killed_rank_ends_its_cell_in_one_sentence_within_30_seconds(ranked):
    code, output, _, when = ranked
    assert code == 1
    assert "rank 1 of the cell was ended by SIGKILL, as where memory runs out (gpt2_sa_lora, quick, seed 0)" in output
    assert "Traceback" not in output
    assert when["TOLD"] - when["KILLED"] < 30
    assert output.count("1 of 2 cells passed") == 1


def report(outcome, stop, when="call"):
    return json.dumps({"outcome": outcome, "stop": stop, "when": when})


PASSED = report("passed", 1.0, "setup"), report("passed", 2.0), report("passed", 3.0, "teardown")
BROKEN_OFF = report("failed", 2.5, "setup"), report("passed", 3.0, "teardown")
CAUSE = report("failed", 2.0, "setup"), report("passed", 2.6, "teardown")


def test_the_first_ranks_reports_are_the_tests():
    assert heard([PASSED, PASSED], "") is PASSED
    assert heard([PASSED, CAUSE], TOLD_BY_TORCHRUN.format(first=0, second=-9)) is PASSED


def test_of_ranks_that_failed_the_one_that_failed_first_is_heard():
    assert heard([BROKEN_OFF, CAUSE], "") is CAUSE
    assert heard([(), CAUSE], "") is CAUSE
    assert heard([(), ()], "") == ()


def test_where_a_rank_was_killed_nobody_else_is_heard():
    assert heard([BROKEN_OFF, ()], TOLD_BY_TORCHRUN.format(first=1, second=-9)) == ()
    assert heard([BROKEN_OFF, CAUSE], TOLD_BY_TORCHRUN.format(first=-15, second=1)) is CAUSE


def test_what_torchrun_says_names_the_rank_and_the_signal():
    assert killed(TOLD_BY_TORCHRUN.format(first=-15, second=-9)) == (2, "SIGKILL")
    assert killed(TOLD_BY_TORCHRUN.format(first=-11, second=1)) == (0, "SIGSEGV")
    assert killed(TOLD_BY_TORCHRUN.format(first=-15, second=1)) is None


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        (("-n", "2"), "leave out -n, cells run one after the other"),
        (("--no-isolate",), "leave out --no-isolate"),
        (("--pdb",), "leave out --pdb, which attends to one process"),
        (("-m", "footprint"), "leave out -m footprint, only cells of quick, zoo and full run on ranks"),
        (("-m", "controls and zoo"), "leave out -m controls, only cells of quick, zoo and full run on ranks"),
        (("-m", "full", "--device", "cuda:0"), "say --device cuda in place of cuda:0, each process takes another GPU"),
        (("-m", "full"), "there are GPUs for --ranks 1, or say --device cpu"),
    ],
)
def test_what_ranks_cannot_go_with_is_one_sentence_before_anything_runs(tmp_path, one_gpu, options, way_out):
    code, output, _ = run(tmp_path, "--ranks", "2", *options, PATH=one_gpu)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert f"--ranks 2 runs each cell on processes of its own: {way_out}" in output
    assert "collected" not in output


def test_no_rank_is_no_number_of_ranks(tmp_path):
    code, output, _ = run(tmp_path, "--ranks", "0")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "--ranks '0' is not a whole number of at least 1" in output


def test_a_cell_whose_weights_are_shared_out_says_so_and_what_cannot_be_is_one_sentence(tmp_path):
    cells = ("-m", "quick", "--cells", "gpt2_sum_lora,gpt2_sum_qlora", "--max-steps", "3", "--ranks", "2", "--fsdp")
    code, output, records = run(tmp_path, *cells, timeout=300)
    assert code == 1
    [record] = [record for record in records if record["cell"] == "gpt2_sum_lora"]
    assert (record["status"], record["ranks"]["fsdp"]) == ("passed", True), output
    assert "gpt2_sum_qlora cannot be shared out: FSDP takes packed weights only where bnb_4bit_quant_storage" in output


def test_weights_are_shared_out_among_ranks_only(tmp_path):
    code, output, _ = run(tmp_path, "-m", "quick", "--fsdp")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "--fsdp shares a cell's weights out among ranks: say how many with --ranks N" in output
