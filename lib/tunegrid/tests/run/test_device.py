import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.profiles import FULL_PROFILE
from tunegrid.machine import keep_freed_memory
from tunegrid.run import device
from tunegrid.run.build import quantization_config
from tunegrid.run.device import (
    Claims,
    check_empty,
    check_idle,
    free_memory,
    out_of_memory,
    resolve_device,
    resolve_precision,
    resolve_quantization,
    used_by_others_gib,
)
from tunegrid.tests.small import CPU

FULL = {cell.id: cell for cell in STUDY.cells(FULL_PROFILE)}
CUDA = torch.device("cuda:0")


@pytest.mark.parametrize("requested", ["tpu9", "cuda:99", "gpu"])
def test_a_device_that_is_not_here_is_refused_in_a_sentence(requested):
    with pytest.raises(InputError, match=f"--device '?{requested}'?"):
        resolve_device(requested)


@pytest.mark.parametrize("requested", ["mps", "xpu:1", "meta"])
def test_a_device_whose_memory_and_time_we_cannot_measure_is_refused_by_name(requested):
    with pytest.raises(InputError, match=f"^--device {requested}: time and memory are measured on cpu and cuda only"):
        resolve_device(requested)


def test_fp16_becomes_bf16_on_a_cpu_and_says_so():
    assert resolve_precision(FULL["bert_sa_lora"], CPU) == ("bf16", "bf16 in place of fp16, which a CPU only emulates")
    assert resolve_precision(FULL["bert_sa_lora"], CUDA) == ("fp16", None)


@pytest.fixture
def turing(monkeypatch):
    """A GPU without bf16 units, as T4, V100 and RTX 20."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)


@pytest.fixture
def ampere(monkeypatch):
    """A GPU with bf16 units."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_t5_never_trains_in_fp16(device):
    assert FULL["t5_sa_lora"].recipe.precision == "fp16"
    answer = resolve_precision(FULL["t5_sa_lora"], device)
    assert answer == ("bf16", "bf16 in place of fp16, in which T5 overflows")
    assert not [cell.id for cell in FULL.values() if cell.backbone.id == "t5" and resolve_precision(cell, device)[0] == "fp16"]


@pytest.mark.usefixtures("turing")
def test_bf16_becomes_fp32_on_a_gpu_that_has_none():
    assert resolve_precision(FULL["bert_sa_qlora"], CUDA) == ("fp32", "fp32 in place of bf16, for which this GPU has no units")
    assert resolve_precision(FULL["bert_sa_qlora"], CPU) == ("bf16", None)
    assert resolve_precision(FULL["bert_sa_lora"], CUDA) == ("fp16", None)


@pytest.mark.usefixtures("turing")
def test_t5_trains_in_fp32_where_bf16_has_no_units():
    sentence = "fp32 in place of fp16, in which T5 overflows, and of bf16, for which this GPU has no units"
    assert resolve_precision(FULL["t5_sa_lora"], CUDA) == ("fp32", sentence)
    assert resolve_precision(FULL["t5_sa_lora"], CPU)[0] == "bf16"


@pytest.mark.parametrize(("precision", "kind"), [("fp16", "float16"), ("bf16", "float32"), ("fp32", "float32")])
@pytest.mark.usefixtures("turing")
def test_packed_weights_compute_in_the_precision_of_training_where_bf16_has_no_units(precision, kind):
    cell = FULL["bert_sa_qlora"]
    cell = replace(cell, recipe=replace(cell.recipe, precision=precision))
    quantization, sentence = resolve_quantization(cell, CUDA)
    assert quantization.bnb_4bit_compute_dtype == kind
    assert sentence == f"the packed base computes in {kind} in place of bfloat16, for which this GPU has no units"
    assert quantization_config(cell, CUDA).bnb_4bit_compute_dtype is getattr(torch, kind)


@pytest.mark.usefixtures("ampere")
def test_packed_weights_compute_as_declared_elsewhere():
    for cell_id in ("bert_sa_qlora", "bert_sa_sft"):
        for where in (CPU, CUDA):
            assert resolve_quantization(FULL[cell_id], where) == (FULL[cell_id].quantization, None)


