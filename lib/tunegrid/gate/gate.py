"""Judges a run by a baseline: one verdict per cell and quantity.

A record is judged three times: its losses by `tunegrid.gate.numerics`, its scores by `tunegrid.gate.quality`, all else
that was measured by `tunegrid.gate.figures`. What the verdicts come to is for others to say. Needs no torch.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tunegrid.errors import InputError
from tunegrid.gate import figures, numerics, quality
from tunegrid.gate.judgements import Judgement, RecordsBySeed, Verdict, make_judgement
from tunegrid.gate.noise import Noise, load_noise
from tunegrid.gate.quality import Rows
from tunegrid.gate.thresholds import load_margins, load_tolerances
from tunegrid.grid.cells import study_place
from tunegrid.record import Record
from tunegrid.runs.files import NEW_RUN, OwnNoise, SavedRun, read_saved
from tunegrid.words import count, phrase

NO_SCORES = "the baseline holds only its first updates"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A saved run: records by cell and seed, and the file's path; examples are stored next to it."""

    records: Mapping[str, RecordsBySeed]
    path: Path | None = None
    confirming: Mapping[str, RecordsBySeed] = field(default_factory=dict)  # by the seed that each confirms, or not
    noise: Sequence[OwnNoise] = ()  # of users' cells that were calibrated
    doubt: str = ""  # of a file that is no baseline, why

    @classmethod
    def make(
        cls,
        records: Iterable[Record],
        path: Path | None = None,
        noise: Sequence[OwnNoise] = (),
        doubt: str = "",
    ) -> "Run":
        """The records that finished or made their first updates; raises InputError if they are of two profiles."""
        by_cell, confirming = (defaultdict[str, dict[int | None, Record]](dict) for _ in range(2))
        results = [record for record in records if record.finished or record.first_updates]
        for record in results:
            cells, seed = (by_cell, record.seeds.seed) if record.seeds.confirms is None else (confirming, record.seeds.confirms)
            cells[record.cell][seed] = record
        if len(profiles := {record.profile for record in results}) > 1:
            names = " and ".join(sorted(profiles))
            raise InputError(f"{path or 'the run'} holds cells of {names}: judge one profile at a time")
        return cls(records=dict(by_cell), path=path, confirming=dict(confirming), noise=noise, doubt=doubt)

    @classmethod
    def of_file(cls, saved: SavedRun) -> "Run":
        """A saved run; raises InputError as `make` does."""
        return cls.make(saved.records, saved.path, saved.noise, saved.doubt)

    @property
    def profile(self) -> str:
        """The profile of its records; empty without any."""
        return next((record.profile for record in self.all_records), "")

    @property
    def all_records(self) -> list[Record]:
        """Its records, one after the other."""
        return [record for seeds in self.records.values() for record in seeds.values()]

    def select(self, cells: Container[str]) -> "Run":
        """The same run with these cells alone."""
        return replace(self, records={cell: seeds for cell, seeds in self.records.items() if cell in cells})


def read_run(path: Path) -> Run:
    """A saved run, to judge or to judge by."""
    return Run.of_file(read_saved(path))


def gate(old: Run, new: Run, *, noise: Noise | None = None) -> list[Judgement]:
    """Every verdict: missing cells first, then the others, both in the study's order.

    The noise of training is the suite's, and that of the runs' own cells, if None.

    Raises:
        InputError: if the runs are of two profiles, have no cell in common or scored different
            test rows, or if the baseline cannot be one (`check_sound`).
    """
    margins, tolerances = load_margins(), load_tolerances()
    if noise is None:
        noise = load_noise(own=[*new.noise, *old.noise])
    if old.records and new.records and old.profile != new.profile:
        raise InputError(f"the baseline holds {old.profile} cells, the run {new.profile} cells: judge one profile at a time")
    if not new.records:
        raise InputError("no cell of the run finished: there is nothing to judge")
    if not (cells := _rows(old, new)):
        raise InputError(f"the two runs have no cell in common: the baseline has no {next(iter(new.records))}")
    check_sound(old.select(cells))
    wholes = _rows(*(Run.make((one for one in run.all_records if one.finished), run.path) for run in (old, new)))

    arithmetic = {cell: numerics.judge_numerics(rows, tolerances) for cell, rows in cells.items()}
    one_training = {cell for cell, (_, same) in arithmetic.items() if same}
    judgements = [judgement for judgement, _ in arithmetic.values()]
    judge = partial(quality.assess, one_training=one_training, margins=margins["points"], noise=noise)
    judgements += [_confirm(j, wholes[j.cell], new.confirming.get(j.cell, {}), judge) for j in judge(list(wholes.values()))]
    judgements += figures.judge_figures(cells | wholes, one_training, margins)

    starts = [cells[cell].records[0][1] for cell in cells if cell not in wholes]
    judgements += [make_judgement(r, r.main_score, Verdict.CANNOT_TELL, detail=NO_SCORES) for r in starts if r.finished]
    missing_text, new_text = "in the baseline, not in this run", "not in the baseline"
    for run, other, verdict, detail in ((old, new, Verdict.MISSING, missing_text), (new, old, Verdict.NEW, new_text)):
        records = [next(iter(seeds.values())) for cell, seeds in run.records.items() if cell not in other.records]
        judgements += [make_judgement(record, "cell", verdict, detail=detail) for record in records]
    return sorted(judgements, key=lambda judgement: (judgement.cell in new.records, study_place(judgement.cell)))


