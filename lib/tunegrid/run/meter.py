"""Measures time, throughput, memory and energy for the record; what was not measured is None.

Training time is that of updates alone; throughput counts real tokens over the updates after warm-up; peaks are per phase.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tunegrid.record.record import Ledger, Memory, Parameters, Phase, RanksRecord, Throughput
from tunegrid.run.device import give_back_memory
from tunegrid.run.ranks import Ranks, local_shard

GIB = 2**30
WARMUP_UPDATES = 3  # left out of throughput: first calls allocate memory and pick kernels
SETTLED = 10  # updates after which what training holds stays as it is: optimizer states and workspaces are there
SUMS = ("seconds", "gpu_energy_joules")  # of a phase's parts; of its peaks the highest counts
# What PEFT keeps twice counts once: a head that trains in full has a frozen copy, a trained token a row in the embedding.
PEFT_TWINS = (".original_module.", ".trainable_tokens_delta.")

NVML = "libnvidia-ml.so.1"  # comes with NVIDIA's driver
NO_COUNTER = "not measured: no GPU with an energy counter that only this cell uses"
Progress = Callable[[str, int, int, str], None]  # takes a stage, what is done of how much, and what else to show
Joules = Callable[[], float | None]  # reads a counter; None if it cannot be read


def gpu_counter(device: torch.device, ranks: int = 1) -> Joules | None:
    """Reads NVML's joules of a GPU since its driver was loaded; None without NVML, before Volta, and on a CPU."""
    if device.type != "cuda" or ranks > 1:  # each has a card of its own, of which only one would be read
        return None
    handle, count = ctypes.c_void_p(), ctypes.c_ulonglong()
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()  # whichever cards CUDA_VISIBLE_DEVICES leaves
    try:
        library = ctypes.CDLL(NVML)
        failed = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle))
        millijoules = library.nvmlDeviceGetTotalEnergyConsumption
    except (OSError, AttributeError):  # no library, or one without these calls
        return None

    def joules() -> float | None:
        return None if millijoules(handle, ctypes.byref(count)) else count.value / 1e3

    return None if failed or joules() is None else joules


@dataclass(kw_only=True)
class Update:
    """One optimizer update: when it began and ended, and the size of its batch."""

    began: Any
    ended: Any = None
    samples: int
    tokens: int = 0
    padded_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Held:
    """The tensors that a process holds between two updates."""

    updates: int  # that it made before
    tensors: int
    bytes: int  # of the device's allocator; on a CPU of the storages behind these tensors


@dataclass(kw_only=True)
class Meter:
    """Collects one cell's measurements."""

    device: torch.device
    counter: Joules | None = None  # of the GPU, see `gpu_counter`
    cells_before: int | None = None  # that its process ran; None if unknown
    updates: list[Update] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)  # after `SETTLED` updates or a few more, and after the last one
    phases: dict[str, Phase] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list, init=False)  # phases, the innermost last
    _began: float = field(default=0.0, init=False)
    _joules: float | None = field(default=None, init=False)

    def mark(self) -> Any:
        """The host's time; on CUDA an event, which marks when the device gets here while the host does not wait."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @contextmanager
    def update(self, *, samples: int, tokens: int = 0, padded_tokens: int = 0) -> Iterator[Update]:
        """Times one update, collating included; its tokens can be set inside. A failed update does not count."""
        update = Update(began=self.mark(), samples=samples, tokens=tokens, padded_tokens=padded_tokens)
        yield update
        update.ended = self.mark()
        self.updates.append(update)

    def note_tensors(self, expected: Collection[Tensor], *, is_last: bool) -> None:
        """Note what is held but for some `expected` tensors, if it is time: it walks through all objects."""
        if is_last != bool(self.held) or len(self.updates) < SETTLED:
            return
        held = held_tensors(self.device, len(self.updates), expected)
        if self.held and held.tensors > self.held[0].tensors:
            gc.collect()  # of garbage nothing stays
            held = held_tensors(self.device, len(self.updates), expected)
        self.held.append(held)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Wall seconds and memory peaks of one phase, which one inside it interrupts: a moment belongs to one alone."""
        self._switch([*self._open, name])
        try:
            yield
        finally:
            self._switch(self._open[:-1])

    def _switch(self, phases: list[str]) -> None:
        """The innermost open phase ends or pauses; of `phases`, which are open now, the innermost begins or goes on."""
        if self._open:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            figures: dict[str, Any] = {**vars(peaks(self.device, time.perf_counter() - self._began))}
            start, end = self._joules, self.counter() if self.counter else None
            figures["gpu_energy_joules"] = None if start is None or end is None or end < start else end - start
            # A repeated phase adds its seconds and keeps the higher peak; what is not known of one part is not of the whole.
            if phase := self.phases.get(self._open[-1]):
                pairs = {name: (one, figures[name]) for name, one in vars(phase).items()}
                figures = {
                    name: None if None in pair else (sum(pair) if name in SUMS else max(pair)) for name, pair in pairs.items()
                }
            self.phases[self._open[-1]] = Phase(**figures)
        self._open = phases
        if phases:
            reset_peaks(self.device)
            self._joules = self.counter() if self.counter else None
            self._began = time.perf_counter()

    def gather_ranks(self, ranks: Ranks) -> RanksRecord:
        """What each of several ranks did, which all must ask together. From then on, updates are those of all."""
        memory, rates = self.memory(), self.throughput()
        record = {name: memory.peak(name) for name in ("rss_peak_gib", "allocated_peak_gib", "reserved_peak_gib")}
        record |= {name: getattr(rates, name) for name in ("train_samples_per_second", "train_tokens_per_second")}
        record["train_samples"] = sum(update.samples for update in self.updates)
        sizes = [(update.samples, update.tokens, update.padded_tokens) for update in self.updates]
        records, sizes_of_ranks = zip(*ranks.gather((record, sizes)), strict=True)
        for update, *rank_sizes in zip(self.updates, *sizes_of_ranks, strict=True):
            update.samples, update.tokens, update.padded_tokens = map(sum, zip(*rank_sizes, strict=True))
        backend: Literal["nccl", "gloo"] = "nccl" if self.device.type == "cuda" else "gloo"
        return RanksRecord(count=ranks.count, backend=backend, fsdp=ranks.holds_parts, each=list(records))

    def memory(self, ledger: Ledger | None = None, *, contended: bool | None = False) -> Memory:
        """Peaks of each phase, without the joules of a GPU that others used, too; and the ledger, empty if nothing trained."""
        ledger = ledger or Ledger(**dict.fromkeys(Ledger.__annotations__))
        resets: dict[str, Any] = {"gpu_energy_joules": None} if contended else {}
        phases = {name: replace(phase, **resets) for name, phase in self.phases.items()}
        return Memory(phases=phases, ledger=ledger, cells_before=self.cells_before)

    def throughput(self, eval_samples: float | None = None, generated_tokens: float | None = None) -> Throughput:
        """Rates over the updates after warm-up, None if a run was too short to have any; and what evaluation did a second."""
        updates = self.updates[WARMUP_UPDATES:]
        durations = self.durations(updates)
        total = sum(durations)
        tokens, padded_tokens = (sum(getattr(u, name) for u in self.updates) for name in ("tokens", "padded_tokens"))
        return Throughput(
            train_samples_per_second=sum(u.samples for u in updates) / total if total else None,
            train_tokens_per_second=sum(u.tokens for u in updates) / total if total else None,
            train_steps_per_second=len(updates) / total if total else None,
            step_seconds_median=statistics.median(durations) if durations else None,
            step_seconds_p90=statistics.quantiles(durations, n=10)[-1] if len(durations) > 1 else None,
            padding_share=1 - tokens / padded_tokens if padded_tokens else None,
            step_seconds=[round(seconds, 5) for seconds in durations],
            measured_steps=len(updates),
            warmup_steps=min(WARMUP_UPDATES, len(self.updates)),
            eval_samples_per_second=eval_samples,
            generated_tokens_per_second=generated_tokens,
        )

    def durations(self, updates: Iterable[Update]) -> list[float]:
        """Seconds of each; of events, the host waits for the later one, and torch reports milliseconds."""
        if self.device.type != "cuda":
            return [update.ended - update.began for update in updates]
        for update in (updates := [*updates]):
            update.ended.synchronize()
        return [float(update.began.elapsed_time(update.ended)) / 1000 for update in updates]


