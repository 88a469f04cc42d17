"""Measures time, throughput, memory and energy for the record; what was not measured is None.

What it takes care of: training time is the time of updates, without encoding, validation and generation; throughput counts
real tokens over the updates after warm-up; peaks are per phase, not one for load, train and evaluation together.
"""

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tunegrid.machine import give_back_memory
from tunegrid.record.parts import Ledger, Memory, Parameters, Phase, RankRecord, RanksRecord, Throughput
from tunegrid.run.energy import Energy
from tunegrid.run.ranks import Ranks, local_shard

GIB = 2**30
PEFT_TWINS = (".original_module.", ".trainable_tokens_delta.")
WARMUP_UPDATES = 3  # left out of throughput: first calls allocate memory and pick kernels


class Clock(Protocol):
    """Marks moments; says afterwards, in seconds, how far apart they were."""

    def mark(self) -> Any:
        """A moment."""

    def seconds(self, earlier: Any, later: Any) -> float:
        """Seconds between two moments."""


class WallClock:
    """Host time: exact where a call returns only when its work is done."""

    def mark(self) -> float:
        """Now, in seconds."""
        return time.perf_counter()

    def seconds(self, earlier: float, later: float) -> float:
        """Their difference."""
        return later - earlier


class CudaClock:
    """CUDA events: they mark when the device reaches a point, and the host does not wait."""

    def mark(self) -> Any:
        """An event on the current stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, earlier: Any, later: Any) -> float:
        """Waits for the later event; torch reports milliseconds."""
        later.synchronize()
        return float(earlier.elapsed_time(later)) / 1000


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
    clock: Clock = field(default_factory=WallClock)
    energy: Energy = field(default_factory=Energy)
    cells_before: int | None = None
    updates: list[Update] = field(default_factory=list)
    phases: dict[str, Phase] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list, init=False)  # phases, the innermost last
    _began: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """On CUDA, time is read from the device."""
        if self.device.type == "cuda":
            self.clock = CudaClock()

    @contextmanager
    def update(self, *, samples: int, tokens: int = 0, padded_tokens: int = 0) -> Iterator[Update]:
        """Times one update, collating included. Validation and encoding, between updates, are not training time.

        What is only known inside, as tokens, can be set on what it yields. A failed update does not count.
        """
        update = Update(began=self.clock.mark(), samples=samples, tokens=tokens, padded_tokens=padded_tokens)
        yield update
        update.ended = self.clock.mark()
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
        seconds = sum(self._durations(self.updates[-count:]))
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
        return sum(self._durations(self.updates))

    def train_tokens(self) -> int:
        """Real tokens of all updates."""
        return sum(update.tokens for update in self.updates)

    def throughput(
        self, *, eval_samples_per_second: float | None = None, generated_tokens_per_second: float | None = None
    ) -> Throughput:
        """Rates over the updates after warm-up, None where a run was too short to have any; and what evaluation measured."""
        steady = self.updates[WARMUP_UPDATES:]
        durations = self._durations(steady)
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

    def _durations(self, updates: Iterable[Update]) -> list[float]:
        return [self.clock.seconds(update.began, update.ended) for update in updates]


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
