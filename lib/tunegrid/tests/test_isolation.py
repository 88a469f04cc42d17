"""Memory of one cell is its own: what it held is gone before the next one loads, or it has a process of its own."""

import json
import os

import pytest

from fixtures.isolation import reports_of
from fixtures.process import Ended, why
from tunegrid.tests.test_suite import run

CELLS = ("-m", "quick", "--cells", "bert_sa_lora,gpt2_sa_lora", "--set", "max_steps=2")
WATCHER = """
import weakref
import pytest

models = []

@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    value = yield
    if fixturedef.argname == "model":
        models.append((request.node.name, weakref.ref(value)))
    return value

def pytest_runtest_logreport(report):
    if report.when == "teardown":
        print("alive:", [name for name, model in models if model() is not None], "of", len(models))
"""
KILLER = """
import os, signal, sys

def pytest_runtest_setup(item):
    if any(word.startswith("--child") for word in sys.argv) and "bert_sa_lora" in item.nodeid:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two cells in one process."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "watcher.py").write_text(WATCHER)
    return run(folder, *CELLS, "-p", "watcher", "-s", PYTHONPATH=str(folder))


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """The same cells in a process each; one of them is killed."""
    folder = tmp_path_factory.mktemp("apart")
    (folder / "killer.py").write_text(KILLER)
    return run(folder, *CELLS, "--isolate=yes", "-p", "killer", PYTHONPATH=str(folder))


def test_a_cells_model_is_gone_before_the_next_one_loads(together):
    code, output, records = together
    assert (code, len(records)) == (0, 2), output
    assert "alive: [] of 1" in output
    assert "alive: [] of 2" in output


def test_an_isolated_cell_has_the_same_scores_in_the_same_file(together, apart):
    _, output, records = apart
    [alone] = [record for record in records if record["cell"] == "gpt2_sa_lora"]
    [beside] = [record for record in together[2] if record["cell"] == "gpt2_sa_lora"]
    assert alone["status"] == "passed", output
    for name in ("scores", "parameters", "data", "model", "examples"):
        assert alone[name] == beside[name]
    assert alone["training"]["losses"] == beside["training"]["losses"]


def test_a_killed_process_is_an_error_of_its_cell_in_one_sentence(apart):
    code, output, _ = apart
    assert code == 1
    sentence = "the cell's process was ended by SIGKILL, as where memory runs out (bert_sa_lora, quick, seed 0)"
    assert sentence in output
    assert "Traceback" not in output


def test_a_process_that_ends_early_says_its_last_line():
    ended = Ended(returncode=4, output="collected 0 items\nno such test\n\n")
    assert why(ended) == "the cell's process ended with exit code 4 before its test did: no such test"


def test_a_skip_comes_back_as_pytest_wants_it(request):
    skipped = pytest.TestReport("a.py::b", ("a.py", 1, "b"), {}, "skipped", ("a.py", 1, "Skipped: why"), "setup")
    over = pytest.TestReport("a.py::b", ("a.py", 1, "b"), {}, "passed", None, "teardown")
    sent = (request.config.hook.pytest_report_to_serializable(config=request.config, report=one) for one in (skipped, over))
    [first, _] = reports_of(request.node, Ended(returncode=0, reports=tuple(map(json.dumps, sent))))
    assert first.longrepr == ("a.py", 1, "Skipped: why")


@pytest.fixture
def one_gpu(tmp_path, monkeypatch):
    """A machine whose nvidia-smi lists one GPU."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Tesla T4, 15360 MiB, 550.54'\n")
    program.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("device", [(), ("--device", "cuda:0")], ids=["any", "wished"])
def test_more_workers_than_gpus_are_refused_before_anything_runs(tmp_path, one_gpu, device):
    code, output, _ = run(tmp_path, "-m", "footprint", "-n", "2", *device, PATH=one_gpu)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "2 workers want a GPU each, and there are 1 for them; say -n 1, or measure beside each other" in output
    assert "collected" not in output
