"""Is a run worse than a baseline? In: records and per-example points of both. Out: a verdict a cell and quantity.

*worse*: a drop that is no chance (Holm over the cells) and as large as the margin. *better*: a gain that is no chance.
*same*: the interval lies above the margin's drop. *cannot tell*: the test set is too small to say any of these. Memory and
speed are held to relative margins, speed only between like machines. Needs no torch.
"""

import math
import tomllib
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lib.errors import InputError
from lib.grid.tasks import TASKS
from lib.results.examples import Examples, read
from lib.results.files import read_list
from lib.results.record import Record
from lib.results.run_table import OURS
from lib.results.statistics import ALPHA, Effect, holm, noise_of_training, paired, paired_macro_f1, slower

MARGINS = Path(__file__).parents[2] / "benchmarks" / "thresholds" / "margins.toml"
LEDGER = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "checkpoint_bytes")
PEAKS = ("rss_peak_gib", "allocated_peak_gib", "reserved_peak_gib")
SEED_DEVIATIONS = 3.0
KINDS = ("quality", "memory", "speed")
FAILED_BY = ("quality", "memory")  # by default: speed is shown, but a machine with other work on it would fail at random
ALIKE = ("torch", "transformers", "peft", "bitsandbytes")  # versions that bear on speed


class Verdict(StrEnum):
    """What a gate says."""

    BETTER = "better"
    SAME = "same"
    WORSE = "worse"
    CANNOT_TELL = "cannot tell"
    MISSING = "missing"
    NEW = "new"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One verdict with its evidence.

    Attributes:
        quantity: a score, a memory figure or step_seconds; "cell" where the whole cell is missing or new.
        effect: new minus old, in points or as a share; None where nothing was compared.
        low, high: the effect's 95 % interval; p: of being worse, adjusted over the cells.
        smallest: the smallest drop that this test set would show four times in five.
        detail: what else a reader needs, as why there is no interval.
    """

    cell: str
    quantity: str
    verdict: Verdict
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    smallest: float | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A saved run: records by cell and seed, and where its file lies, beside which examples are."""

    records: Mapping[str, Mapping[int, Record]]
    path: Path | None = None

    @classmethod
    def of(cls, records: Iterable[Record], path: Path | None = None) -> "Run":
        """Records sorted by cell and seed, those that did not finish left out; raises InputError for those of two profiles."""
        finished = [record for record in records if record["outcome"] in ("passed", "missed")]
        profiles = sorted({record["profile"] for record in finished})
        if len(profiles) > 1:
            raise InputError(f"{path or 'the run'} holds cells of {' and '.join(profiles)}: judge one profile at a time")
        found: dict[str, dict[int, Record]] = defaultdict(dict)
        for record in finished:
            found[record["cell"]][record["seeds"]["seed"]] = record
        return cls(records=dict(found), path=path)

    def only(self, cells: Container[str]) -> "Run":
        """The same run with these cells alone."""
        return Run(records={cell: found for cell, found in self.records.items() if cell in cells}, path=self.path)


def read_run(path: Path) -> Run:
    """A saved run, to be judged or to judge by."""
    return Run.of(read_list(path), path)


def load_margins(path: Path = MARGINS) -> dict[str, dict[str, float]]:
    """Margins by kind and quantity."""
    return tomllib.loads(path.read_text())


def gate(old: Run, new: Run, margins: Mapping[str, Mapping[str, float]] | None = None) -> list[Judgement]:
    """Every verdict, in the order of the baseline's cells.

    Raises:
        InputError: where the two have no cell in common, or scored different test rows.
    """
    margins = margins or load_margins()
    common = [cell for cell in old.records if cell in new.records]
    several = next((cell for cell in common if len(new.records[cell]) > 1), None)
    if several:
        raise InputError(f"the run to judge holds {several} with several seeds: judge one seed at a time")
    if not common:
        raise InputError("the two runs have no cell in common: are they of one profile?")
    judged = _quality(old, new, common, margins["points"])
    for cell in common:
        before, after = _pair(old.records[cell], new.records[cell])
        judged += _memory(cell, old.records[cell], before, after, margins["memory"])
        judged.append(_speed(cell, old.records[cell], before, after, margins["speed"]["step_seconds"]))
    judged += [
        Judgement(cell=cell, quantity="cell", verdict=Verdict.MISSING, detail="in the baseline, not in this run")
        for cell in old.records
        if cell not in new.records
    ]
    judged += [
        Judgement(cell=cell, quantity="cell", verdict=Verdict.NEW, detail="not in the baseline")
        for cell in new.records
        if cell not in old.records
    ]
    order = {cell: place for place, cell in enumerate([*old.records, *new.records])}
    return sorted(judged, key=lambda judgement: order[judgement.cell])


