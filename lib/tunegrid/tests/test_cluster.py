"""Cells on a Ray cluster of three nodes, or of three hosts, while processes, workers, nodes, cables and the driver fail.

`pip install '.[cluster]'`, then `pytest lib/tunegrid/tests/test_cluster.py -m cluster`.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack, suppress

import pytest

from tunegrid import ROOT
from tunegrid.tests.hosts import STORE_BYTES, hosts_of, why_no_hosts
from tunegrid.tests.test_suite import SMALL

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[cluster]'")
pytestmark = pytest.mark.cluster
CELLS = ("bert_sa_lora", "gpt2_sa_lora", "gpt2_sa_sft", "t5_sa_sft")
QUICK = ("-m", "quick", "--set", "max_steps=4")
PATIENCE_SECONDS = 1500
# Where other work leaves little time, Ray takes slow processes for dead ones, and its workers step back behind all others.
PATIENT = {
    "RAY_worker_niceness": "0",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_health_check_failure_threshold": "20",
}
# What happens to a cell is in a file of its name: once or always, to its process or to its worker, or it waits for a file.
MISHAPS = """
import os, signal, sys, time
from pathlib import Path

HERE = Path(__file__).parent
SEEN = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "RAY_RAYLET_PID")

def pytest_configure():
    from tunegrid.run import progress
    progress.FIRST_SECONDS, progress.EVERY_SECONDS = 0.0, 0.5

def pytest_runtest_setup(item):
    isolated = any(word.startswith("--child=") for word in sys.argv)
    cell = item.callspec.id.removeprefix("full-")
    if not isolated:
        return
    log = HERE / f"{cell}.starts"
    with log.open("a") as file:
        print(*(os.environ.get(name) for name in SEEN), os.uname().nodename, file=file)
    mishap = HERE / f"{cell}.mishap"
    often, _, who = mishap.read_text().partition(" ") if mishap.exists() else ("never", "", "")
    if often == "always" or (often == "once" and len(log.read_text().splitlines()) == 1):
        os.kill(os.getppid() if who == "worker" else os.getpid(), signal.SIGKILL)
        time.sleep(60)
    while often == "wait" and not (HERE / "go").exists():
        time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    """The folder of the plugin that makes mishaps happen."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "mishaps.py").write_text(MISHAPS)
    return folder


@pytest.fixture
def mishaps(plugins):
    """That folder, with nothing left of other tests."""
    for path in [*plugins.glob("*.starts"), *plugins.glob("*.mishap"), *plugins.glob("go")]:
        path.unlink()
    return plugins


@pytest.fixture(scope="module")
def cluster(plugins):
    """A head that runs no cell, and two nodes with a processor and a made-up GPU each."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("PYTHONPATH", str(plugins))
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", **PATIENT}.items():
            patch.setenv(name, value)
        from ray._private import services
        from ray.cluster_utils import Cluster

        patch.setattr(services, "get_node", patiently(services.get_node))
        nodes = Cluster()
        add_node(nodes, num_cpus=0, include_dashboard=False)
        for _ in range(2):
            add_node(nodes, num_cpus=1, num_gpus=1)
        yield nodes
        nodes.shutdown()


def patiently(get_node):
    """A node may take longer to register than the 30 seconds that Ray gives it."""

    def get(*arguments):
        for _ in range(PATIENCE_SECONDS):
            with suppress(RuntimeError):
                return get_node(*arguments)
            time.sleep(1)
        return get_node(*arguments)

    return get


def add_node(cluster, **resources):
    """A node whose agents have their ports from here: Ray waits only seconds for the ports that they choose themselves."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    return cluster.add_node(
        object_store_memory=STORE_BYTES, **dict(zip(names, free_ports(len(names)), strict=True)), **resources
    )


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def start(folder, *options, prefix=(), **variables):
    """A session of its own; `prefix` are words before the command, which say where it runs."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "RAY_"))}
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "pytest", f"--benchmark-json={folder / 'run.json'}", *SMALL, *options],
        cwd=ROOT, env=keep | PATIENT | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def end(session, folder):
    """Exit code, output, and records by cell."""
    output, _ = session.communicate(timeout=PATIENCE_SECONDS)
    path = folder / "run.json"
    rows = json.loads(path.read_text())["benchmarks"] if path.exists() else []
    assert len({row["fullname"] for row in rows}) == len(rows), "a row is there twice"
    return session.returncode, output, {row["extra_info"]["cell"]: row["extra_info"] for row in rows}


