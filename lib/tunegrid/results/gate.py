"""Judges a run by a baseline: one verdict per cell and quantity.

*worse*: a significant drop of at least the margin. *better*: a significant gain. *same*: the interval is above the margin's
drop. *cannot tell*: more seeds or test rows are needed for any of these. *too good*: better than healthy runs are.

Scores are judged by `tunegrid.results.quality`, losses by `tunegrid.results.numerics`, what instruments measured by
`tunegrid.results.figures`, memory and speed here: the ledger of tensors is exact; peaks and the median step have relative
margins, and speed is compared between like machines only. What the verdicts come to is for `tunegrid.results.outcomes` to say.
Needs no torch.
"""

import math
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from scipy import special

from tunegrid.errors import InputError
from tunegrid.grid.cells import study_place
from tunegrid.record import Record
from tunegrid.results.alike import unlike_machines
from tunegrid.results.files import read_list
from tunegrid.results.judgements import GRAVEST_FIRST, LEDGER, PEAKS, Judgement, RecordsBySeed, Verdict, judgement_of
from tunegrid.results.modules import Runs
from tunegrid.results.noise import Noise, deviation, kind_of_cell, load_noise, mean_score
from tunegrid.results.numerics import (
    Tolerances,
    compared,
    furthest_apart,
    load_tolerances,
    losses,
    updates_in_common,
)
from tunegrid.results.quality import Judge, Rows
from tunegrid.results.statistics import ALPHA, slower
from tunegrid.results.thresholds import THRESHOLDS, Evidence, load_evidence, load_margins

SEED_DEVIATIONS = 3.0  # of the baseline's median steps, by which a run may be slower
CHANCE = 0.02  # that the losses of any cell of a healthy run fall so low; the same as that it misses a bound
LEAST = 0.1  # of the log of a mean loss, below what noise explains: one healthy seed of the baseline lies 0.05 below
ADVICE = "leaked rows, a lost mask?"
MODULE = re.compile(r"(\S+) \((\w+), ([\w.]+)\)")  # a module's name, its class and library
NO_SCORES = "the baseline holds the first updates of it alone"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A saved run: records by cell and seed, and the file's path; examples are stored next to it."""

    records: Mapping[str, RecordsBySeed]
    path: Path | None = None

    @classmethod
    def of(cls, records: Iterable[Record], path: Path | None = None) -> "Run":
        """The records that finished or made their first updates, by cell and seed.

        Raises InputError where they are of two profiles.
        """
        finished = [record for record in records if record.finished or record.first_updates]
        profiles = sorted({record.profile for record in finished})
        if len(profiles) > 1:
            raise InputError(f"{path or 'the run'} holds cells of {' and '.join(profiles)}: judge one profile at a time")
        by_cell: dict[str, dict[int | None, Record]] = defaultdict(dict)
        for record in finished:
            by_cell[record.cell][record.seeds.seed] = record
        return cls(records=dict(by_cell), path=path)

    @property
    def profile(self) -> str:
        """The profile of its records; empty without any."""
        return next((record.profile for seeds in self.records.values() for record in seeds.values()), "")

    @property
    def in_a_row(self) -> list[Record]:
        """Its records, one after the other."""
        return [record for seeds in self.records.values() for record in seeds.values()]

    def only(self, cells: Container[str]) -> "Run":
        """The same run with these cells alone."""
        return Run(records={cell: seeds for cell, seeds in self.records.items() if cell in cells}, path=self.path)


def read_run(path: Path) -> Run:
    """A saved run, to judge or to judge by."""
    return Run.of(read_list(path), path)


