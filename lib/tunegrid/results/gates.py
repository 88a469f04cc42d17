"""Judges a run by a baseline: one verdict per cell and quantity.

*worse*: a significant drop of at least the margin. *better*: a significant gain. *same*: the interval is above the margin's
drop. *cannot tell*: more seeds or test rows are needed for any of these. *too good*: better than healthy runs are. Memory and
speed have relative margins. Before all that, `tunegrid.results.numerics` compares the losses. Needs no torch.
"""

import tomllib
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.results.costs import LEDGER, PEAKS, Seeds, memory, speed
from tunegrid.results.files import read_list
from tunegrid.results.judgements import Judgement, Outcome, Verdict, judgement_of
from tunegrid.results.noise import Noise, load_noise
from tunegrid.results.numerics import Tolerances, compared, furthest_apart, load_tolerances
from tunegrid.results.quality import Judge, Rows
from tunegrid.results.too_good import evidence_of, too_good

MARGINS = ROOT / "benchmarks" / "thresholds" / "margins.toml"
KINDS = ("numerics", "quality", "memory", "speed")
TOO_GOOD = "too-good"
CANNOT_TELL = "cannot-tell"
COUNTED = (*KINDS, TOO_GOOD, CANNOT_TELL)  # what may fail a run
# By default. On a machine with other work, speed would fail at random; a change of numerics may be meant.
FAILED_BY = ("quality", "memory")
# Shown, never failed by: a process's resident set depends on the cells that it ran before.
SHOWN = ("rss_peak_gib",)
# The gravest first: of several seeds, one that changed is enough.
NUMERICS = (Verdict.CHANGED, Verdict.ROUNDING, Verdict.EQUAL, Verdict.NOT_COMPARABLE)


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

    @property
    def profile(self) -> str:
        """The profile of its records; empty without any."""
        return next((record.profile for seeds in self.records.values() for record in seeds.values()), "")

    def only(self, cells: Container[str]) -> "Run":
        """The same run with these cells alone."""
        return Run(records={cell: seeds for cell, seeds in self.records.items() if cell in cells}, path=self.path)


def read_run(path: Path) -> Run:
    """A saved run, to judge or to judge by."""
    return Run.of(read_list(path), path)


def load_margins(path: Path = MARGINS) -> dict[str, dict[str, float]]:
    """Margins by kind and quantity."""
    return tomllib.loads(path.read_text())


def gate(
    old: Run,
    new: Run,
    *,
    margins: Mapping[str, Mapping[str, float]] | None = None,
    noise: Noise | None = None,
    look: int = 1,
    looks: int = 1,
) -> list[Judgement]:
    """Every verdict: missing cells first, then cells in the order of the run to judge.

    Args:
        old: the baseline, of one seed or several.
        new: the run to judge, of one seed or several.
        margins: by kind and quantity; those of the suite if None.
        noise: of training; what the suite was calibrated to if None.
        look: which look at the run this is (`tunegrid.results.interim`).
        looks: how many there are at most.

    Raises:
        InputError: where the two are of two profiles, have no cell in common, or scored different test rows.
    """
    if old.records and new.records and old.profile != new.profile:
        raise InputError(f"the baseline is of {old.profile} and the run of {new.profile}: judge one profile at a time")
    margins, tolerances = margins or load_margins(), load_tolerances()
    if not new.records:
        raise InputError("no cell of the run finished: there is nothing to judge")
    common = [cell for cell in old.records if cell in new.records]
    if not common:
        raise InputError(f"the two runs have no cell in common: the baseline has no {next(iter(new.records))}")
    judge = Judge(
        margins=margins["points"],
        noise=load_noise() if noise is None else noise,
        tolerances=tolerances,
        look=look,
        looks=looks,
    )
    cells = {cell: Rows(old=old.records[cell], new=new.records[cell], old_path=old.path, new_path=new.path) for cell in common}
    judged = judge.judged(list(cells.values()))
    for rows in cells.values():
        before, after = rows.records[0]
        judged.append(numerics(rows.records, tolerances))
        judged += memory(rows.old, before, after, margins["memory"])
        judged.append(speed(rows.old, before, after, margins["speed"]["step_seconds"]))
    judged += too_good({cell: (rows.old, rows.new) for cell, rows in cells.items()}, evidence_of(new.profile))
    judged += _one_sided(old, new, Verdict.MISSING, "in the baseline, not in this run")
    judged += _one_sided(new, old, Verdict.NEW, "not in the baseline")
    order = {
        cell: index for index, cell in enumerate([*(cell for cell in old.records if cell not in new.records), *new.records])
    }
    return sorted(judged, key=lambda judgement: order[judgement.cell])


