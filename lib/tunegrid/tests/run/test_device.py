import weakref

import pytest
import torch

from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FULL_PROFILE
from tunegrid.run.device import (
    check_free,
    free_memory,
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
        ("bert_sa_lora", CUDA, False, "fp16", None),
        ("bert_sa_sft", CPU, True, "fp32", None),
        ("bert_sa_sft", CUDA, True, "fp32", None),
        ("bert_sa_qlora", CUDA, False, "fp32", "in place of bf16, for which this GPU has no units"),
        ("bert_sa_qlora", CPU, False, "bf16", None),
        ("t5_sa_lora", CPU, True, "bf16", "in place of fp16, in which T5 overflows"),
        ("t5_sa_lora", CUDA, True, "bf16", "in place of fp16, in which T5 overflows"),
        ("t5_sa_lora", CUDA, False, "fp32", "in which T5 overflows, and of bf16, for which this GPU has no units"),
    ],
)
def test_a_precision_that_the_device_or_t5_cannot_take_gives_way_and_says_so(
    cell_id, where, has_bf16, precision, words, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)  # T4, V100 and RTX 20 have none
    resolved, said = resolve_precision(FULL[cell_id], where)
    assert resolved == precision
    assert said is None if words is None else words in said
    assert "fp16" not in {resolve_precision(cell, where)[0] for cell in FULL.values() if cell.backbone.id == "t5"}


def on_the_gpu(monkeypatch, others_gib, own_gib):
    """A GPU of 80 GiB of which this process and others take so much."""
    free = int((80 - others_gib - own_gib) * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * 2**30))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: int(own_gib * 2**30))


def test_a_gpu_in_use_is_refused_with_by_how_much(monkeypatch):
    on_the_gpu(monkeypatch, others_gib=16, own_gib=0)
    assert used_by_others_gib(CUDA) == 16.0
    with pytest.raises(InputError, match=r"cuda:0 is in use: 16.0 GiB of it are taken by others; .* --allow-busy-gpu"):
        check_free(CUDA)
    check_free(CUDA, allow_busy=True)
    check_free(CPU)
    on_the_gpu(monkeypatch, others_gib=0.6, own_gib=0)  # an own context
    check_free(CUDA)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("DefaultCPUAllocator"), False),
    ],
    ids=str,
)
def test_lack_of_memory_is_told_from_other_errors(error, is_memory):
    assert out_of_memory(error) is is_memory


# Several GPUs


@pytest.mark.parametrize(("worker", "requested", "index"), [(0, None, 0), (1, None, 1), (2, None, 0), (0, "cuda:1", 1)])
def test_workers_take_gpus_in_turn(monkeypatch, worker, requested, index):
    for name, answer in (("is_available", True), ("device_count", 2), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    assert resolve_device(requested, worker).index == index


# What a cell leaves behind


def test_what_an_earlier_cell_left_on_a_gpu_is_refused(monkeypatch):
    on_the_gpu(monkeypatch, others_gib=0, own_gib=1.4)
    with pytest.raises(InputError, match=r"cuda:0 still holds 1.4 GiB of an earlier cell; --engine=process"):
        check_free(CUDA, allow_busy=True)
    on_the_gpu(monkeypatch, others_gib=0, own_gib=1 / 32)  # a workspace of cuBLAS
    check_free(CUDA)


def test_reference_cycles_are_freed():
    cycle = torch.nn.Linear(2, 2)
    cycle.itself = [cycle]
    alive = weakref.ref(cycle)
    del cycle
    free_memory(CPU)
    assert alive() is None