def gate(
    old: Run,
    new: Run,
    *,
    margins: Mapping[str, Mapping[str, float]] | None = None,
    noise: Noise | None = None,
) -> list[Judgement]:
    """Every verdict: missing cells first, then the others, both in the study's order.

    Args:
        old: the baseline, of one seed or several.
        new: the run to judge, of one seed or several.
        margins: by kind and quantity; those of the suite if None.
        noise: of training; what the suite was calibrated to if None.

    Raises:
        InputError: where the two are of two profiles, have no cell in common, or scored different test rows.
    """
    cells = paired(old, new)
    margins, tolerances = margins or load_margins(), load_tolerances()
    judge = Judge(margins=margins["points"], noise=load_noise() if noise is None else noise, tolerances=tolerances)
    whole = {cell: both for cell, rows in cells.items() if (both := rows.finished)}
    judged = [*judge.judged(list(whole.values()))]
    for cell, rows in cells.items():
        seen = whole.get(cell, rows)
        before, after = seen.records[0]
        judged.append(numerics(rows.records, tolerances, (old.path, new.path)))
        judged += memory(seen.old, before, after, margins["memory"])
        if cell in whole:
            judged.append(speed(seen.old, before, after, margins["speed"]["step_seconds"]))
        elif after.finished:
            judged.append(judgement_of(after, after.main_score, Verdict.CANNOT_TELL, detail=NO_SCORES))
    if any(record.instruments for record in old.in_a_row):
        from tunegrid.results import figures  # pandas, which takes a third of a second

        judged += figures.judged(list(whole.values()), tolerances)
    judged += too_good(whole, load_evidence(THRESHOLDS / f"{new.profile}.toml"))
    judged += _one_sided(old, new, Verdict.MISSING, "in the baseline, not in this run")
    judged += _one_sided(new, old, Verdict.NEW, "not in the baseline")
    return sorted(judged, key=lambda judgement: (judgement.cell in new.records, study_place(judgement.cell)))


def paired(old: Run, new: Run) -> dict[str, Rows]:
    """The cells that both runs have; raises InputError where there are none, or they are of two profiles."""
    if old.records and new.records and old.profile != new.profile:
        raise InputError(f"the baseline is of {old.profile} and the run of {new.profile}: judge one profile at a time")
    if not new.records:
        raise InputError("no cell of the run finished: there is nothing to judge")
    common = [cell for cell in old.records if cell in new.records]
    if not common:
        raise InputError(f"the two runs have no cell in common: the baseline has no {next(iter(new.records))}")
    return {cell: Rows(old=old.records[cell], new=new.records[cell], old_path=old.path, new_path=new.path) for cell in common}


def _one_sided(run: Run, other: Run, verdict: Verdict, detail: str) -> Iterator[Judgement]:
    """A verdict on every cell that only one run has."""
    for cell, seeds in run.records.items():
        if cell not in other.records:
            yield judgement_of(next(iter(seeds.values())), "cell", verdict, detail=detail)


# Numerics


def numerics(pairs: Sequence[tuple[Record, Record]], tolerances: Tolerances, runs: Runs) -> Judgement:
    """The gravest verdict on the arithmetic of a cell's runs, whose files these are."""
    answers = [(*compared(before, after, tolerances, runs), updates_in_common(before, after)) for before, after in pairs]
    verdict, detail, first_updates = min(answers, key=lambda answer: GRAVEST_FIRST.index(answer[0]))
    stage, _, what = detail.partition(": ") if verdict is Verdict.CHANGED else ("", "", "")
    named = tuple(MODULE.findall(what.partition(" first ")[0]))
    return judgement_of(
        pairs[0][0], "numerics", verdict, detail=detail, stage=stage, modules=named, first_updates=first_updates
    )


def furthest(old: Run, new: Run) -> dict[str, dict[str, float]]:
    """How far the figures of numerics lie apart at most, by arithmetic, over all runs of a cell and seed that are not equal."""
    tolerances, runs = load_tolerances(), (old.path, new.path)
    pairs = [
        (before, after)
        for cell, seeds in new.records.items()
        for seed, after in seeds.items()
        if (before := old.records.get(cell, {}).get(seed)) is not None
    ]
    apart = (Verdict.ROUNDING, Verdict.CHANGED)
    return furthest_apart([pair for pair in pairs if compared(*pair, tolerances)[0] in apart], tolerances, runs)


# Memory and speed


