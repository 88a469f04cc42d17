"""Joules of counters that stand in a temporary folder, or in an object that answers as NVIDIA's library does."""

from types import SimpleNamespace

import pytest

from tunegrid.record.parts import Ledger, Memory, Phase
from tunegrid.run import meter as energy
from tunegrid.run.meter import Counter, energy_of, without_the_gpus

CPU, CUDA = SimpleNamespace(type="cpu"), SimpleNamespace(type="cuda")
UNREADABLE = "RAPL counters cannot be read"


class Hand:
    """A count and a clock that only the test moves."""

    count: int | None = 0
    seconds = 0.0

    def counter(self, **settings):
        counter = Counter(read=lambda: self.count, now=lambda: self.seconds, **settings)
        counter.begin()
        return counter


@pytest.fixture
def powercap(tmp_path):
    """Two processors, one with a part that its own counter holds already, and the counter of the whole machine."""
    folders = {
        "intel-rapl:0": ("package-0", 5_000_000, 262_000_000_000),
        "intel-rapl:0:0": ("core", 4_000_000, 262_000_000_000),
        "intel-rapl:1": ("package-1", 261_999_000_000, 262_000_000_000),  # 262 kJ, which 1 kW takes minutes for
        "intel-rapl:2": ("psys", 40_000_000, 262_000_000_000),
    }
    for folder, (name, count, largest) in folders.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(f"{name}\n")
        (tmp_path / folder / "energy_uj").write_text(f"{count}\n")
        (tmp_path / folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return tmp_path


class Nvml:
    """NVIDIA's library: calls return 0 where they succeed, and write to what they are given."""

    def __init__(self, millijoules=0, *, unsupported=0, unknown=0):
        self.millijoules, self._unsupported, self._unknown = millijoules, unsupported, unknown

    def nvmlInit_v2(self):  # NVML's name
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        assert uuid == b"GPU-1234"
        return self._unknown

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, count):
        count._obj.value = self.millijoules
        return self._unsupported


@pytest.fixture(autouse=True)
def named(monkeypatch):
    monkeypatch.setattr(energy, "uuid_of", lambda device: b"GPU-1234")


# A counter


def test_counts_become_joules_since_the_beginning_also_where_a_counter_starts_again():
    hand = Hand()
    hand.count = 7_000_000
    counter = hand.counter(joules_a_count=1e-6, largest=10_000_000)
    for count, joules in ((9_500_000, 2.5), (500_000, 3.5), (400_000, 13.4)):  # once around, and once more
        hand.count = count
        assert counter.look() == pytest.approx(joules)
    counter.begin()
    assert counter.look() == 0.0


def test_a_counter_that_nobody_looked_at_for_too_long_tells_nothing():
    hand = Hand()
    counter = hand.counter(joules_a_count=1e-6, largest=262_000_000_000)  # 262 kJ, which 1 kW takes 262 s for
    hand.count, hand.seconds = 1_000_000, 262.0
    assert counter.look() == pytest.approx(1.0)
    hand.count, hand.seconds = 2_000_000, 525.0
    assert counter.look() is None
    hand.seconds = 526.0
    assert counter.look() is None  # what is missing stays missing
    counter.begin()
    assert counter.look() == 0.0


@pytest.mark.parametrize("counts", [(50, None, 60), (50, 20, 60)], ids=["could not be read once", "has no end and goes back"])
def test_a_counter_that_lost_a_count_tells_nothing(counts):
    hand = Hand()
    hand.count, *later = counts
    counter = hand.counter(joules_a_count=1.0)
    for hand.count in later:
        assert counter.look() is None


# RAPL


def test_the_machines_processors_are_added_up_and_their_parts_are_not(powercap):
    counted = energy_of(CPU, powercap=powercap)
    assert counted.source == "CPU: RAPL, 2 packages"
    counted.begin()
    (powercap / "intel-rapl:0" / "energy_uj").write_text("7500000\n")  # 2.5 J
    (powercap / "intel-rapl:0:0" / "energy_uj").write_text("9000000\n")
    (powercap / "intel-rapl:1" / "energy_uj").write_text("250000\n")  # 1 J to its end, and .25 J
    (powercap / "intel-rapl:2" / "energy_uj").write_text("80000000\n")
    assert counted.cpu_joules() == pytest.approx(2.5 + 1.25)
    assert counted.gpu_joules() is None


@pytest.mark.parametrize("missing", ["energy_uj", "max_energy_range_uj"])
def test_processors_of_which_one_cannot_be_read_have_no_joules(powercap, missing):
    (powercap / "intel-rapl:1" / missing).unlink()
    counted = energy_of(CPU, powercap=powercap)
    assert (counted.cpu_joules(), counted.source) == (None, f"CPU: {UNREADABLE}")
    none = energy_of(CPU, powercap=powercap / "missing")
    none.begin()
    assert (none.cpu_joules(), none.gpu_joules(), none.source) == (None, None, "CPU: no RAPL counters")


# NVML


def test_a_gpus_millijoules_become_joules(powercap):
    library = Nvml(1_000_000)
    counted = energy_of(CUDA, shared="2 cells run at the same time", powercap=powercap, nvml=library)
    counted.begin()
    library.millijoules += 2_500
    assert (counted.gpu_joules(), counted.cpu_joules()) == (pytest.approx(2.5), None)  # a card of its own
    assert counted.source == "GPU: NVML; CPU: 2 cells run at the same time"


@pytest.mark.parametrize(
    ("library", "ranks", "reason"),
    [
        (Nvml(unsupported=3), 1, "NVML has no counter for it"),
        (Nvml(unknown=6), 1, "NVML has no counter for it"),
        (object(), 1, "no NVML"),
        (Nvml(), 2, "2 GPUs share the cell"),
    ],
    ids=["an old card", "a card that is not known", "no library", "two ranks"],
)
def test_a_gpu_without_a_counter_has_no_joules_and_a_reason(tmp_path, library, ranks, reason):
    counted = energy_of(CUDA, ranks=ranks, powercap=tmp_path, nvml=library)
    counted.begin()
    assert (counted.gpu_joules(), counted.source) == (None, f"GPU: {reason}; CPU: no RAPL counters")


# The record


def phase(gpu, cpu):
    sizes = dict.fromkeys(("rss_peak_gib", "allocated_peak_gib", "reserved_peak_gib"))
    return Phase(seconds=1.0, **sizes, gpu_energy_joules=gpu, cpu_energy_joules=cpu)


def memory(**phases):
    return Memory(phases=phases, ledger=Ledger(**dict.fromkeys(Ledger.__annotations__)))


def test_a_cells_joules_are_those_of_its_own_phases():
    own = memory(load=phase(10.0, 1.0), train=phase(100.0, None), audit=phase(1000.0, 5.0))
    assert (own.joules("gpu_energy_joules"), own.joules("cpu_energy_joules")) == (110.0, None)  # the suite's audit is left out
    assert memory().joules("gpu_energy_joules") is None
    left = without_the_gpus(memory(train=phase(100.0, 7.0))).phases["train"]  # others used the GPU
    assert (left.gpu_energy_joules, left.cpu_energy_joules) == (None, 7.0)
