"""Judges whether a run takes more memory or time than a baseline.

The ledger of tensors is exact; peaks and the median step have relative margins. Speed is compared between like machines only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from tunegrid.record import Record
from tunegrid.results.judgements import Judgement, Verdict, judgement_of
from tunegrid.results.statistics import ALPHA, slower

LEDGER = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "checkpoint_bytes")
PEAKS = ("rss_peak_gib", "allocated_peak_gib", "reserved_peak_gib")
SEED_DEVIATIONS = 3.0
ALIKE = ("torch", "transformers", "peft", "bitsandbytes")  # versions that affect speed
Seeds = Mapping[int | None, Record]  # a cell's records by seed


def memory(seeds: Seeds, before: Record, after: Record, margins: Mapping[str, float]) -> Iterator[Judgement]:
    """Verdicts on the ledger, and on peaks where the device is the same; `seeds` are the baseline's runs of the cell."""
    if not before.memory or not after.memory:
        return
    for name in LEDGER:
        old, new = (getattr(measured.ledger, name) for measured in (before.memory, after.memory))
        if old and new is not None:
            judgement = _relative(before, name, [old], new, margins["ledger"])
            # Fewer bytes of tensors are not a gain of training: something is missing, or no longer in fp32.
            yield replace(judgement, verdict=Verdict.CHANGED) if judgement.verdict is Verdict.BETTER else judgement
    if not before.device or not after.device or before.device.name != after.device.name:
        return
    if before.processes != after.processes:
        return
    alike = [seed.memory for seed in seeds.values() if seed.device and seed.device.name == after.device.name]
    for name in PEAKS:
        peaks = [peak for measured in alike if measured and (peak := measured.peak(name)) is not None]
        now = after.memory.peak(name)
        if peaks and now is not None:
            yield _relative(before, name, peaks, now, margins[name])


def _relative(record: Record, name: str, old: Sequence[float], new: float, margin: float) -> Judgement:
    """Worse: over the baseline's largest figure by more than the margin. Better: under its smallest by more than the margin."""
    share = new / max(old) - 1
    verdict = Verdict.WORSE if share > margin else Verdict.BETTER if new / min(old) - 1 < -margin else Verdict.SAME
    return judgement_of(record, name, verdict, effect=share, detail=f"margin {margin:.0%}")


def speed(seeds: Seeds, before: Record, after: Record, margin: float) -> Judgement:
    """The verdict on the median step; `seeds` are the baseline's runs of the cell."""
    reason = unlike_machines(before, after)
    old, new = (record.throughput.step_seconds if record.throughput else [] for record in (before, after))
    alike = [record for record in seeds.values() if not unlike_machines(record, after)]  # nodes of a cluster may differ
    medians = [median for record in alike if (median := _median_step(record)) is not None]
    now = _median_step(after)
    if reason or not old or not new or not medians or now is None:
        detail = reason or "too few steps were measured"
        return judgement_of(before, "step_seconds", Verdict.NOT_COMPARABLE, detail=detail)
    spread = SEED_DEVIATIONS * stdev(medians) / fmean(medians) if len(medians) > 1 else 0.0
    margin = max(margin, spread)
    share = now / fmean(medians) - 1
    p = slower(old, new)
    verdict = Verdict.WORSE if share > margin and p < ALPHA else Verdict.BETTER if share < -margin else Verdict.SAME
    return judgement_of(before, "step_seconds", verdict, effect=share, p=p, detail=f"margin {margin:.0%}")


def _median_step(record: Record) -> float | None:
    return record.throughput.step_seconds_median if record.throughput else None


def unlike_machines(before: Record, after: Record) -> str:
    """Why the speed of two records cannot be compared; empty where it can."""
    if not before.device or not after.device:
        return "a run does not name its device"
    facts = [("name", before.device.name, after.device.name), ("threads", before.device.threads, after.device.threads)]
    facts += [("ranks", before.processes, after.processes)]
    facts += [(package, before.versions.get(package), after.versions.get(package)) for package in ALIKE]
    for what, old, new in facts:
        if old != new:
            return f"{what}: {old} and {new}"
    return "measured on a device that others used" if before.device.contended or after.device.contended else ""