def _pair(before: Mapping[int, Record], after: Mapping[int, Record]) -> tuple[Record, Record]:
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
        ours, theirs = read(before, old.path), read(after, new.path)
        check_rows(cell, before, after)
        for metric in _bounded(before):
            effect = _effect(cell, metric, ours, theirs) if ours and theirs else None
            if effect:
                effects[cell, metric] = effect
            else:
                margin = max(margins[metric], seed_margin(old.records[cell], metric, len(cells)))
                judged.append(_by_margin(cell, metric, before, after, margin))
    return judged + _by_tests(old, effects, margins)


def _bounded(record: Record) -> tuple[str, ...]:
    return next(task.bounded_scores for task in TASKS if task.id == record["task"])


def check_rows(cell: str, before: Record, after: Record) -> None:
    """Raises InputError where two records were scored on different test rows."""
    hashes = [(record.get("examples") or {}).get("rows_hash") for record in (before, after)]
    if all(hashes) and hashes[0] != hashes[1]:
        raise InputError(f"{cell}: the two runs scored different test rows ({hashes[0]} and {hashes[1]}) and cannot be paired")


def _effect(cell: str, metric: str, ours: Examples, theirs: Examples) -> Effect | None:
    """The effect on a metric that both have row by row, or that follows from their labels; None for any other."""
    try:
        if metric in ours.points and metric in theirs.points:
            return paired(ours.points[metric], theirs.points[metric])
        if metric == "f1_macro":
            old, new = ([int(label) for label in each.predictions] for each in (ours, theirs))
            hits = zip(old, ours.points["accuracy"], strict=True)
            return paired_macro_f1([label if hit else 1 - label for label, hit in hits], old, new)
    except (ValueError, KeyError) as error:
        raise InputError(f"{cell}, {metric}: {error}") from None
    return None


def _by_tests(old: Run, effects: Mapping[tuple[str, str], Effect], margins: Mapping[str, float]) -> list[Judgement]:
    judged = []
    for metric in dict.fromkeys(metric for _, metric in effects):
        family = {cell: effect for (cell, name), effect in effects.items() if name == metric}
        worse = holm({cell: effect.p_worse for cell, effect in family.items()})
        better = holm({cell: effect.p_better for cell, effect in family.items()})
        for cell, effect in family.items():
            margin = max(margins[metric], seed_margin(old.records[cell], metric, len(family)))
            verdict = verdict_of(effect, worse[cell], better[cell], margin, margins[metric])
            lost, won = effect.flips
            judged.append(
                Judgement(
                    cell=cell,
                    quantity=metric,
                    verdict=verdict,
                    effect=effect.points,
                    low=effect.low,
                    high=effect.high,
                    p=worse[cell],
                    smallest=effect.smallest(len(family), margin),
                    detail=f"{lost} rows lost, {won} gained of {effect.rows}; margin {margin:.1f}",
                )
            )
    return judged


def seed_margin(records: Mapping[int, Record], metric: str, tests: int) -> float:
    """What chance in training alone does to a score, by the baseline's seeds; 0 where it has one seed."""
    found = [score for record in records.values() if (score := record["scores"].get(metric)) is not None]
    return noise_of_training(found, tests)


def verdict_of(effect: Effect, p_worse: float, p_better: float, margin: float, same: float | None = None) -> Verdict:
    """The verdict on a score; p-values are adjusted. `margin` is for worse, with the seeds' noise; `same` without it."""
    if p_worse < ALPHA and effect.points <= -margin:
        return Verdict.WORSE
    if p_better < ALPHA:
        return Verdict.BETTER
    return Verdict.SAME if effect.low > -(margin if same is None else same) else Verdict.CANNOT_TELL