def check_sound(baseline: Run) -> None:
    """Raises InputError if a baseline's file was changed or is unsealed, or a cell failed an audit.

    Such figures are not its method's. A missed bound is: a run that is as low misses it, too.
    """
    if baseline.doubt:
        fault = f"{baseline.path} {baseline.doubt}"
        raise InputError(f"{fault}, so it cannot be a baseline: {NEW_RUN}")
    unsound = {r.cell: r for r in baseline.all_records if not is_sound(r)}
    if not unsound:
        return
    first = next(iter(unsound.values()))
    audits = failed_audit_names(first)
    reason = f"{first.cell} failed {'audits' if audits[1:] else 'audit'} {phrase(audits)}"
    if not audits:
        reason = f"{first.cell} had wrong figures: {first.missed[0]}"
    others = f", {count(len(unsound) - 1, 'other cell')} failed, too" if len(unsound) > 1 else ""
    name = baseline.path or "the older run"
    raise InputError(f"{name} cannot be a baseline: {reason}{others}; give a run that passed")


def is_sound(record: Record) -> bool:
    """Checks that no audit of a record failed, and no figure of its first updates was wrong."""
    return record.status != "failed" and not failed_audit_names(record)


def failed_audit_names(record: Record) -> list[str]:
    """The names of the audits that failed and count."""
    failed = [finding.name for finding in record.audits if not finding.passed]
    return [name for name in failed if name not in record.excused]


def _confirm(drop: Judgement, rows: Rows, confirming: RecordsBySeed, judge: Callable[..., list[Judgement]]) -> Judgement:
    """A drop at one seed that is none of the baseline's is worse only if the training that confirms it is worse by itself."""
    # At equal seeds a change is what differs, and the mean of several seeds is certain enough.
    if drop.verdict is not Verdict.WORSE or drop.effect is None or len(rows.new) > 1 or rows.new.keys() & rows.old.keys():
        return drop
    (first,) = rows.new
    if not (repeat := confirming.get(first)):
        return replace(drop, confirmed="open")
    seed = repeat.seeds.seed
    second = next(j for j in judge([replace(rows, new={seed: repeat})]) if j.quantity == drop.quantity)
    is_worse, change = second.verdict is Verdict.WORSE, second.detail if second.effect is None else f"{second.effect:+.2f}"
    detail = f"{drop.detail}; at seed {first} {drop.effect:+.2f}, at {seed} {change}: {'' if is_worse else 'not '}confirmed"
    verdict = drop.verdict if is_worse else Verdict.CANNOT_TELL
    return replace(drop, verdict=verdict, confirmed="yes" if is_worse else "no", detail=detail)


def is_suspect(old: Run, record: Record) -> bool:
    """Whether a record alone is worse at a seed that is none of the baseline's: more often than by a gate of all cells."""
    try:
        return any(j.confirmed == "open" for j in gate(old.select([record.cell]), Run.make([record])))
    except InputError:  # which a gate says
        return False


def _rows(old: Run, new: Run) -> dict[str, Rows]:
    paths = {"old_path": old.path, "new_path": new.path}
    return {cell: Rows(old=seeds, new=new.records[cell], **paths) for cell, seeds in old.records.items() if cell in new.records}
