"""How many threads a process has: what the user gives, what a container leaves, and its share of that."""

import os

import pytest

from fixtures.selection import pytest_xdist_auto_num_workers
from tunegrid import machine
from tunegrid.machine import SHARED_OUT, announce_threads, shared_out, thread_share


@pytest.fixture
def environment(monkeypatch):
    """Four cores for one process, and nothing said of threads."""
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", SHARED_OUT, "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.setenv(name, "")  # so that it is taken back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("TUNEGRID_CORES", "4")
    return monkeypatch


@pytest.mark.parametrize(("given", "threads"), [("1", 1), ("3,1", 3), ("", 4), ("0", 4), ("many", 4)])
def test_threads_that_the_user_gives_are_heard(environment, given, threads):
    environment.setenv("OMP_NUM_THREADS", given)
    assert thread_share(None) == threads
    assert thread_share(1) == 1  # a quick cell's own, which decides its digits


def test_threads_that_the_suite_announced_are_not_the_users(environment):
    announce_threads(1)  # a quick cell in this process
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert thread_share(None) == 4
    assert thread_share(None, ranks=2) == 2  # in a process that has inherited it all


def test_what_the_user_gave_stays_the_users_after_it_was_announced(environment):
    environment.setenv("OMP_NUM_THREADS", "2")
    announce_threads(2)
    assert thread_share(None) == 2
    assert SHARED_OUT not in shared_out(os.environ)


def test_the_one_thread_that_torchrun_gives_each_rank_is_not_the_users(environment):
    for name, value in shared_out(os.environ).items():
        environment.setenv(name, value)
    environment.setenv("OMP_NUM_THREADS", "1")  # as torchrun sets it where it finds none
    assert thread_share(None, ranks=2) == 2


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000\n", 1), ("400000 100000\n", 4), ("5000 100000\n", 1), ("max 100000\n", 6)]
)
def test_a_containers_quota_limits_its_processes(environment, tmp_path, quota, cores):
    environment.delenv("TUNEGRID_CORES")
    environment.setattr(os, "sched_getaffinity", lambda _: range(6))
    environment.setattr(machine, "CPU_QUOTA", tmp_path / "cpu.max")
    assert machine.usable_cores() == 6  # no such file: no container
    machine.CPU_QUOTA.write_text(quota)
    assert machine.usable_cores() == cores


def test_as_many_workers_start_as_there_are_cores(environment):
    def started(workers):
        asking = pytest_xdist_auto_num_workers()
        next(asking)
        with pytest.raises(StopIteration) as answered:
            asking.send(workers)
        return answered.value.value

    environment.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    assert (started(64), started(2)) == (4, 2)
    environment.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "64")
    assert started(64) == 64
