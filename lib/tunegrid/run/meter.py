"""Measures time, throughput, memory and energy for the record; figures not measured are None.

Training time covers only updates. Training throughput covers the updates after warm-up, and counts
tokens without padding. Memory peaks are per phase.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunegrid.machine import GIB
from tunegrid.record.record import Ledger, Memory, Parameters, Phase, RanksRecord, Throughput
from tunegrid.run.device import give_back_memory
from tunegrid.run.ranks import Ranks, local_shard

WARMUP_UPDATES = 3  # excluded from throughput, since first calls allocate memory and pick kernels
SETTLED = 10  # updates after which optimizer states and workspaces exist and no tensor is added
# These figures add up over a phase's parts; all others are peaks, of which the highest counts.
SUMS = ("seconds", "gpu_energy_joules")
# PEFT's duplicates count once: a head that trains in full has a frozen copy, and a trained token
# has a row in the embedding.
PEFT_TWINS = (".original_module.", ".trainable_tokens_delta.")

NVML = "libnvidia-ml.so.1"  # comes with NVIDIA's driver
NO_COUNTER = "not measured: no GPU with an energy counter that only this cell uses"
# Takes the stage, the count done, the total, and text to show.
Progress = Callable[[str, int, int, str], None]
Joules = Callable[[], float | None]  # reads a counter; None if it cannot be read


def gpu_counter(device: torch.device, ranks: int = 1) -> Joules | None:
    """Returns a function that reads a GPU's energy counter: joules since its driver was loaded.

    Returns None on a CPU, without NVML, on GPUs older than Volta, and with several ranks, because
    the function would read only one rank's GPU.
    """
    if device.type != "cuda" or ranks > 1:
        return None
    handle = ctypes.c_void_p()
    count = ctypes.c_ulonglong()
    # Finds the GPU by UUID, since CUDA_VISIBLE_DEVICES may hide cards.
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    try:
        library = ctypes.CDLL(NVML)
        failed = library.nvmlInit_v2()
        failed = failed or library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle))
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
    """The number of tensors that a process holds between two updates, and their bytes."""

    updates: int  # updates made so far
    tensors: int
    bytes: int  # from the device's allocator, or on a CPU from these tensors' storages


@dataclass(kw_only=True)
class Meter:
    """Collects one cell's measurements."""

    device: torch.device
    counter: Joules | None = None  # the GPU's energy counter; see `gpu_counter`
    cells_before: int | None = None  # earlier cells in the same process; None if unknown
    updates: list[Update] = field(default_factory=list)
    # Taken after `SETTLED` updates or a few more, and after the last update.
    held: list[Held] = field(default_factory=list)
    phases: dict[str, Phase] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list, init=False)  # open phases, innermost last
    _began: float = field(default=0.0, init=False)
    _joules: float | None = field(default=None, init=False)

    def mark(self) -> Any:
        """The host's time or, on CUDA, a recorded event, for which the host does not wait."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @contextmanager
    def update(self, *, samples: int) -> Iterator[Update]:
        """Times one update, including collation; drops it if it fails. The caller counts tokens."""
        update = Update(began=self.mark(), samples=samples)
        yield update
        update.ended = self.mark()
        self.updates.append(update)

    def note_tensors(self, expected: Collection[Tensor], *, is_last: bool) -> None:
        """Counts tensors other than `expected` after `SETTLED` updates and again at the end."""
        if is_last != bool(self.held) or len(self.updates) < SETTLED:
            return
        held = held_tensors(self.device, len(self.updates), expected)
        if self.held and held.tensors > self.held[0].tensors:
            gc.collect()  # drops garbage, which must not count
            held = held_tensors(self.device, len(self.updates), expected)
        self.held.append(held)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures a phase's time, memory peaks and energy; an inner phase pauses the outer one."""
        self._switch([*self._open, name])
        try:
            yield
        finally:
            self._switch(self._open[:-1])

    def _switch(self, phases: list[str]) -> None:
        """Ends or pauses the innermost open phase; begins or resumes the innermost of `phases`."""
        if self._open:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            phase = peaks(self.device, time.perf_counter() - self._began)
            start = self._joules
            end = self.counter() if self.counter else None
            if start is not None and end is not None and end >= start:
                phase = replace(phase, gpu_energy_joules=end - start)
            name = self._open[-1]
            if name in self.phases:
                phase = add_phases(self.phases[name], phase)
            self.phases[name] = phase
        self._open = phases
        if phases:
            reset_peaks(self.device)
            self._joules = self.counter() if self.counter else None
            self._began = time.perf_counter()

    def gather_ranks(self, ranks: Ranks) -> RanksRecord:
        """Gathers each rank's figures, and sums the sizes in `updates` over the ranks.

        All ranks must call this.
        """
        memory = self.memory()
        rates = self.throughput()
        record = {
            "rss_peak_gib": memory.peak("rss_peak_gib"),
            "allocated_peak_gib": memory.peak("allocated_peak_gib"),
            "reserved_peak_gib": memory.peak("reserved_peak_gib"),
            "train_samples_per_second": rates.train_samples_per_second,
            "train_tokens_per_second": rates.train_tokens_per_second,
            "train_samples": sum(update.samples for update in self.updates),
        }
        sizes = [(update.samples, update.tokens, update.padded_tokens) for update in self.updates]
        records, sizes_of_ranks = zip(*ranks.gather((record, sizes)), strict=True)
        for update, *rank_sizes in zip(self.updates, *sizes_of_ranks, strict=True):
            totals = map(sum, zip(*rank_sizes, strict=True))
            update.samples, update.tokens, update.padded_tokens = totals
        return RanksRecord(
            count=ranks.count,
            backend="nccl" if self.device.type == "cuda" else "gloo",
            fsdp=ranks.holds_parts,
            each=list(records),
        )

    def memory(self, ledger: Ledger | None = None, *, contended: bool | None = False) -> Memory:
        """The measurements of each phase, and the ledger.

        Energy is None if the GPU is `contended`. Without `ledger`, the ledger's fields are None.
        """
        ledger = ledger or Ledger(**dict.fromkeys(Ledger.__annotations__))
        resets: dict[str, Any] = {"gpu_energy_joules": None} if contended else {}
        phases = {name: replace(phase, **resets) for name, phase in self.phases.items()}
        return Memory(phases=phases, ledger=ledger, cells_before=self.cells_before)

    def throughput(
        self,
        eval_samples: float | None = None,
        generated_tokens: float | None = None,
    ) -> Throughput:
        """Training rates after warm-up (None if training was too short) and evaluation rates."""
        updates = self.updates[WARMUP_UPDATES:]
        durations = self.durations(updates)
        total = sum(durations)
        tokens = sum(update.tokens for update in self.updates)
        padded_tokens = sum(update.padded_tokens for update in self.updates)

        def per_second(count: int) -> float | None:
            return count / total if total else None

        p90 = statistics.quantiles(durations, n=10)[-1] if len(durations) > 1 else None
        return Throughput(
            train_samples_per_second=per_second(sum(update.samples for update in updates)),
            train_tokens_per_second=per_second(sum(update.tokens for update in updates)),
            train_steps_per_second=per_second(len(updates)),
            step_seconds_median=statistics.median(durations) if durations else None,
            step_seconds_p90=p90,
            padding_share=1 - tokens / padded_tokens if padded_tokens else None,
            step_seconds=[round(seconds, 5) for seconds in durations],
            measured_steps=len(updates),
            warmup_steps=min(WARMUP_UPDATES, len(self.updates)),
            eval_samples_per_second=eval_samples,
            generated_tokens_per_second=generated_tokens,
        )

    def durations(self, updates: Sequence[Update]) -> list[float]:
        """The seconds that each update took; on CUDA, the host waits for the updates to end."""
        if self.device.type != "cuda":
            return [update.ended - update.began for update in updates]
        for update in updates:
            update.ended.synchronize()
        # torch reports milliseconds.
        return [float(update.began.elapsed_time(update.ended)) / 1000 for update in updates]