def on(cluster, plugins, folder, *options, cells=CELLS):
    """A session whose cells run on the cluster."""
    where = ("--engine", "ray", "-p", "mishaps", "--cells", ",".join(cells))
    return start(folder, *QUICK, *where, *options, PYTHONPATH=str(plugins), RAY_ADDRESS=cluster.address)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same cells in one process."""
    folder = tmp_path_factory.mktemp("alone")
    code, output, records = end(start(folder, *QUICK, "--cells", ",".join(CELLS), "-n", "0"), folder)
    assert code == 0, output
    return records


def assert_equal(records, alone):
    """What a cell computes does not depend on where it ran."""
    for cell, record in records.items():
        assert record["status"] == alone[cell]["status"] == "passed"
        for name in ("scores", "parameters", "data", "model", "examples", "recipe"):
            assert record[name] == alone[cell][name], (cell, name)
        assert record["training"]["losses"] == alone[cell]["training"]["losses"]
        assert record["device"]["threads"] == 1


def starts(plugins, cell):
    """What each process of a cell saw."""
    return [line.split() for line in (plugins / f"{cell}.starts").read_text().splitlines()]


def wait_for(condition):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE_SECONDS
        time.sleep(0.1)


def test_processes_and_workers_that_are_killed_cost_no_row(cluster, mishaps, tmp_path, alone):
    (mishaps / "bert_sa_lora.mishap").write_text("once process")
    (mishaps / "gpt2_sa_lora.mishap").write_text("once worker")
    (mishaps / "gpt2_sa_sft.mishap").write_text("always process")
    code, output, records = end(on(cluster, mishaps, tmp_path), tmp_path)
    assert code == 1
    [broken] = [cell for cell, record in records.items() if record["status"] == "error"] or [None]
    assert "was ended by SIGKILL, as where memory runs out (3 times) (gpt2_sa_sft, quick, seed 0)" in output
    assert (broken, set(records) | {"gpt2_sa_sft"}) in [("gpt2_sa_sft", set(CELLS)), (None, set(CELLS))]
    records.pop("gpt2_sa_sft", None)
    assert_equal(records, alone)
    assert {cell: len(starts(mishaps, cell)) for cell in CELLS} == dict(zip(CELLS, (2, 2, 3, 1), strict=True))
    assert re.search(r"Ray ran again.*: .*bert_sa_lora \(2 starts\)", output)
    assert not re.search(r"Traceback|raylet|Task do failed", output), output


def test_a_node_that_is_lost_costs_no_row(cluster, mishaps, tmp_path, alone):
    (mishaps / "bert_sa_lora.mishap").write_text("wait")
    session = on(cluster, mishaps, tmp_path)
    wait_for((mishaps / "bert_sa_lora.starts").exists)
    [[_, _, raylet, _]] = starts(mishaps, "bert_sa_lora")
    [node] = [node for node in cluster.worker_nodes if str(node.all_processes["raylet"][0].process.pid) == raylet]
    cluster.remove_node(node, allow_graceful=False)
    (mishaps / "go").touch()
    code, output, records = end(session, tmp_path)
    add_node(cluster, num_cpus=1, num_gpus=1)
    assert (code, set(records)) == (0, set(CELLS)), output
    assert_equal(records, alone)
    again = starts(mishaps, "bert_sa_lora")
    assert len(again) == 2
    assert again[1][2] != raylet
    assert "bert_sa_lora (2 starts)" in output


def test_a_driver_that_dies_has_kept_what_had_ended_and_resumes(cluster, mishaps, tmp_path, alone):
    (mishaps / "t5_sa_sft.mishap").write_text("wait")
    cache = {"TUNEGRID_CACHE": str(tmp_path / "cache"), "RAY_ADDRESS": cluster.address}
    where = ("--engine", "ray", "-p", "mishaps", "--cells", ",".join(CELLS))
    first = start(tmp_path, *QUICK, *where, PYTHONPATH=str(mishaps), **cache)
    journal = tmp_path / "cache" / "journal"
    wait_for(lambda: sum(len(path.read_text().splitlines()) for path in journal.glob("*.jsonl")) == 3)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (mishaps / "go").touch()
    before = {cell: len(starts(mishaps, cell)) for cell in CELLS if cell != "t5_sa_sft"}
    second = start(tmp_path, *QUICK, *where, "--resume", PYTHONPATH=str(mishaps), **cache)
    code, output, records = end(second, tmp_path)
    assert (code, set(records)) == (0, set(CELLS)), output
    assert "resumed 3 cells that had passed with all the same" in output
    assert {cell: len(starts(mishaps, cell)) for cell in before} == before
    assert_equal(records, alone)


def test_a_full_object_store_costs_no_row(cluster, mishaps, tmp_path, alone):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        try:
            held = [ray.put(os.urandom(10 * 2**20)) for _ in range(2 * STORE_BYTES // (10 * 2**20))]
            fill = ray.remote(num_cpus=1)(lambda: os.urandom(STORE_BYTES // 2))
            held += [fill.options(scheduling_strategy="SPREAD").remote() for _ in range(4)]
            ray.wait(held, num_returns=len(held), fetch_local=False, timeout=120)
            code, output, records = end(on(cluster, mishaps, tmp_path, cells=CELLS[:2]), tmp_path)
        finally:
            ray.shutdown()
    assert (code, set(records)) == (0, set(CELLS[:2])), output
    assert_equal(records, alone)


def test_ray_gives_each_cell_a_gpu_and_the_drivers_own_choice_stays_here(cluster, mishaps, tmp_path):
    cells = ("bert_sa_lora", "gpt2_sa_lora", "gpt2_sa_sft")
    roots = (f"--data-root={tmp_path}", f"--checkpoint-root={tmp_path}")
    options = ("-m", "full", "--cells", ",".join(cells), "--engine", "ray", "-p", "mishaps")
    variables = {"PYTHONPATH": str(mishaps), "CUDA_VISIBLE_DEVICES": "5", "RAY_ADDRESS": cluster.address}
    session = start(tmp_path, *options, *roots, "-rs", **variables)
    code, output, _ = end(session, tmp_path)
    assert code == 0, output
    assert output.count("full cells need a CUDA device and there is none") == 1  # the made-up ones are none
    assert "3 skipped" in output
    assert [starts(mishaps, cell)[0][:2] for cell in cells] == [["0", "1"]] * 3


def test_ray_starts_itself_and_says_only_what_the_suite_says(mishaps, tmp_path, alone):
    cells = CELLS[:2]
    options = (*QUICK, "--cells", ",".join(cells), "--engine", "ray", "-p", "mishaps")
    code, output, records = end(start(tmp_path, *options, PYTHONPATH=str(mishaps)), tmp_path)
    assert (code, set(records)) == (0, set(cells)), output
    assert_equal(records, alone)
    assert not re.search(r"raylet|INFO|WARNING|pid=|Ray is|dashboard", output), output


def test_where_a_cell_on_a_node_stands_is_shown_here(mishaps, tmp_path):
    options = ("-m", "quick", "--set", "max_steps=150", "--cells", "t5_sa_lora", "--engine", "ray", "-p", "mishaps")
    code, output, _ = end(start(tmp_path, *options, PYTHONPATH=str(mishaps)), tmp_path)
    assert code == 0, output
    assert re.search(r"^t5_sa_lora  train \d+/150 ", output, re.MULTILINE), output


def test_a_cell_whose_worker_ray_ends_for_memory_each_time_is_an_error_and_not_tried_for_ever(tmp_path):
    options = (*QUICK, "--cells", CELLS[0], "--engine", "ray")
    little = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    code, output, _ = end(start(tmp_path, *options, **little), tmp_path)
    assert code == 1, output
    assert "Ray lost the cell: OutOfMemoryError: " in output
    assert "Traceback" not in output


def test_a_cluster_that_does_not_answer_is_one_sentence(tmp_path):
    code, output, _ = end(start(tmp_path, *QUICK, "--engine", "ray", RAY_ADDRESS="127.0.0.1:1"), tmp_path)
    assert code == pytest.ExitCode.USAGE_ERROR
    [line] = [line for line in output.splitlines() if line.startswith("ERROR: ")]
    assert line.startswith("ERROR: the Ray cluster at 127.0.0.1:1 cannot be joined: ")
    assert "Traceback" not in output


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, plugins):
    """A switch, the head, and two nodes without a checkout."""
    if missing := why_no_hosts():
        pytest.skip(missing)
    variables = {**PATIENT, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(plugins)}
    with hosts_of(tmp_path_factory.mktemp("hosts"), variables) as made:
        yield made


def on_head(head, mishaps, folder):
    """A session on the head, as the README tells it."""
    where = ("--engine", "ray", "-p", "mishaps", "--cells", ",".join(CELLS))
    return start(folder, *QUICK, *where, prefix=head.command(), PYTHONPATH=str(mishaps), RAY_ADDRESS="auto")


def places(mishaps, cell):
    """The hosts on which a cell was taken up, in order."""
    return [host for *_, host in starts(mishaps, cell)]


def test_cells_run_on_hosts_without_a_checkout_and_their_rows_come_home(hosts, mishaps, tmp_path, alone):
    _, head, *_ = hosts
    code, output, records = end(on_head(head, mishaps, tmp_path), tmp_path)
    assert (code, set(records)) == (0, set(CELLS)), output
    assert_equal(records, alone)
    assert {place for cell in CELLS for place in places(mishaps, cell)} == {"host2", "host3"}


def test_a_host_whose_cable_is_pulled_costs_no_row(hosts, mishaps, tmp_path, alone):
    switch, head, *_ = hosts
    (mishaps / "bert_sa_lora.mishap").write_text("wait")
    running = on_head(head, mishaps, tmp_path)
    wait_for((mishaps / "bert_sa_lora.starts").exists)
    [lost] = places(mishaps, "bert_sa_lora")
    switch("ip", "link", "set", f"port{lost[-1]}", "down")
    wait_for(lambda: len(places(mishaps, "bert_sa_lora")) == 2)  # while the lost one still waits
    (mishaps / "go").touch()
    code, output, records = end(running, tmp_path)
    assert (code, set(records)) == (0, set(CELLS)), output
    assert_equal(records, alone)
    assert set(places(mishaps, "bert_sa_lora")) == {"host2", "host3"}
    assert "bert_sa_lora (2 starts)" in output
