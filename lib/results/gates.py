"""Is a run worse than a baseline? In: records and per-example points of both. Out: a verdict for each cell and quantity.

*worse*: a significant drop (Holm over the cells) of at least the margin. *better*: a significant gain. *same*: the interval
is above the margin's drop. *cannot tell*: the test set is too small for any of these. Memory and speed have relative margins;
speed is compared between like machines only. Before all that, `lib.results.numerics` compares the first losses. Needs no torch.
"""

import math
import tomllib
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lib.errors import InputError
from lib.record import Record
from lib.results.examples import Examples, read
from lib.results.files import read_list
from lib.results.judgements import Judgement, Verdict
from lib.results.numerics import compared, load_tolerances
from lib.results.statistics import ALPHA, Effect, holm, noise_of_training, paired, paired_macro_f1, slower

MARGINS = Path(__file__).parents[2] / "benchmarks" / "thresholds" / "margins.toml"
LEDGER = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "checkpoint_bytes")
PEAKS = ("rss_peak_gib", "allocated_peak_gib", "reserved_peak_gib")
SEED_DEVIATIONS = 3.0
KINDS = ("numerics", "quality", "memory", "speed")
# By default. On a machine with other work, speed would fail at random; a change of numerics may be meant.
FAILED_BY = ("quality", "memory")
# Shown, never failed by: a process's resident set depends on the cells that it ran before.
SHOWN = ("rss_peak_gib",)
ALIKE = ("torch", "transformers", "peft", "bitsandbytes")  # versions that affect speed
Seeds = Mapping[int | None, Record]  # a cell's records by seed


@dataclass(frozen=True, kw_only=True)
class Run:
    """A saved run: records by cell and seed, and the file's path; examples are stored next to it."""

    records: Mapping[str, Seeds]
    path: Path | None = None

    @classmethod
    def of(cls, records: Iterable[Record], path: Path | None = None) -> "Run":
        """The records that finished, by cell and seed; raises InputError where they are of two profiles."""
        finished = [record for record in records if record.finished]
        profiles = sorted({record.profile for record in finished})
        if len(profiles) > 1:
            raise InputError(f"{path or 'the run'} holds cells of {' and '.join(profiles)}: judge one profile at a time")
        by_cell: dict[str, dict[int | None, Record]] = defaultdict(dict)
        for record in finished:
            by_cell[record.cell][record.seeds.seed] = record
        return cls(records=dict(by_cell), path=path)

    def only(self, cells: Container[str]) -> "Run":
        """The same run with these cells alone."""
        return Run(records={cell: seeds for cell, seeds in self.records.items() if cell in cells}, path=self.path)


def read_run(path: Path) -> Run:
    """A saved run, to judge or to judge by."""
    return Run.of(read_list(path), path)


def load_margins(path: Path = MARGINS) -> dict[str, dict[str, float]]:
    """Margins by kind and quantity."""
    return tomllib.loads(path.read_text())


def gate(old: Run, new: Run, margins: Mapping[str, Mapping[str, float]] | None = None) -> list[Judgement]:
    """Every verdict: missing cells first, then cells in the order of the run to judge.

    Raises:
        InputError: where the two have no cell in common, or scored different test rows.
    """
    margins = margins or load_margins()
    common = [cell for cell in old.records if cell in new.records]
    several = next((cell for cell in common if len(new.records[cell]) > 1), None)
    if several:
        raise InputError(f"the run to judge holds {several} with several seeds: judge one seed at a time")
    if not common:
        raise InputError(f"the two runs have no cell in common: the baseline has no {next(iter(new.records), 'cell')}")
    judged = _quality(old, new, common, margins["points"])
    tolerances = load_tolerances()
    for cell in common:
        before, after = _pair(old.records[cell], new.records[cell])
        verdict, detail = compared(before, after, tolerances)
        judged.append(_judgement(before, "numerics", verdict, detail=detail))
        judged += _memory(old.records[cell], before, after, margins["memory"])
        judged.append(_speed(old.records[cell], before, after, margins["speed"]["step_seconds"]))
    judged += _one_sided(old, new, Verdict.MISSING, "in the baseline, not in this run")
    judged += _one_sided(new, old, Verdict.NEW, "not in the baseline")
    order = [*(cell for cell in old.records if cell not in new.records), *new.records]
    return sorted(judged, key=lambda judgement: order.index(judgement.cell))


def _one_sided(run: Run, other: Run, verdict: Verdict, detail: str) -> Iterator[Judgement]:
    """A verdict on every cell that only one run has."""
    for cell, seeds in run.records.items():
        if cell not in other.records:
            yield _judgement(next(iter(seeds.values())), "cell", verdict, detail=detail)


def _judgement(record: Record, quantity: str, verdict: Verdict, **evidence: Any) -> Judgement:
    return Judgement(cell=record.cell, main_score=record.main_score, quantity=quantity, verdict=verdict, **evidence)