def memory(seeds: RecordsBySeed, before: Record, after: Record, margins: Mapping[str, float]) -> Iterator[Judgement]:
    """Verdicts on the ledger, and on peaks where the device is the same; `seeds` are the baseline's runs of the cell."""
    if not before.memory or not after.memory:
        return
    for name in LEDGER:
        old, new = (getattr(measured.ledger, name) for measured in (before.memory, after.memory))
        if old and new is not None:
            judgement = _relative(before, name, [old], new, margins["ledger"])
            # Fewer bytes of tensors are no gain that training brings: something is no longer there, or no longer in fp32.
            yield replace(judgement, verdict=Verdict.CHANGED) if judgement.verdict is Verdict.BETTER else judgement
    if not before.finished or not after.finished:  # peaks of first updates are not those of a whole run
        return
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
    return judgement_of(record, name, verdict, effect=share, detail=f"margin {100 * margin:.3g}%")


def speed(seeds: RecordsBySeed, before: Record, after: Record, margin: float) -> Judgement:
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
    return judgement_of(before, "step_seconds", verdict, effect=share, p=p, detail=f"margin {100 * margin:.3g}%")


def _median_step(record: Record) -> float | None:
    return record.throughput.step_seconds_median if record.throughput else None


# Too good to be true? Leaked rows and a lost mask raise a score, and training that sees its targets learns faster than any seed
# of the baseline. It may be a real gain as well, so it is shown, and fails a run only where that was asked for. MLPerf refuses
# submissions that converge faster than its reference for this reason.


def too_good(cells: Mapping[str, Rows], evidence: Evidence) -> Iterator[Judgement]:
    """A finding for every cell that scores, or learns, better than healthy runs do."""
    levels = {cell: (_levels(rows.old), _levels(rows.new)) for cell, rows in cells.items() if _one_recipe(rows.old, rows.new)}
    for cell, rows in cells.items():
        records = list(rows.new.values())
        reasons = [_by_score(records, evidence.get(cell, {})), _by_losses(cell, levels)]
        if any(reasons):
            detail = f"{' and '.join(filter(None, reasons))}: {ADVICE}"
            yield judgement_of(records[0], "learning", Verdict.TOO_GOOD, seeds=len(records), detail=detail)


def _by_score(records: Sequence[Record], evidence: Mapping[str, Mapping[str, float]]) -> str:
    """The main score, where it is as far above the mean of healthy runs as their bound is below it."""
    name = records[0].main_score
    known = evidence.get(name)
    if known is None or any(r.bounds.get(name) != known["minimum"] or r.scores.get(name) is None for r in records):
        return ""  # a recipe that was changed has no bound
    highest, score = 2 * known["mean"] - known["minimum"], mean_score(records, name)
    return f"{name} {score:.1f} is above {highest:.1f}, which healthy runs do not reach" if score > highest else ""


def _one_recipe(old: RecordsBySeed, new: RecordsBySeed) -> bool:
    """Whether all runs trained alike, so that their losses can be compared."""
    first, *others = [*old.values(), *new.values()]
    return all(record.recipe == first.recipe and record.limits == first.limits for record in others)


def _levels(seeds: RecordsBySeed) -> list[float]:
    """The log of each run's mean loss: the lower, the sooner it has learned. Runs whose losses are no numbers are left out."""
    means = [fmean(values) for record in seeds.values() if (values := losses(record))]
    return [math.log(mean) for mean in means if mean > 0]


def _by_losses(cell: str, levels: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """The mean loss, where it is below what the baseline's seeds explain: a t-test, with the deviation of cells of its kind."""
    old, new = levels.get(cell, ((), ()))
    noise = deviation([before for one, (before, _) in levels.items() if kind_of_cell(one) == kind_of_cell(cell)])
    if not old or not new or noise is None:
        return ""
    quantile = float(special.stdtrit(noise.df, 1 - CHANCE / len(levels)))
    lowest = fmean(old) - quantile * noise.sd * math.sqrt(1 / len(old) + 1 / len(new))
    if fmean(new) >= min(lowest, *old) - LEAST:
        return ""
    return f"the mean loss is {math.exp(fmean(new)):.3g}, the baseline's seeds explain no less than {math.exp(lowest):.3g}"