def test_a_recipes_fp32_stays():
    cell = replace(FULL["bert_sa_sft"])
    assert resolve_precision(cell, CPU) == resolve_precision(cell, CUDA) == ("fp32", None)


def test_a_gpu_in_use_is_refused_with_by_how_much(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 4 * 2**30)
    used = used_by_others_gib(CUDA)
    assert used == 16.0
    with pytest.raises(InputError, match=r"cuda:0 is in use: 16.0 GiB of it are taken by others; .* --allow-busy-gpu"):
        check_idle(CUDA, used)


def test_an_own_context_and_a_cpu_are_not_taken_for_others():
    check_idle(CUDA, 0.6)
    check_idle(CPU, used_by_others_gib(CPU))


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


# Several GPUs, several workers


@pytest.fixture
def two_gpus(monkeypatch):
    """torch reports two GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"gpu-{index}"))


@pytest.mark.usefixtures("two_gpus")
def test_each_worker_takes_a_gpu_of_its_own(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert (first.take(worker=0), second.take(worker=1)) == (0, 1)
    assert first.take(worker=0) == 0  # the next cell of the same worker stays on it
    assert first.shared == second.shared == set()


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_stays_on_its_gpu_when_its_first_choice_becomes_free(tmp_path):
    other, own = Claims(tmp_path), Claims(tmp_path)
    assert (other.take(worker=1), own.take(worker=1)) == (1, 0)
    other.release()
    assert own.take(worker=1) == 0
    assert Claims(tmp_path).take(worker=1) == 1  # nobody holds it


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_of_another_session_is_passed_by_and_shared_only_in_need(tmp_path):
    first, second, third = (Claims(tmp_path) for _ in range(3))
    assert [claims.take(worker=0) for claims in (first, second, third)] == [0, 1, 0]
    assert (second.shared, third.shared) == (set(), {0})


@pytest.mark.usefixtures("two_gpus")
def test_a_wished_gpu_is_taken_and_shared_where_it_is_held(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert (first.take(0, requested=1), second.take(0, requested=1)) == (1, 1)
    assert (first.shared, second.shared) == (set(), {1})


def test_sharing_shows_in_the_record(monkeypatch):
    monkeypatch.setattr(device, "CLAIMS", SimpleNamespace(shared={0}))
    assert device.contended(CUDA, 0.5) is True
    assert device.contended(torch.device("cuda:1"), 0.5) is False
    assert device.contended(torch.device("cuda:1"), 5.0) is True
    assert device.contended(CPU, None) is None


# What a cell leaves behind


def test_what_an_earlier_cell_left_on_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: int(1.4 * 2**30))
    with pytest.raises(InputError, match=r"cuda:0 still holds 1.4 GiB of an earlier cell, .* --isolate"):
        check_empty(CUDA)
    check_empty(CPU)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 32 * 2**20)  # a workspace of cuBLAS
    check_empty(CUDA)


def test_reference_cycles_are_freed():
    cycle = torch.nn.Linear(2, 2)
    cycle.itself = [cycle]
    alive = weakref.ref(cycle)
    del cycle
    free_memory(CPU)
    assert alive() is None


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells resident memory in /proc")
def test_memory_that_was_freed_is_given_back_between_cells():
    """Big blocks that stay with the process would stand in the next cell's peak."""
    keep_freed_memory()
    before = resident_mib()
    blocks = [torch.ones(2**20) for _ in range(64)]  # 4 MiB each
    assert resident_mib() - before > 200
    del blocks
    free_memory(CPU)
    assert resident_mib() - before < 64


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells resident memory in /proc")
def test_large_blocks_stay_with_the_process_until_they_are_given_back():
    keep_freed_memory()
    before = resident_mib()
    block = torch.ones(2**25)  # 128 MiB, which glibc would return at once
    del block
    assert resident_mib() - before > 100
    free_memory(CPU)
    assert resident_mib() - before < 64


def resident_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024
