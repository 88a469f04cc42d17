"""Judges a run by a baseline: one verdict per cell and quantity.

*worse*, *better*: a significant drop, or gain, of at least the margin. *same*: the interval is above the margin's drop. *cannot
tell*: more seeds or test rows are needed for any of these. *too good*: better than healthy runs are.

Losses are judged by `tunegrid.results.numerics`, scores by `tunegrid.results.quality`, what instruments measured by
`tunegrid.results.figures`, memory and speed here: the ledger of tensors is exact; peaks and the median step have relative
margins, and speed is compared between like machines only. What the verdicts come to is for others to say. Needs no torch.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from tunegrid.errors import InputError
from tunegrid.grid.cells import study_place
from tunegrid.record import Record
from tunegrid.results import numerics, quality
from tunegrid.results.alike import unlike_machines
from tunegrid.results.files import read_list
from tunegrid.results.judgements import LEDGER, PEAKS, Judgement, RecordsBySeed, Verdict, judgement_of
from tunegrid.results.noise import Noise, load_noise
from tunegrid.results.quality import Rows
from tunegrid.results.statistics import ALPHA, slower
from tunegrid.results.thresholds import SPEED_DEVIATIONS, THRESHOLDS, load_evidence, load_margins, load_tolerances

NO_SCORES = "the baseline holds the first updates of it alone"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A saved run: records by cell and seed, and the file's path; examples are stored next to it."""

    records: Mapping[str, RecordsBySeed]
    path: Path | None = None

    @classmethod
    def of(cls, records: Iterable[Record], path: Path | None = None) -> "Run":
        """The records that finished or made their first updates; raises InputError if they are of two profiles."""
        by_cell: dict[str, dict[int | None, Record]] = defaultdict(dict)
        profiles = set()
        for record in records:
            if record.finished or record.first_updates:
                by_cell[record.cell][record.seeds.seed] = record
                profiles.add(record.profile)
        if len(profiles) > 1:
            names = " and ".join(sorted(profiles))
            raise InputError(f"{path or 'the run'} holds cells of {names}: judge one profile at a time")
        return cls(records=dict(by_cell), path=path)

    @property
    def profile(self) -> str:
        """The profile of its records; empty without any."""
        return next((record.profile for record in self.in_a_row), "")

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
    old: Run, new: Run, *, margins: Mapping[str, Mapping[str, float]] | None = None, noise: Noise | None = None
) -> list[Judgement]:
    """Every verdict: missing cells first, then the others, both in the study's order.

    `margins`, by kind and quantity, and the noise of training are the suite's if None. Raises InputError if the two runs are of
    two profiles, have no cell in common, or scored different test rows.
    """
    margins, tolerances = margins or load_margins(), load_tolerances()
    evidence = load_evidence(THRESHOLDS / f"{new.profile}.toml")
    noise, cells = load_noise() if noise is None else noise, paired(old, new)
    finished = {cell: whole for cell, rows in cells.items() if (whole := rows.finished)}
    arithmetic = {cell: numerics.judged(rows.records, tolerances, (old.path, new.path)) for cell, rows in cells.items()}
    one_training = {cell for cell, (_, same) in arithmetic.items() if same}
    judged = [judgement for judgement, _ in arithmetic.values()]
    judged += quality.judged(list(finished.values()), one_training, margins["points"], noise)
    for cell, rows in cells.items():
        judged += _costs(finished.get(cell, rows), margins)
        if cell not in finished and (after := rows.records[0][1]).finished:
            judged.append(judgement_of(after, after.main_score, Verdict.CANNOT_TELL, detail=NO_SCORES))
    if any(record.instruments for record in old.in_a_row):
        from tunegrid.results import figures

        judged += figures.judged(list(finished.values()), one_training)
    judged += [finding for cell, rows in finished.items() if (finding := _too_good(rows, evidence.get(cell, {})))]
    judged += [*_one_sided(old, new, Verdict.MISSING, "in the baseline, not in this run")]
    judged += [*_one_sided(new, old, Verdict.NEW, "not in the baseline")]
    return sorted(judged, key=lambda judgement: (judgement.cell in new.records, study_place(judgement.cell)))


def paired(old: Run, new: Run) -> dict[str, Rows]:
    """The cells that both runs have; raises InputError if there are none, or they are of two profiles."""
    if old.records and new.records and old.profile != new.profile:
        raise InputError(f"the baseline is of {old.profile} and the run of {new.profile}: judge one profile at a time")
    if not new.records:
        raise InputError("no cell of the run finished: there is nothing to judge")
    common = [cell for cell in old.records if cell in new.records]
    if not common:
        raise InputError(f"the two runs have no cell in common: the baseline has no {next(iter(new.records))}")
    return {cell: Rows(old=old.records[cell], new=new.records[cell], old_path=old.path, new_path=new.path) for cell in common}


