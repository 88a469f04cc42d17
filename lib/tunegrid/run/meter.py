"""Measures time, throughput, memory and energy for the record; what was not measured is None.

What it takes care of: training time is the time of updates, without encoding, validation and generation; throughput counts
real tokens over the updates after warm-up; peaks are per phase, not one for load, train and evaluation together.
"""

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunegrid.machine import give_back_memory
from tunegrid.record.parts import Ledger, Memory, Parameters, Phase, RankRecord, RanksRecord, Throughput
from tunegrid.run.ranks import Ranks, local_shard

# A counter of energy is of a card or a processor, and not of a process: it counts whatever else runs there. So one that several
# cells share is not read. Nothing is modelled from time or utilization.
POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"  # comes with NVIDIA's driver
WATTS = 1000.0  # more than any processor takes; at so many a counter needs at least this long to come round
LEFT_OUT = "; the GPU's is left out, since others used it"
Joules = float | None


@dataclass(kw_only=True)
class Counter:
    """Joules of one card or processor.

    Attributes:
        read: the count now; None where it cannot be read.
        joules_a_count: what one count stands for.
        largest: the count after which it starts again from 0; None where that takes years.
        now: seconds on a clock.
    """

    read: Callable[[], int | None]
    joules_a_count: float
    largest: int | None = None
    now: Callable[[], float] = time.monotonic
    _count: int | None = field(default=None, init=False)
    _read_at: float = field(default=0.0, init=False)
    _joules: Joules = field(default=None, init=False)

    def begin(self) -> None:
        """Count from here."""
        self._count, self._read_at, self._joules = self.read(), self.now(), 0.0

    def look(self) -> Joules:
        """Joules since `begin`; None where it could not be read, or may have started again more than once between two looks."""
        before, read_at = self._count, self._read_at
        self._count, self._read_at = self.read(), self.now()
        step = self._step(before, self._count)
        if self._joules is None or step is None or self._read_at - read_at > self._longest():
            self._joules = None
        else:
            self._joules += self.joules_a_count * step
        return self._joules

    def _step(self, before: int | None, count: int | None) -> int | None:
        """Counts between two looks."""
        if before is None or count is None or (count < before and self.largest is None):
            return None
        return count - before if count >= before else count - before + (self.largest or 0)

    def _longest(self) -> float:
        """Seconds in which it cannot start again twice."""
        return math.inf if self.largest is None else self.joules_a_count * self.largest / WATTS


@dataclass(kw_only=True)
class Energy:
    """The counters that a cell has for itself.

    Attributes:
        gpu: of its card; None where there is none.
        cpu: one for each processor; empty where there are none.
        source: what is counted, or why it is not, for the record.
    """

    gpu: Counter | None = None
    cpu: Sequence[Counter] = ()
    source: str = "no counters"

    def begin(self) -> None:
        """Count from here."""
        for counter in [*self.cpu, *([self.gpu] if self.gpu else [])]:
            counter.begin()

    def cpu_joules(self) -> Joules:
        """Of all processors together, since `begin`. It must be asked often, so that none starts again twice unseen."""
        each = [counter.look() for counter in self.cpu]
        return None if not each or None in each else sum(joules or 0.0 for joules in each)

    def gpu_joules(self) -> Joules:
        """Of the card, since `begin`."""
        return self.gpu.look() if self.gpu else None


def energy_of(
    device: "torch.device", *, shared: str = "", ranks: int = 1, powercap: Path = POWERCAP, nvml: Any = None
) -> Energy:
    """The counters of a cell on `device`.

    Args:
        device: where it runs.
        shared: who else of this suite uses the machine's processors at the same time; empty: nobody.
        ranks: processes that share the cell, a GPU each.
        powercap: where Linux has RAPL's counters.
        nvml: NVIDIA's library; None loads it.
    """
    cpu, why_not = ([], shared) if shared else rapl(powercap)
    source = f"CPU: {why_not or f'RAPL, {len(cpu)} package' + 's' * (len(cpu) > 1)}"
    if device.type != "cuda":
        return Energy(cpu=cpu, source=source)
    gpu, why_not = (None, f"{ranks} GPUs share the cell") if ranks > 1 else gpu_counter(device, nvml)
    return Energy(gpu=gpu, cpu=cpu, source=f"GPU: {why_not or 'NVML'}; {source}")