def add_phases(earlier: Phase, later: Phase) -> Phase:
    """Combines two parts of a phase: adds seconds and joules, and keeps the higher peaks.

    A figure that is unknown for one part is unknown for the whole.
    """
    figures: dict[str, Any] = {}
    for name, value in vars(earlier).items():
        later_value = getattr(later, name)
        if value is None or later_value is None:
            figures[name] = None
        elif name in SUMS:
            figures[name] = value + later_value
        else:
            figures[name] = max(value, later_value)
    return Phase(**figures)


def reset_peaks(device: torch.device) -> None:
    """Releases cached memory and resets the memory peaks of the process and the device."""
    give_back_memory()
    with suppress(OSError):
        # On Linux, this resets VmHWM; see proc(5).
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device, seconds: float) -> Phase:
    """Memory peaks of the process and the GPU since the last reset, `seconds` ago."""
    cuda = device.type == "cuda"
    rss_peak_gib = None
    with suppress(OSError):  # only Linux has a high-water mark that can be reset
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                rss_peak_gib = int(line.split()[1]) * 1024 / GIB
    return Phase(
        seconds=seconds,
        rss_peak_gib=rss_peak_gib,
        allocated_peak_gib=torch.cuda.max_memory_allocated(device) / GIB if cuda else None,
        reserved_peak_gib=torch.cuda.max_memory_reserved(device) / GIB if cuda else None,
    )