def _pair(before: Seeds, after: Seeds) -> tuple[Record, Record]:
    """Records of one seed where both have one, else of the first of each."""
    shared = [seed for seed in after if seed in before]
    new = shared[0] if shared else next(iter(after))
    return before[new] if shared else next(iter(before.values())), after[new]


# Quality


def _quality(old: Run, new: Run, cells: Sequence[str], margins: Mapping[str, float]) -> list[Judgement]:
    effects: dict[tuple[str, str], Effect] = {}
    judged = []
    for cell in cells:
        before, after = _pair(old.records[cell], new.records[cell])
        old_examples, new_examples = read(before, old.path), read(after, new.path)
        check_rows(before, after)
        for metric in before.bounded_scores:
            effect = _effect(before, metric, old_examples, new_examples) if old_examples and new_examples else None
            if effect:
                effects[cell, metric] = effect
            else:
                margin = max(_margin(margins, metric), seed_margin(old.records[cell], metric, len(cells)))
                judged.append(_by_margin(metric, before, after, margin))
    return judged + _by_tests(old, effects, margins)


def _margin(margins: Mapping[str, float], metric: str) -> float:
    return margins.get(metric, margins["other"])


def check_rows(before: Record, after: Record) -> None:
    """Raises InputError where two records were scored on different test rows."""
    if before.examples and after.examples and before.examples.rows_hash != after.examples.rows_hash:
        hashes = f"{before.examples.rows_hash} and {after.examples.rows_hash}"
        raise InputError(f"{before.cell}: the two runs scored different test rows ({hashes}) and cannot be paired")


def _effect(record: Record, metric: str, old: Examples, new: Examples) -> Effect | None:
    """The effect on a metric that both have row by row, or that follows from their labels; None for any other.

    Of a missed row, the true label is the other one of two; with more labels, the examples hold it.
    """
    try:
        if metric in old.points and metric in new.points:
            return paired(old.points[metric], new.points[metric])
        if metric == "f1_macro" and (truth := _true_labels(record, old)) is not None:
            before, after = ([int(label) for label in examples.predictions] for examples in (old, new))
            return paired_macro_f1(truth, before, after, len(record.labels))
    except (ValueError, KeyError) as error:
        raise InputError(f"{record.cell}, {metric}: {error}") from None
    return None


def _true_labels(record: Record, examples: Examples) -> list[int] | None:
    if examples.references is not None:
        return [int(label) for label in examples.references]
    if len(record.labels) != 2:
        return None  # saved before references were
    hits = zip(examples.predictions, examples.points["accuracy"], strict=True)
    return [int(label) if hit else 1 - int(label) for label, hit in hits]


def _by_tests(old: Run, effects: Mapping[tuple[str, str], Effect], margins: Mapping[str, float]) -> list[Judgement]:
    judged = []
    for metric in dict.fromkeys(metric for _, metric in effects):
        family = {cell: effect for (cell, name), effect in effects.items() if name == metric}
        worse = holm({cell: effect.p_worse for cell, effect in family.items()})
        better = holm({cell: effect.p_better for cell, effect in family.items()})
        for cell, effect in family.items():
            same = _margin(margins, metric)
            margin = max(same, seed_margin(old.records[cell], metric, len(family)))
            lost, won = effect.flips
            judged.append(
                _judgement(
                    next(iter(old.records[cell].values())),
                    metric,
                    verdict_of(effect, worse[cell], better[cell], margin, same),
                    effect=effect.points,
                    low=effect.low,
                    high=effect.high,
                    p=worse[cell],
                    smallest=effect.smallest(len(family), margin),
                    detail=f"{lost} rows lost, {won} gained of {effect.rows}; margin {margin:.1f}",
                )
            )
    return judged


def seed_margin(records: Seeds, metric: str, tests: int) -> float:
    """By how much training noise alone changes a score, from the baseline's seeds; 0 where it has one seed."""
    scores = [score for record in records.values() if (score := record.scores.get(metric)) is not None]
    return noise_of_training(scores, tests)


def verdict_of(effect: Effect, p_worse: float, p_better: float, margin: float, same: float | None = None) -> Verdict:
    """The verdict on a score; p-values are adjusted. `margin` is for worse, with the seeds' noise; `same` without it."""
    if p_worse < ALPHA and effect.points <= -margin:
        return Verdict.WORSE
    if p_better < ALPHA:
        return Verdict.BETTER
    return Verdict.SAME if effect.low > -(margin if same is None else same) else Verdict.CANNOT_TELL