# RAPL: one folder for each processor, with its parts below it, which it counts already (Linux, Documentation/power/powercap)
def rapl(root: Path) -> tuple[list[Counter], str]:
    """A counter for each processor, or why there is none."""
    folders = [folder for folder in sorted(root.glob("intel-rapl:*")) if _text(folder / "name").startswith("package-")]
    if not folders:
        return [], "no RAPL counters"
    largest = [_number(folder / "max_energy_range_uj") for folder in folders]
    if None in [*largest, *(_number(folder / "energy_uj") for folder in folders)]:
        return [], "RAPL counters cannot be read"  # since Linux 5.10 by root alone
    return [_rapl_counter(folder / "energy_uj", most) for folder, most in zip(folders, largest, strict=True)], ""


def _rapl_counter(path: Path, largest: int | None) -> Counter:
    return Counter(read=lambda: _number(path), joules_a_count=1e-6, largest=largest)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


# NVML: millijoules since the driver was loaded, of Volta and later
def gpu_counter(device: "torch.device", nvml: Any = None) -> tuple[Counter | None, str]:
    """The counter of a GPU, or why there is none."""
    try:
        library = nvml or ctypes.CDLL(NVML)
        handle = ctypes.c_void_p()
        failed = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(uuid_of(device), ctypes.byref(handle))
    except (OSError, AttributeError):  # no library, or one without these calls
        return None, "no NVML"
    if failed or _millijoules(library, handle) is None:
        return None, "NVML has no counter for it"
    return Counter(read=lambda: _millijoules(library, handle), joules_a_count=1e-3), ""


def _millijoules(library: Any, handle: Any) -> int | None:
    count = ctypes.c_ulonglong()
    failed = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(count))
    return None if failed else count.value