def _one_sided(run: Run, other: Run, verdict: Verdict, detail: str) -> Iterator[Judgement]:
    for cell, seeds in run.records.items():
        if cell not in other.records:
            yield judgement_of(next(iter(seeds.values())), "cell", verdict, detail=detail)


# Memory and speed


def _costs(rows: Rows, margins: Mapping[str, Mapping[str, float]]) -> Iterator[Judgement]:
    """Verdicts on the ledger, and of whole runs on peaks and the median step if the machines are alike."""
    before, after = rows.records[0]
    finished, baseline = before.finished and after.finished, list(rows.old.values())
    if before.memory and after.memory:
        for name in LEDGER:
            old, new = (getattr(measured.ledger, name) for measured in (before.memory, after.memory))
            if old and new is not None:
                judgement = _relative(before, name, [old], new, margins["memory"]["ledger"])
                # Fewer bytes of tensors are no gain that training brings: something is no longer there, or no longer in fp32.
                yield replace(judgement, verdict=Verdict.CHANGED) if judgement.verdict is Verdict.BETTER else judgement
        device = after.device.name if after.device else ""
        same_device = before.device and before.device.name == device
        if finished and same_device and before.processes == after.processes:
            alike = [one.memory for one in baseline if one.memory and one.device and one.device.name == device]
            for name in PEAKS:
                peaks = [peak for measured in alike if (peak := measured.peak(name)) is not None]
                now = after.memory.peak(name)
                if peaks and now is not None:
                    yield _relative(before, name, peaks, now, margins["memory"][name])
    if finished:
        yield _speed(baseline, before, after, margins["speed"]["step_seconds"])


def _relative(record: Record, name: str, old: Sequence[float], new: float, margin: float) -> Judgement:
    """Worse: over the baseline's largest figure by more than the margin. Better: under its smallest by more than the margin."""
    share = new / max(old) - 1
    verdict = Verdict.WORSE if share > margin else Verdict.BETTER if new / min(old) - 1 < -margin else Verdict.SAME
    return judgement_of(record, name, verdict, effect=share, detail=f"margin {100 * margin:.3g}%")


def _speed(baseline: Sequence[Record], before: Record, after: Record, margin: float) -> Judgement:
    """The verdict on the median step."""
    alike = [one.throughput for one in baseline if one.throughput and not unlike_machines(one, after)]  # of a cluster's nodes
    medians = [one.step_seconds_median for one in alike if one.step_seconds_median is not None]
    old, new = (one.throughput.step_seconds if one.throughput else [] for one in (before, after))
    now, reason = after.throughput.step_seconds_median if after.throughput else None, unlike_machines(before, after)
    if reason or not old or not new or not medians or now is None:
        detail = reason or "too few steps were measured"
        return judgement_of(before, "step_seconds", Verdict.NOT_COMPARABLE, detail=detail)
    margin = max(margin, SPEED_DEVIATIONS * stdev(medians) / fmean(medians) if len(medians) > 1 else 0.0)
    share, p = now / fmean(medians) - 1, slower(old, new)
    verdict = Verdict.WORSE if share > margin and p < ALPHA else Verdict.BETTER if share < -margin else Verdict.SAME
    return judgement_of(before, "step_seconds", verdict, effect=share, p=p, detail=f"margin {100 * margin:.3g}%")


def _too_good(rows: Rows, evidence: Mapping[str, Mapping[str, float]]) -> Judgement | None:
    """A finding if the main score is as far above the mean of healthy runs as their bound is below it.

    Leaked rows and a lost mask raise a score, as a real gain does: it is shown, and fails a run only if that was asked for.
    """
    records = list(rows.new.values())
    name = records[0].main_score
    known = evidence.get(name)
    if known is None or any(one.bounds.get(name) != known["minimum"] or one.scores.get(name) is None for one in records):
        return None  # a recipe that was changed has no bound
    highest, score = 2 * known["mean"] - known["minimum"], fmean(one.scores[name] or 0.0 for one in records)
    if score <= highest:
        return None
    detail = f"{name} {score:.1f} is above {highest:.1f}, which healthy runs do not reach"
    return judgement_of(records[0], "learning", Verdict.TOO_GOOD, seeds=len(records), detail=detail)