def _by_margin(metric: str, before: Record, after: Record, margin: float) -> Judgement:
    """Where single rows have no points: by the margin alone."""
    old, new = before.scores.get(metric), after.scores.get(metric)
    if old is None or new is None or not math.isfinite(old) or not math.isfinite(new):
        verdict = Verdict.CANNOT_TELL if old is None else Verdict.WORSE
        return _judgement(before, metric, verdict, detail=f"{old} and {new}: not two numbers")
    verdict = Verdict.WORSE if new - old <= -margin else Verdict.BETTER if new - old >= margin else Verdict.SAME
    detail = f"no points by row, by the margin of {margin:.1f} alone"
    return _judgement(before, metric, verdict, effect=new - old, detail=detail)


# Memory and speed


def _memory(seeds: Seeds, before: Record, after: Record, margins: Mapping[str, float]) -> Iterator[Judgement]:
    if not before.memory or not after.memory:
        return
    for name in LEDGER:
        old, new = (getattr(memory.ledger, name) for memory in (before.memory, after.memory))
        if old and new is not None:
            judgement = _relative(before, name, [old], new, margins["ledger"])
            # Fewer bytes of tensors are no gain that training brings: something is no longer there, or no longer in fp32.
            yield replace(judgement, verdict=Verdict.CHANGED) if judgement.verdict is Verdict.BETTER else judgement
    if not before.device or not after.device or before.device.name != after.device.name:
        return
    for name in PEAKS:
        peaks = [peak for seed in seeds.values() if seed.memory and (peak := seed.memory.peak(name)) is not None]
        now = after.memory.peak(name)
        if peaks and now is not None:
            yield _relative(before, name, peaks, now, margins[name])


def _relative(record: Record, name: str, old: Sequence[float], new: float, margin: float) -> Judgement:
    """Worse: over the baseline's largest figure by more than the margin. Better: under its smallest by more than the margin."""
    share = new / max(old) - 1
    verdict = Verdict.WORSE if share > margin else Verdict.BETTER if new / min(old) - 1 < -margin else Verdict.SAME
    return _judgement(record, name, verdict, effect=share, detail=f"margin {margin:.0%}")


def _speed(seeds: Seeds, before: Record, after: Record, margin: float) -> Judgement:
    reason = unlike_machines(before, after)
    old, new = (record.throughput.step_seconds if record.throughput else [] for record in (before, after))
    medians = [median for record in seeds.values() if (median := _median_step(record)) is not None]
    now = _median_step(after)
    if reason or not old or not new or not medians or now is None:
        detail = reason or "too few steps were measured"
        return _judgement(before, "step_seconds", Verdict.NOT_COMPARABLE, detail=detail)
    spread = SEED_DEVIATIONS * stdev(medians) / fmean(medians) if len(medians) > 1 else 0.0
    margin = max(margin, spread)
    share = now / fmean(medians) - 1
    p = slower(old, new)
    verdict = Verdict.WORSE if share > margin and p < ALPHA else Verdict.BETTER if share < -margin else Verdict.SAME
    return _judgement(before, "step_seconds", verdict, effect=share, p=p, detail=f"margin {margin:.0%}")


def _median_step(record: Record) -> float | None:
    return record.throughput.step_seconds_median if record.throughput else None


def unlike_machines(before: Record, after: Record) -> str:
    """Why the speed of two records cannot be compared; empty where it can."""
    if not before.device or not after.device:
        return "a run does not name its device"
    facts = [("name", before.device.name, after.device.name), ("threads", before.device.threads, after.device.threads)]
    facts += [(package, before.versions.get(package), after.versions.get(package)) for package in ALIKE]
    for what, old, new in facts:
        if old != new:
            return f"{what}: {old} and {new}"
    return "measured on a device that others used" if before.device.contended or after.device.contended else ""


# What counts


def kinds_of(text: str) -> tuple[str, ...]:
    """Kinds of figures, divided by commas; raises InputError for a name that is none."""
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"{kind!r} is no kind of figure; give some of {','.join(KINDS)}")
    return kinds


def kind_of(judgement: Judgement) -> str:
    """The kind of figure; a cell that is missing or new counts as quality."""
    if judgement.quantity in ("numerics", "step_seconds"):
        return {"numerics": "numerics", "step_seconds": "speed"}[judgement.quantity]
    return "memory" if judgement.quantity in (*LEDGER, *PEAKS) else "quality"


def failing(judged: Sequence[Judgement], kinds: Sequence[str], *, strict: bool = False) -> list[Judgement]:
    """What of these kinds is worse, or of numerics changed, and every missing cell; with `strict` also what cannot be told."""
    verdicts = (Verdict.WORSE, Verdict.CANNOT_TELL) if strict else (Verdict.WORSE,)
    return [
        j
        for j in judged
        if j.verdict is Verdict.MISSING
        or (kind_of(j) in kinds and j.verdict in verdicts and j.quantity not in SHOWN)
        or ("numerics" in kinds and j.verdict is Verdict.CHANGED)
    ]