def numerics(pairs: Sequence[tuple[Record, Record]], tolerances: Tolerances) -> Judgement:
    """The gravest verdict on the arithmetic of a cell's runs."""
    answers = [compared(before, after, tolerances) for before, after in pairs]
    verdict, detail = min(answers, key=lambda answer: NUMERICS.index(answer[0]))
    return judgement_of(pairs[0][0], "numerics", verdict, detail=detail)


def furthest(old: Run, new: Run) -> dict[str, dict[str, float]]:
    """How far the figures of numerics lie apart at most, by arithmetic, over all runs of a cell and seed that are not equal."""
    tolerances = load_tolerances()
    pairs = [
        (before, after)
        for cell, seeds in new.records.items()
        for seed, after in seeds.items()
        if (before := old.records.get(cell, {}).get(seed)) is not None
    ]
    apart = (Verdict.ROUNDING, Verdict.CHANGED)
    return furthest_apart([pair for pair in pairs if compared(*pair, tolerances)[0] in apart], tolerances)


def _one_sided(run: Run, other: Run, verdict: Verdict, detail: str) -> Iterator[Judgement]:
    """A verdict on every cell that only one run has."""
    for cell, seeds in run.records.items():
        if cell not in other.records:
            yield judgement_of(next(iter(seeds.values())), "cell", verdict, detail=detail)


# What counts


def kinds_of(text: str) -> tuple[str, ...]:
    """Kinds of figures, divided by commas; raises InputError for an unknown kind."""
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in COUNTED:
            raise InputError(f"unknown kind of figure {kind!r}: expected some of {','.join(COUNTED)}")
    return kinds


def figures_of(kinds: Sequence[str]) -> list[str]:
    """Those that are kinds of figures, which can be compared."""
    return [kind for kind in kinds if kind in KINDS]


def kind_of(judgement: Judgement) -> str:
    """The kind of figure; a cell that is missing, new or too good counts as quality."""
    if judgement.quantity in ("numerics", "step_seconds"):
        return {"numerics": "numerics", "step_seconds": "speed"}[judgement.quantity]
    return "memory" if judgement.quantity in (*LEDGER, *PEAKS) else "quality"


def decides(judgement: Judgement) -> bool:
    """Whether a cell's answer rests on it: other scores than the main one are shown, and count only where they are worse."""
    is_other_score = kind_of(judgement) == "quality" and judgement.quantity not in ("cell", judgement.main_score)
    return not is_other_score or judgement.verdict in (Verdict.WORSE, Verdict.TOO_GOOD)


def failing(judged: Sequence[Judgement], kinds: Sequence[str]) -> list[Judgement]:
    """What of these kinds is worse, of numerics changed, or too good, and every missing cell."""
    return [
        j
        for j in judged
        if j.verdict is Verdict.MISSING
        or (kind_of(j) in kinds and j.verdict is Verdict.WORSE and j.quantity not in SHOWN)
        or ("numerics" in kinds and j.quantity == "numerics" and j.verdict is Verdict.CHANGED)
        or (TOO_GOOD in kinds and j.verdict is Verdict.TOO_GOOD)
    ]


def undecided(judged: Sequence[Judgement]) -> list[Judgement]:
    """The main scores that cannot be told."""
    return [j for j in judged if j.quantity == j.main_score and j.verdict is Verdict.CANNOT_TELL]


def outcome(judged: Sequence[Judgement], kinds: Sequence[str]) -> Outcome:
    """What the judgements say of the whole run.

    It cannot be told where no main score could be tested, or nothing of the kinds that count could be compared; with
    `cannot-tell` among these, where any main score cannot be told.
    """
    if failing(judged, kinds):
        return Outcome.WORSE
    mains = [j for j in judged if j.quantity == j.main_score]
    doubtful = undecided(mains)
    untested = bool(mains) and all(j in doubtful and j.p is None for j in mains)
    doubt = ("quality" in kinds and untested) or (CANNOT_TELL in kinds and bool(doubtful))
    return Outcome.CANNOT_TELL if doubt or _nothing_compared(judged, kinds) else Outcome.NO_WORSE


def _nothing_compared(judged: Sequence[Judgement], kinds: Sequence[str]) -> bool:
    counted = figures_of(kinds)
    own = [j for j in judged if kind_of(j) in counted]
    silent = [
        j
        for j in own
        if j.verdict in (Verdict.NOT_COMPARABLE, Verdict.NEW) or (j.verdict is Verdict.CANNOT_TELL and j.p is None)
    ]
    return bool(counted) and own == silent