def uuid_of(device: "torch.device") -> bytes:
    """The name by which NVML knows a GPU, whichever CUDA_VISIBLE_DEVICES leaves."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()


def without_the_gpus(memory: Memory) -> Memory:
    """The same without a GPU's joules, which are not the cell's alone where others used it."""
    return replace(memory, phases={name: replace(phase, gpu_energy_joules=None) for name, phase in memory.phases.items()})


GIB = 2**30
PEFT_TWINS = (".original_module.", ".trainable_tokens_delta.")
WARMUP_UPDATES = 3  # left out of throughput: first calls allocate memory and pick kernels


@dataclass(kw_only=True)
class Update:
    """One optimizer update: when it began and ended, and the size of its batch."""

    began: Any
    ended: Any = None
    samples: int
    tokens: int = 0
    padded_tokens: int = 0


@dataclass(kw_only=True)
class Meter:
    """Collects one cell's measurements; `cells_before`: how many its process ran before, None where nobody counts."""

    device: torch.device
    energy: Energy = field(default_factory=Energy)
    cells_before: int | None = None
    updates: list[Update] = field(default_factory=list)
    phases: dict[str, Phase] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list, init=False)  # phases, the innermost last
    _began: float = field(default=0.0, init=False)

    def mark(self) -> Any:
        """A moment: the host's time; on CUDA an event, which marks when the device gets here while the host does not wait."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @contextmanager
    def update(self, *, samples: int, tokens: int = 0, padded_tokens: int = 0) -> Iterator[Update]:
        """Times one update, collating included. Validation and encoding, between updates, are not training time.

        What is only known inside, as tokens, can be set on what it yields. A failed update does not count.
        """
        update = Update(began=self.mark(), samples=samples, tokens=tokens, padded_tokens=padded_tokens)
        yield update
        update.ended = self.mark()
        self.updates.append(update)
        self.energy.cpu_joules()  # a long phase would let its counters start again unseen

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Wall seconds and memory peaks of one phase. A repeated phase adds its seconds and keeps the higher peak.

        A phase inside another interrupts it: every moment, and every peak, belongs to one phase alone.
        """
        self._close()
        self._open.append(name)
        self._start()
        try:
            yield
        finally:
            self._close()
            self._open.pop()
            self._start()

    def _start(self) -> None:
        """The innermost open phase begins, or goes on."""
        if self._open:
            reset_peaks(self.device)
            self.energy.begin()
            self._began = time.perf_counter()

    def _close(self) -> None:
        """The innermost open phase ends, or pauses."""
        if not self._open:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = peaks(self.device, seconds=time.perf_counter() - self._began)
        now = replace(now, gpu_energy_joules=self.energy.gpu_joules(), cpu_energy_joules=self.energy.cpu_joules())
        before = self.phases.get(self._open[-1])
        self.phases[self._open[-1]] = together(before, now) if before else now

    def recent_rate(self, count: int, ranks: int = 1) -> str:
        """Samples a second over the last updates, of so many ranks, for the progress line; empty where they took no time."""
        seconds = sum(self.durations(self.updates[-count:]))
        return f"{ranks * sum(update.samples for update in self.updates[-count:]) / seconds:.0f} samples/s" if seconds else ""

    def over(self, ranks: Ranks) -> RanksRecord | None:
        """What each rank did, which all must ask together; None for one process. From then on this meter counts rows of all."""
        if ranks.count == 1:
            return None
        each = ranks.gathered(self.of_this_rank())
        sizes = ranks.gathered(self.sizes())
        self.add(of_rank for rank, of_rank in enumerate(sizes) if rank != ranks.rank)
        return ranks.part(self.device, each)

    def of_this_rank(self) -> RankRecord:
        """This rank's own figures."""
        memory, rates = self.memory(), self.throughput()
        return RankRecord(
            rss_peak_gib=memory.peak("rss_peak_gib"),
            allocated_peak_gib=memory.peak("allocated_peak_gib"),
            reserved_peak_gib=memory.peak("reserved_peak_gib"),
            train_samples=sum(update.samples for update in self.updates),
            train_samples_per_second=rates.train_samples_per_second,
            train_tokens_per_second=rates.train_tokens_per_second,
        )

    def sizes(self) -> list[tuple[int, int, int]]:
        """Samples, tokens and tokens with padding of each update."""
        return [(update.samples, update.tokens, update.padded_tokens) for update in self.updates]

    def add(self, others: Iterable[Sequence[tuple[int, int, int]]]) -> None:
        """Count what other ranks did in the same updates, by their `sizes`; time stays this one's."""
        for sizes in others:
            for update, (samples, tokens, padded) in zip(self.updates, sizes, strict=True):
                update.samples += samples
                update.tokens += tokens
                update.padded_tokens += padded

    def memory(self, ledger: Ledger | None = None) -> Memory:
        """Peaks of each phase, and the ledger; an empty one where training made no update."""
        ledger = ledger or Ledger(**dict.fromkeys(Ledger.__annotations__))
        return Memory(phases=dict(self.phases), ledger=ledger, cells_before=self.cells_before)

    def train_seconds(self) -> float:
        """Time spent in updates, warm-up included."""
        return sum(self.durations(self.updates))

    def throughput(
        self, *, eval_samples_per_second: float | None = None, generated_tokens_per_second: float | None = None
    ) -> Throughput:
        """Rates over the updates after warm-up, None where a run was too short to have any; and what evaluation measured."""
        steady = self.updates[WARMUP_UPDATES:]
        durations = self.durations(steady)
        total = sum(durations)
        tokens, padded = (sum(getattr(u, name) for u in self.updates) for name in ("tokens", "padded_tokens"))
        return Throughput(
            train_samples_per_second=sum(u.samples for u in steady) / total if total else None,
            train_tokens_per_second=sum(u.tokens for u in steady) / total if total else None,
            train_steps_per_second=len(steady) / total if total else None,
            step_seconds_median=statistics.median(durations) if durations else None,
            step_seconds_p90=statistics.quantiles(durations, n=10)[-1] if len(durations) > 1 else None,
            padding_share=1 - tokens / padded if padded else None,
            step_seconds=[round(seconds, 5) for seconds in durations],
            measured_steps=len(steady),
            warmup_steps=min(WARMUP_UPDATES, len(self.updates)),
            eval_samples_per_second=eval_samples_per_second,
            generated_tokens_per_second=generated_tokens_per_second,
        )

    def durations(self, updates: Iterable[Update]) -> list[float]:
        """Seconds of each; of events, the host waits for the later one, and torch reports milliseconds."""
        if self.device.type != "cuda":
            return [update.ended - update.began for update in updates]
        for update in (updates := [*updates]):
            update.ended.synchronize()
        return [float(update.began.elapsed_time(update.ended)) / 1000 for update in updates]