def _by_margin(cell: str, metric: str, before: Record, after: Record, margin: float) -> Judgement:
    """Where there are no points of each row: the margin alone."""
    old, new = before["scores"].get(metric), after["scores"].get(metric)
    if old is None or new is None or not math.isfinite(old) or not math.isfinite(new):
        verdict = Verdict.CANNOT_TELL if old is None else Verdict.WORSE
        return Judgement(cell=cell, quantity=metric, verdict=verdict, detail=f"{old} and {new}: not two numbers")
    verdict = Verdict.WORSE if new - old <= -margin else Verdict.BETTER if new - old >= margin else Verdict.SAME
    detail = f"no points by row, by the margin of {margin:.1f} alone"
    return Judgement(cell=cell, quantity=metric, verdict=verdict, effect=new - old, detail=detail)


# Memory and speed


def _memory(
    cell: str, seeds: Mapping[int, Record], before: Record, after: Record, margins: Mapping[str, float]
) -> Iterable[Judgement]:
    old, new = (record["memory"]["ledger"] for record in (before, after))
    for name in LEDGER:
        if old.get(name) and new.get(name) is not None:
            yield _relative(cell, name, [old[name]], new[name], margins["ledger"])
    for name in PEAKS:
        peaks = [peak for record in seeds.values() if (peak := _peak(record, name)) is not None]
        now = _peak(after, name)
        if peaks and now is not None and before["device"]["name"] == after["device"]["name"]:
            yield _relative(cell, name, peaks, now, margins[name])


def _peak(record: Record, name: str) -> float | None:
    phases = record["memory"]["phases"].items()
    found = [phase[name] for what, phase in phases if what not in OURS and phase.get(name) is not None]
    return max(found) if found else None


def _relative(cell: str, name: str, old: Sequence[float], new: float, margin: float) -> Judgement:
    """Against the largest of the baseline's figures; less by more than the margin than the smallest is better."""
    share = new / max(old) - 1
    verdict = Verdict.WORSE if share > margin else Verdict.BETTER if new / min(old) - 1 < -margin else Verdict.SAME
    return Judgement(cell=cell, quantity=name, verdict=verdict, effect=share, detail=f"margin {margin:.0%}")


def _speed(cell: str, seeds: Mapping[int, Record], before: Record, after: Record, margin: float) -> Judgement:
    reason = unlike_machines(before, after)
    old, new = (record["throughput"].get("step_seconds") or [] for record in (before, after))
    if reason or not old or not new:
        detail = reason or "too few steps were measured"
        return Judgement(cell=cell, quantity="step_seconds", verdict=Verdict.NOT_COMPARABLE, detail=detail)
    medians = [record["throughput"]["step_seconds_median"] for record in seeds.values()]
    spread = SEED_DEVIATIONS * stdev(medians) / fmean(medians) if len(medians) > 1 else 0.0
    margin = max(margin, spread)
    share = after["throughput"]["step_seconds_median"] / fmean(medians) - 1
    p = slower(old, new)
    verdict = Verdict.WORSE if share > margin and p < ALPHA else Verdict.BETTER if share < -margin else Verdict.SAME
    return Judgement(cell=cell, quantity="step_seconds", verdict=verdict, effect=share, p=p, detail=f"margin {margin:.0%}")


def unlike_machines(before: Record, after: Record) -> str:
    """Why the speed of two records cannot be compared; empty where it can."""
    for what, old, new in _machines(before, after):
        if old != new:
            return f"{what}: {old} and {new}"
    contended = [record["device"].get("contended") for record in (before, after)]
    return "measured on a device that others used" if any(contended) else ""


def _machines(before: Record, after: Record) -> Iterable[tuple[str, Any, Any]]:
    for name in ("name", "threads"):
        yield name, before["device"][name], after["device"][name]
    for package in ALIKE:
        yield package, before["versions"].get(package), after["versions"].get(package)


def kind_of(judgement: Judgement) -> str:
    """quality, memory or speed; a cell that is missing or new counts as quality."""
    if judgement.quantity == "step_seconds":
        return "speed"
    return "memory" if judgement.quantity in (*LEDGER, *PEAKS) else "quality"


def failing(judged: Sequence[Judgement], kinds: Sequence[str], *, strict: bool = False) -> list[Judgement]:
    """What of these kinds is worse, and every missing cell; with `strict` also what cannot be told."""
    verdicts = (Verdict.WORSE, Verdict.CANNOT_TELL) if strict else (Verdict.WORSE,)
    return [j for j in judged if j.verdict is Verdict.MISSING or (kind_of(j) in kinds and j.verdict in verdicts)]
