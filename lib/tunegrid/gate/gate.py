"""Judges a run against a baseline, with one verdict per cell and quantity.

`tunegrid.gate.numerics` judges the arithmetic of training, `tunegrid.gate.quality` scores, and
`tunegrid.gate.figures` all other measurements. `tunegrid.report.verdict` sums up their judgements.
Needs no torch.
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
ONE_PROFILE = "judge one profile at a time"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run: its records by cell and seed, and its file, if it was saved."""

    records: Mapping[str, RecordsBySeed]
    path: Path | None = None
    # Records that confirm or refute a drop, by cell and by the seed of that drop.
    confirming: Mapping[str, RecordsBySeed] = field(default_factory=dict)
    noise: Sequence[OwnNoise] = ()  # for users' cells that were calibrated
    doubt: str = ""  # why the file cannot be a baseline; empty if it can

    @classmethod
    def make(
        cls,
        records: Iterable[Record],
        path: Path | None = None,
        noise: Sequence[OwnNoise] = (),
        doubt: str = "",
    ) -> "Run":
        """Builds a run from the records that finished or that made only their first updates.

        Raises InputError if these belong to more than one profile.
        """
        own: dict[str, dict[int | None, Record]] = defaultdict(dict)
        confirming: dict[str, dict[int | None, Record]] = defaultdict(dict)
        profiles = set()
        for record in records:
            if not record.finished and not record.first_updates:
                continue
            profiles.add(record.profile)
            seeds = record.seeds
            if seeds.confirms is None:
                own[record.cell][seeds.seed] = record
            else:
                confirming[record.cell][seeds.confirms] = record
        if len(profiles) > 1:
            names = " and ".join(sorted(profiles))
            raise InputError(f"{path or 'the run'} holds cells of {names}: {ONE_PROFILE}")
        return cls(
            records=dict(own),
            path=path,
            confirming=dict(confirming),
            noise=noise,
            doubt=doubt,
        )

    @classmethod
    def of_file(cls, saved: SavedRun) -> "Run":
        """Builds a run from a `SavedRun`; raises InputError as `make` does."""
        return cls.make(saved.records, saved.path, saved.noise, saved.doubt)

    @property
    def profile(self) -> str:
        """The profile of the run's records; empty if there are none."""
        records = self.all_records
        return records[0].profile if records else ""

    @property
    def all_records(self) -> list[Record]:
        """All records of the run, except the confirming ones."""
        records: list[Record] = []
        for seeds in self.records.values():
            records += seeds.values()
        return records

    def select(self, cells: Container[str]) -> "Run":
        """A copy of the run with the records of these cells only."""
        records = {cell: seeds for cell, seeds in self.records.items() if cell in cells}
        return replace(self, records=records)


def read_run(path: Path) -> Run:
    """Reads a saved run from its file."""
    return Run.of_file(read_saved(path))


def gate(old: Run, new: Run, *, noise: Noise | None = None) -> list[Judgement]:
    """Returns all judgements, missing cells first, otherwise in the study's order.

    If `noise` is None, the gate uses the calibrated noise of the suite and of users' own cells.

    Raises:
        InputError: if the new run is empty, if the runs belong to different profiles, have no cell
            in common, or scored different or no test rows, or if the baseline fails `check_sound`.
    """
    margins = load_margins()
    tolerances = load_tolerances()
    if noise is None:
        noise = load_noise(own=[*new.noise, *old.noise])
    if old.records and new.records and old.profile != new.profile:
        profiles = f"the baseline holds {old.profile} cells, the run {new.profile} cells"
        raise InputError(f"{profiles}: {ONE_PROFILE}")
    if not new.records:
        raise InputError("no cell of the run finished: there is nothing to judge")
    cells = _rows(old, new)
    if not cells:
        first = next(iter(new.records))
        raise InputError(f"the two runs have no cell in common: the baseline has no {first}")
    check_sound(old.select(cells))
    judgements = []
    for cell, rows in list(cells.items()):
        detail = _known_detail(rows)
        if detail:
            record = next(iter(rows.new.values()))
            judgements.append(make_judgement(record, "cell", Verdict.KNOWN, detail=detail))
            del cells[cell]
    finished = {
        cell: rows for cell, rows in _rows(_finished(old), _finished(new)).items() if cell in cells
    }

    one_training = set()
    for cell, rows in cells.items():
        judgement, is_one_training = numerics.judge_numerics(rows, tolerances)
        judgements.append(judgement)
        if is_one_training:
            one_training.add(cell)
    judge = partial(
        quality.assess,
        one_training=one_training,
        margins=margins["points"],
        noise=noise,
    )
    for judgement in judge(list(finished.values())):
        confirming = new.confirming.get(judgement.cell, {})
        judgements.append(_confirm(judgement, finished[judgement.cell], confirming, judge))
    judgements += figures.judge_figures(cells | finished, one_training, margins)
    for cell, rows in cells.items():
        record = rows.records[0][1]
        if cell not in finished and record.finished:
            verdict = Verdict.CANNOT_TELL
            judgements.append(make_judgement(record, record.main_score, verdict, detail=NO_SCORES))
    for record in _extra_cells(old, new):
        detail = "in the baseline, not in this run"
        judgements.append(make_judgement(record, "cell", Verdict.MISSING, detail=detail))
    for record in _extra_cells(new, old):
        judgements.append(make_judgement(record, "cell", Verdict.NEW, detail="not in the baseline"))
    return sorted(judgements, key=lambda j: (j.cell in new.records, study_place(j.cell)))


