"""Joules of a counter in an object that answers as NVIDIA's library does."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from tunegrid.record.record import Phase
from tunegrid.run.meter import Meter, gpu_counter
from tunegrid.tests.small import CPU

CUDA = torch.device("cuda:0")


class Nvml:
    """NVIDIA's library: calls return 0 if they succeed, and write to what they are given."""

    millijoules = 1_000_000

    def __init__(self, *, unsupported=0, unknown=0):
        self._unsupported, self._unknown = unsupported, unknown

    def nvmlInit_v2(self):  # NVML's name
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        assert uuid == b"GPU-1234"
        return self._unknown

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, count):
        count._obj.value = self.millijoules
        return self._unsupported


def no_library(name):
    raise OSError(name)


@pytest.fixture
def nvml(monkeypatch):
    """Puts a library in NVML's place."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    return lambda library: monkeypatch.setattr(ctypes, "CDLL", (lambda name: library) if library else no_library)


def test_a_gpus_millijoules_become_joules(nvml):
    nvml(library := Nvml())
    read = gpu_counter(CUDA)
    library.millijoules += 2_500
    assert read() == 1002.5
    assert gpu_counter(CUDA, ranks=2) is None  # two GPUs share the cell
    assert gpu_counter(CPU) is None


@pytest.mark.parametrize(
    "library",
    [Nvml(unsupported=3), Nvml(unknown=6), object(), None],
    ids=["an old card", "a card that is not known", "no such call", "no library"],
)
def test_a_gpu_without_a_counter_has_none(nvml, library):
    nvml(library)
    assert gpu_counter(CUDA) is None


# Phases


def test_joules_belong_to_the_innermost_phase_and_add_up_over_its_parts():
    card = SimpleNamespace(joules=0.5)  # before any phase
    measured = Meter(device=CPU, counter=lambda: card.joules)
    with measured.phase("train"):
        card.joules += 2.0
        with measured.phase("audit"):
            card.joules += 10.0
        card.joules += 3.0
    card.joules += 0.7  # after all
    joules = {name: phase.gpu_energy_joules for name, phase in measured.phases.items()}
    assert joules == {"train": pytest.approx(5.0), "audit": pytest.approx(10.0)}
    assert {phase.cpu_energy_joules for phase in measured.phases.values()} == {None}
    memory = measured.memory(contended=True)  # others used the GPU
    assert {phase.gpu_energy_joules for phase in memory.phases.values()} == {None}


def phase(gpu, cpu):
    sizes = dict.fromkeys(("rss_peak_gib", "allocated_peak_gib", "reserved_peak_gib"))
    return Phase(seconds=1.0, **sizes, gpu_energy_joules=gpu, cpu_energy_joules=cpu)
