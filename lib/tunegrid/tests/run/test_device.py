import os

import pytest
import torch

from tunegrid import machine
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FULL_PROFILE
from tunegrid.machine import SHARE_VARIABLE, announce_threads, thread_share
from tunegrid.run.device import check_free, out_of_memory, resolve_device, resolve_precision
from tunegrid.tests.small import CPU

CUDA = torch.device("cuda:0")


def test_a_device_that_is_not_here_is_rejected_by_name():
    with pytest.raises(InputError, match="--device cuda:99: torch"):
        resolve_device("cuda:99")


@pytest.mark.parametrize(
    ("cell_id", "device", "has_bf16", "precision", "sentence"),
    [
        ("bert_sa_lora", CPU, True, "bf16", "bf16 in place of fp16, which a CPU only emulates"),
        ("bert_sa_lora", CUDA, True, "fp16", None),
        ("bert_sa_sft", CUDA, True, "fp32", None),
        (
            "bert_sa_qlora",
            CUDA,
            False,
            "fp32",
            "fp32 in place of bf16, for which this GPU has no units",
        ),
        ("bert_sa_qlora", CPU, False, "bf16", None),
        ("t5_sa_lora", CUDA, True, "bf16", "bf16 in place of fp16, in which T5 overflows"),
        (
            "t5_sa_lora",
            CUDA,
            False,
            "fp32",
            "fp32 in place of fp16, in which T5 overflows, and of bf16, "
            "for which this GPU has no units",
        ),
    ],
)
def test_a_precision_that_the_device_or_t5_cannot_take_gives_way_and_says_so(
    cell_id, device, has_bf16, precision, sentence, monkeypatch
):
    # T4, V100 and RTX 20 have none.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert resolve_precision(STUDY.cell(cell_id, FULL_PROFILE), device) == (precision, sentence)


@pytest.fixture
def fill_gpu(monkeypatch):
    """Fills a GPU of 80 GiB, of which this process and others take so much."""

    def fill(others_gib, own_gib):
        free = int((80 - others_gib - own_gib) * 2**30)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * 2**30))
        for name in ("memory_reserved", "memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, lambda device: int(own_gib * 2**30))

    return fill


def test_a_gpu_in_use_is_rejected_unless_the_user_allows_it(fill_gpu):
    fill_gpu(others_gib=16, own_gib=0)
    message = "cuda:0 is in use: 16.0 GiB of it are taken by others; .* --allow-busy-gpu"
    with pytest.raises(InputError, match=message):
        check_free(CUDA)
    check_free(CUDA, allow_busy=True)
    check_free(CPU)


def test_a_gpu_that_an_earlier_cell_has_not_given_back_is_rejected(fill_gpu):
    fill_gpu(others_gib=0, own_gib=1.4)
    message = "cuda:0 still holds 1.4 GiB of an earlier cell; --engine=process"
    with pytest.raises(InputError, match=message):
        check_free(CUDA, allow_busy=True)


def test_an_own_context_and_a_workspace_of_cublas_may_stay(fill_gpu):
    fill_gpu(others_gib=0.6, own_gib=1 / 32)
    check_free(CUDA)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
    ],
    ids=str,
)
def test_lack_of_memory_is_told_from_other_errors(error, is_memory):
    assert out_of_memory(error) is is_memory


# How many threads a process has: what the user gives, what a container leaves, and its share of
# that.


@pytest.fixture
def environment(monkeypatch):
    """Four cores for one process, and no number of threads given."""
    for name in (
        "OMP_NUM_THREADS",
        "RAYON_NUM_THREADS",
        SHARE_VARIABLE,
        "PYTEST_XDIST_WORKER_COUNT",
    ):
        monkeypatch.setenv(name, "")  # so that it is taken back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("TUNEGRID_CORES", "4")
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "threads"), [("1", 1), ("3,1", 3), ("", 4), ("0", 4), ("many", 4)]
)
def test_threads_that_the_user_gives_are_heard(environment, given, threads):
    environment.setenv("OMP_NUM_THREADS", given)
    assert thread_share(None) == threads
    assert thread_share(1) == 1  # a quick cell's own, which decides its digits


@pytest.mark.parametrize(
    ("users", "ranks", "threads"),
    [
        (None, 1, 4),  # what a quick cell in this process announced is not the user's
        (None, 2, 2),
        ("2", 1, 2),  # what the user gave stays the user's after it was announced
    ],
)
def test_threads_that_the_suite_announced_are_not_the_users(environment, users, ranks, threads):
    if users:
        environment.setenv("OMP_NUM_THREADS", users)
    announced = users or "1"
    announce_threads(int(announced))
    assert os.environ["OMP_NUM_THREADS"] == announced
    assert (SHARE_VARIABLE in os.environ) == (users is None)
    assert thread_share(None, ranks=ranks) == threads


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("150000 100000\n", 1), ("400000 100000\n", 4), ("5000 100000\n", 1), ("max 100000\n", 6)],
)
def test_a_containers_quota_limits_its_processes(environment, tmp_path, quota, cores):
    environment.delenv("TUNEGRID_CORES")
    environment.setattr(os, "sched_getaffinity", lambda _: range(6))
    environment.setattr(machine, "CPU_QUOTA", tmp_path / "cpu.max")
    assert machine.usable_cores() == 6  # no such file: no container
    machine.CPU_QUOTA.write_text(quota)
    assert machine.usable_cores() == cores