# Bytes and counts of a model's tensors


def held_tensors(device: torch.device, updates: int, expected: Collection[Tensor]) -> Held:
    """Counts this process's tensors, except `expected`, and the bytes held after `updates` updates.

    On CUDA, the bytes are the allocator's total.
    """
    expected_ids = set(map(id, expected))
    tensors = []
    stored = []
    for value in gc.get_objects():
        # `isinstance` would wake lazy objects.
        if issubclass(type(value), Tensor) and id(value) not in expected_ids:
            tensors.append(value)
            if value.device.type == "cpu" and value.layout is torch.strided:
                stored.append(value)
    if device.type == "cuda":
        allocated = torch.cuda.memory_allocated(device)
        return Held(updates=updates, tensors=len(tensors), bytes=allocated)
    return Held(updates=updates, tensors=len(tensors), bytes=tensor_bytes(stored))


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Total bytes of the tensors on this rank; storage that tensors share counts once."""
    sizes: dict[int, int] = {}
    for tensor in map(local_shard, tensors):
        if tensor.numel():
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def weight_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and the tensors that bitsandbytes keeps to unpack 4-bit weights."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            tensors += [value for value in vars(state).values() if isinstance(value, Tensor)]
            state = getattr(state, "state2", None)
    return tensors


def ledger(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    gradients_bytes: int | None,
) -> Ledger:
    """Exact bytes of weights, gradients, optimizer state, and a checkpoint of trained weights."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return Ledger(
        weights_bytes=tensor_bytes(weight_tensors(model)),
        gradients_bytes=gradients_bytes,
        optimizer_bytes=tensor_bytes(state_tensors(optimizer)) if optimizer else None,
        checkpoint_bytes=sum(p.numel() * p.element_size() for p in trained),
        activations_bytes=None,
        peak_bytes=None,
    )


def state_tensors(optimizer: Any) -> list[Tensor]:
    """The tensors in an optimizer's state."""
    tensors = []
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return tensors


def parameter_counts(model: nn.Module) -> Parameters:
    """Counts trainable and all parameters; 4-bit weights count with their unpacked size."""
    trainable = 0
    total = 0
    for name, p in model.named_parameters():  # yields tied weights once
        if p.requires_grad:
            trainable += p.numel()
        if not any(twin in name for twin in PEFT_TWINS):
            state = getattr(p, "quant_state", None)
            shape = p.shape if state is None else torch.Size(state.shape)
            total += shape.numel()
    return Parameters(
        trainable_params=trainable,
        total_params=total,
        trainable_percent=100 * trainable / total,
    )