def reset_peaks(device: torch.device) -> None:
    """Give back what is only kept for later, and start a new high-water mark, of the process and of the device."""
    give_back_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # Linux: resets VmHWM, see proc(5)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device, seconds: float) -> Phase:
    """High-water marks since the last reset, `seconds` ago: resident set of the process; allocated and reserved on CUDA."""
    cuda, lines = device.type == "cuda", list[str]()
    with suppress(OSError):  # not Linux: no high-water mark that can be reset
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return Phase(
        seconds=seconds,
        rss_peak_gib=next((int(line.split()[1]) * 1024 / GIB for line in lines if line.startswith("VmHWM")), None),
        allocated_peak_gib=torch.cuda.max_memory_allocated(device) / GIB if cuda else None,
        reserved_peak_gib=torch.cuda.max_memory_reserved(device) / GIB if cuda else None,
    )


# Bytes and counts of what a model holds


def held_tensors(device: torch.device, updates: int, expected: Collection[Tensor]) -> Held:
    """The tensors of this process but for `expected` ones, after so many updates."""
    expected_ids = set(map(id, expected))
    tensors = []
    for value in gc.get_objects():
        if issubclass(type(value), Tensor) and id(value) not in expected_ids:  # `isinstance` would wake lazy objects
            tensors.append(value)
    if device.type == "cuda":
        return Held(updates=updates, tensors=len(tensors), bytes=torch.cuda.memory_allocated(device))
    stored = [tensor for tensor in tensors if tensor.device.type == "cpu" and tensor.layout is torch.strided]
    return Held(updates=updates, tensors=len(tensors), bytes=tensor_bytes(stored))


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
    states = [value for state in optimizer.state.values() for value in state.values()] if optimizer else []
    return Ledger(
        weights_bytes=tensor_bytes(weight_tensors(model)),
        gradients_bytes=gradients_bytes,
        optimizer_bytes=tensor_bytes(one for one in states if isinstance(one, Tensor)) if optimizer else None,
        checkpoint_bytes=sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
        activations_bytes=None,
        peak_bytes=None,
    )


def parameter_counts(model: nn.Module) -> Parameters:
    """Trainable and total parameters; a weight packed to 4 bits counts as the weights it holds."""
    tensors = dict(model.named_parameters())  # tied weights once
    shapes = {name: state.shape for name, p in tensors.items() if (state := getattr(p, "quant_state", None)) is not None}
    sizes = {name: torch.Size(shapes.get(name, p.shape)).numel() for name, p in tensors.items()}
    total = sum(size for name, size in sizes.items() if not any(part in name for part in PEFT_TWINS))
    trainable = sum(p.numel() for p in tensors.values() if p.requires_grad)
    return Parameters(trainable_params=trainable, total_params=total, trainable_percent=100 * trainable / total)
