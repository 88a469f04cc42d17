import os

import pytest
import torch

from tunegrid import machine
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FULL_PROFILE
from tunegrid.machine import SHARE_VARIABLE, announce_threads, thread_share
from tunegrid.run.device import (
    check_free,
    out_of_memory,
    resolve_device,
    resolve_precision,
    used_by_others_gib,
)
from tunegrid.tests.small import CPU

FULL = {cell.id: cell for cell in STUDY.cells(FULL_PROFILE)}
CUDA = torch.device("cuda:0")


def test_a_device_that_is_not_here_is_refused_by_name():
    with pytest.raises(InputError, match="--device cuda:99: torch"):
        resolve_device("cuda:99")


@pytest.mark.parametrize(
    ("cell_id", "where", "has_bf16", "precision", "words"),
    [
        ("bert_sa_lora", CPU, True, "bf16", "in place of fp16, which a CPU only emulates"),
        ("bert_sa_lora", CUDA, True, "fp16", None),
        ("bert_sa_sft", CUDA, True, "fp32", None),
        ("bert_sa_qlora", CUDA, False, "fp32", "in place of bf16, for which this GPU has no units"),
        ("bert_sa_qlora", CPU, False, "bf16", None),
        ("t5_sa_lora", CUDA, True, "bf16", "in place of fp16, in which T5 overflows"),
        (
            "t5_sa_lora",
            CUDA,
            False,
            "fp32",
            "in which T5 overflows, and of bf16, for which this GPU has no units",
        ),
    ],
)
def test_a_precision_that_the_device_or_t5_cannot_take_gives_way_and_says_so(
    cell_id, where, has_bf16, precision, words, monkeypatch
):
    # T4, V100 and RTX 20 have none
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    resolved, said = resolve_precision(FULL[cell_id], where)
    assert resolved == precision
    assert said is None if words is None else words in said
    assert "fp16" not in {
        resolve_precision(cell, where)[0] for cell in FULL.values() if cell.backbone.id == "t5"
    }


def fake_gpu(monkeypatch, others_gib, own_gib):
    """A GPU of 80 GiB of which this process and others take so much."""
    free = int((80 - others_gib - own_gib) * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * 2**30))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: int(own_gib * 2**30))


def test_a_gpu_in_use_or_not_given_back_is_refused_with_by_how_much(monkeypatch):
    fake_gpu(monkeypatch, others_gib=16, own_gib=0)
    assert used_by_others_gib(CUDA) == 16.0
    with pytest.raises(
        InputError,
        match=r"cuda:0 is in use: 16.0 GiB of it are taken by others; .* --allow-busy-gpu",
    ):
        check_free(CUDA)
    check_free(CUDA, allow_busy=True)
    check_free(CPU)
    # An own context, and a workspace of cuBLAS
    fake_gpu(monkeypatch, others_gib=0.6, own_gib=1 / 32)
    check_free(CUDA)
    fake_gpu(monkeypatch, others_gib=0, own_gib=1.4)
    with pytest.raises(
        InputError, match=r"cuda:0 still holds 1.4 GiB of an earlier cell; --engine=process"
    ):
        check_free(CUDA, allow_busy=True)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (
            RuntimeError(
                "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"
            ),
            True,
        ),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            True,
        ),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes differ"), False),
    ],
    ids=str,
)
def test_lack_of_memory_is_told_from_other_errors(error, is_memory):
    assert out_of_memory(error) is is_memory


# How many threads a process has: what the user gives, what a container leaves, and its share of
# that.


@pytest.fixture
def environment(monkeypatch):
    """Four cores for one process, and nothing said of threads."""
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
    ("given", "announced", "ranks", "threads"),
    [
        *(
            (text, None, 1, threads)
            for text, threads in (("1", 1), ("3,1", 3), ("", 4), ("0", 4), ("many", 4))
        ),
        (None, 1, 1, 4),  # what a quick cell in this process announced is not the user's
        (None, 1, 2, 2),
        ("2", 2, 1, 2),  # what the user gave stays the user's after it was announced
    ],
)
def test_threads_that_the_user_gives_are_heard_and_those_that_the_suite_announced_are_not(
    environment, given, announced, ranks, threads
):
    if given is not None:
        environment.setenv("OMP_NUM_THREADS", given)
    if announced:
        announce_threads(announced)
        assert os.environ["OMP_NUM_THREADS"] == str(announced)
        assert (SHARE_VARIABLE in os.environ) == (given is None)
    # A quick cell's own, which decides its digits
    assert thread_share(None, ranks=ranks) == threads
    assert thread_share(1) == 1


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