def _known_detail(rows: Rows) -> str:
    """The known faults that made audits of a cell fail, by run; empty if there are none.

    After a failed audit, a cell's figures do not describe the method, so they are not compared.
    """
    texts = []
    for name, records in (("this run", rows.new), ("the baseline", rows.old)):
        faults = dict.fromkeys(
            text for record in records.values() for text in record.known.values()
        )
        if faults:
            texts.append(f"{'; '.join(faults)}, in {name}")
    return "; ".join(texts)


def _finished(run: Run) -> Run:
    """A run with only the finished records."""
    return Run.make([record for record in run.all_records if record.finished], run.path)


def _extra_cells(run: Run, reference: Run) -> list[Record]:
    """One record for each of the run's cells that the reference lacks."""
    extra = run.records.keys() - reference.records.keys()
    return [next(iter(seeds.values())) for cell, seeds in run.records.items() if cell in extra]


def check_sound(baseline: Run) -> None:
    """Raises InputError if a baseline's file was changed or is unsealed, or a cell is not sound.

    After a failed audit, a cell's figures do not describe the method. A missed bound is accepted,
    since a new run with equally low scores misses the bound, too.
    """
    if baseline.doubt:
        fault = f"{baseline.path} {baseline.doubt}"
        raise InputError(f"{fault}, so it cannot be a baseline: {NEW_RUN}")
    unsound = {record.cell: record for record in baseline.all_records if not is_sound(record)}
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
    """Checks whether all audits passed or do not count, and the first updates had no fault."""
    return record.status != "failed" and not failed_audit_names(record)


def failed_audit_names(record: Record) -> list[str]:
    """The names of the failed audits that count."""
    failed = [finding.name for finding in record.audits if not finding.passed]
    return [name for name in failed if name not in record.uncounted]


def _confirm(
    drop: Judgement,
    rows: Rows,
    confirming: RecordsBySeed,
    judge: Callable[..., list[Judgement]],
) -> Judgement:
    """Marks a drop as confirmed or refuted by a second training run, or as open without one.

    Only drops at a single seed that the baseline lacks are marked.
    """
    # Runs with the same seed differ only by the change, and the mean of several seeds is reliable.
    if drop.verdict is not Verdict.WORSE or drop.effect is None:
        return drop
    if len(rows.new) > 1 or rows.new.keys() & rows.old.keys():
        return drop
    (first,) = rows.new
    repeat = confirming.get(first)
    if not repeat:
        return replace(drop, confirmed="open")
    seed = repeat.seeds.seed
    repeated = judge([replace(rows, new={seed: repeat})])
    second = next(j for j in repeated if j.quantity == drop.quantity)
    change = second.detail if second.effect is None else f"{second.effect:+.2f}"
    detail = f"{drop.detail}; at seed {first} {drop.effect:+.2f}, at {seed} {change}"
    if second.verdict is Verdict.WORSE:
        return replace(drop, confirmed="yes", detail=f"{detail}: confirmed")
    return replace(
        drop,
        verdict=Verdict.CANNOT_TELL,
        confirmed="no",
        detail=f"{detail}: not confirmed",
    )


def is_suspect(old: Run, record: Record) -> bool:
    """Checks whether the gate finds a drop in this record alone, at a seed that the baseline lacks.

    A gate on many cells adjusts its p-values, so it finds fewer drops.
    """
    try:
        judgements = gate(old.select([record.cell]), Run.make([record]))
    except InputError:  # the gate itself will report it
        return False
    return any(judgement.confirmed == "open" for judgement in judgements)


def _rows(old: Run, new: Run) -> dict[str, Rows]:
    """The old and new records of each cell that both runs have."""
    rows = {}
    for cell, seeds in old.records.items():
        if cell in new.records:
            rows[cell] = Rows(
                old=seeds,
                new=new.records[cell],
                old_path=old.path,
                new_path=new.path,
            )
    return rows