def together(before: Phase, now: Phase) -> Phase:
    """A phase that was interrupted: its seconds and joules add up, and the higher peaks count."""
    return Phase(
        seconds=before.seconds + now.seconds,
        rss_peak_gib=_higher(before.rss_peak_gib, now.rss_peak_gib),
        allocated_peak_gib=_higher(before.allocated_peak_gib, now.allocated_peak_gib),
        reserved_peak_gib=_higher(before.reserved_peak_gib, now.reserved_peak_gib),
        gpu_energy_joules=_sum(before.gpu_energy_joules, now.gpu_energy_joules),
        cpu_energy_joules=_sum(before.cpu_energy_joules, now.cpu_energy_joules),
    )


def _sum(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else before + now


def _higher(before: float | None, now: float | None) -> float | None:
    return max((peak for peak in (before, now) if peak is not None), default=None)


def reset_peaks(device: torch.device) -> None:
    """Start a new high-water mark: of this process, where the kernel lets us, and of the device.

    Memory that is only kept for later is given back first, on the host and on the device: it was taken by what was before.
    """
    give_back_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # Linux: resets VmHWM, see proc(5)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device, seconds: float) -> Phase:
    """High-water marks since the last reset, `seconds` ago: resident set of the process; allocated and reserved on CUDA."""
    cuda = device.type == "cuda"
    return Phase(
        seconds=seconds,
        rss_peak_gib=_rss_peak_gib(),
        allocated_peak_gib=torch.cuda.max_memory_allocated(device) / GIB if cuda else None,
        reserved_peak_gib=torch.cuda.max_memory_reserved(device) / GIB if cuda else None,
    )


def _rss_peak_gib() -> float | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None  # not Linux: no high-water mark that can be reset
    return next((int(line.split()[1]) * 1024 / GIB for line in lines if line.startswith("VmHWM")), None)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind tensors, on this rank: views and tied weights count once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in map(local_shard, tensors) if t.numel()}
    return sum(storages.values())


def weight_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and what bitsandbytes keeps beside its packed weights (scales, and the scales' scales)."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            tensors += [value for value in vars(state).values() if isinstance(value, Tensor)]
            state = getattr(state, "state2", None)
    return tensors


def ledger(model: nn.Module, optimizer: torch.optim.Optimizer | None, gradients_bytes: int | None) -> Ledger:
    """Exact bytes of weights, gradients, optimizer state, and a checkpoint of what trains: an adapter, or the whole model."""
    states = optimizer.state.values() if optimizer else ()
    moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return Ledger(
        weights_bytes=tensor_bytes(weight_tensors(model)),
        gradients_bytes=gradients_bytes,
        optimizer_bytes=tensor_bytes(moments) if optimizer else None,
        checkpoint_bytes=sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
        activations_bytes=None,
        peak_bytes=None,
    )


def parameter_counts(model: nn.Module) -> Parameters:
    """Trainable and total parameters; a weight packed to 4 bits counts as the weights it holds.

    What PEFT keeps twice counts once: a head that trains in full has a frozen copy, a trained token a row in the embedding.
    """
    named = dict(model.named_parameters())  # tied weights once
    total = sum(_unpacked(p) for name, p in named.items() if not any(part in name for part in PEFT_TWINS))
    trainable = sum(p.numel() for p in named.values() if p.requires_grad)
    return Parameters(trainable_params=trainable, total_params=total, trainable_percent=100 * trainable / total)


def _unpacked(parameter: Tensor) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()
