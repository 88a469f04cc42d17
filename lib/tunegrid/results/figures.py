"""What instruments measured: figures of rows beside a run, reduced over rows and seeds, shown, and held to another run's.

A run's JSON declares the figures (`Record.instruments`); their values are in a file that it names, one a cell and seed. So
nothing here knows an instrument. Needs numpy, pandas and scipy, no torch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunegrid.record import Record
from tunegrid.record.record import Figure
from tunegrid.results.examples import read_figures
from tunegrid.results.judgements import GRAVEST_FIRST, Judgement, Verdict, judgement_of
from tunegrid.results.noise import PERTURBED, deviation
from tunegrid.results.numerics import Tolerances
from tunegrid.results.quality import Rows, pairings
from tunegrid.results.statistics import ALPHA, bootstrap_p, by_training, critical_value, holm, interval, ratio, resampled_means
from tunegrid.results.table import Column, lines

NUMBERS = ("value", "weight", "low", "high")
KEYS = ["profile", "cell", "instrument", "part", "figure"]
ONE_SEED = "the two are no one training, and one seed tells no noise from a change: give both runs --seeds 0-4"
OTHER_ROWS = "other rows were asked"
NO_NUMBER = "the new run has no number: ask it with --ask, or see why below its table"


def frame_of(records: Iterable[Record], run: Path | None) -> pd.DataFrame:
    """All lines of these records, each with its profile, cell and seed; none of a record whose file is nowhere."""
    frames = [
        pd.DataFrame(columns).assign(profile=record.profile, cell=record.cell, seed=record.seeds.seed)
        for record in records
        if (columns := read_figures(record, run))
    ]
    names = [*KEYS, "row", "note", "seed"]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*names, *NUMBERS])
    return frame.astype(dict.fromkeys(NUMBERS, float))


def reduced(frame: pd.DataFrame) -> pd.DataFrame:
    """One line for each cell, part and figure: the mean over seeds, and the 95 % interval.

    Over rows it is the mean of the seeds' own; a figure without rows has the one that it brought, or else that of the seeds.
    """
    known = []
    for key, group in frame.groupby(KEYS, sort=False):
        seeds = np.array([_mean(seed) for _, seed in group.groupby("seed", dropna=False)], float)
        value, low, high = seeds.mean(0)
        if len(seeds) > 1 and np.isnan(low):
            reach = critical_value(ALPHA / 2, len(seeds) - 1) * seeds[:, 0].std(ddof=1) / len(seeds) ** 0.5
            low, high = value - reach, value + reach
        note = next(filter(None, group.note), "")
        known.append({**dict(zip(KEYS, key, strict=True)), "value": value, "low": low, "high": high, "note": note})
    return pd.DataFrame(known, columns=[*KEYS, "value", "low", "high", "note"])


def _mean(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Of one seed: the weighted mean with its interval over rows, or the one value with what it brought."""
    if (rows.row == "").all():
        return rows.value.mean(), rows.low.mean(), rows.high.mean()
    return ratio((rows.value * rows.weight).tolist(), rows.weight.tolist())


# A table


@dataclass(frozen=True, kw_only=True)
class FigureTable:
    """An instrument's figures: a row for each cell and part; `notes` say what was not measured, and why."""

    heading: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]

    @property
    def text(self) -> list[str]:
        """For a terminal."""
        return [*(lines(self.columns, self.rows) if self.rows else ()), *self.notes]


def tables(records: Sequence[Record], run: Path | None) -> Iterator[FigureTable]:
    """One for each instrument that any of these records was asked."""
    declared = {name: part for record in records for name, part in record.instruments.items()}
    known = reduced(frame_of(records, run))
    for name, part in declared.items():
        own = known[known.instrument == name]
        shown = [figure for figure, one in part.figures.items() if one.shown and (own.figure == figure).any()]
        rows = []
        for (cell, what), group in own[own.figure.isin(shown)].groupby(["cell", "part"], sort=False):
            of_figure = {line.figure: line for line in group.itertuples()}
            rows.append((cell, what, *(_shown(of_figure.get(figure), part.figures[figure].shown) for figure in shown)))
        reasons: dict[str, list[str]] = {}
        for line in own[own.value.isna() & (own.note != "")].itertuples():
            reasons.setdefault(line.note, []).append(f"{line.cell} {line.part}".strip())
        yield FigureTable(
            heading=f"{name}: {part.question}",
            columns=[
                Column(title="cell", width=15),
                Column(title="part"),
                *(Column(title=title, right=True) for title in shown),
            ],
            rows=rows,
            notes=[f"no figure, {', '.join(cells)}: {reason}" for reason, cells in reasons.items()],
        )


def _shown(line: Any, form: str) -> str:
    if line is None or np.isnan(line.value):
        return "-"
    ends = "" if np.isnan(line.low) else f" ({line.low:{form}} {line.high:{form}})"
    return f"{line.value:{form}}{ends}"


# Is a run worse than another?


@dataclass(frozen=True, kw_only=True)
class _Test:
    """One figure of a part of a cell's runs; harm is a rise where lower is better, else a fall.

    Attributes:
        low, high: of harm's 95 % interval.
        p_worse, p_better: one-sided; None where nothing could be tested, for the reason in `evidence`.
    """

    record: Record
    instrument: str
    name: str
    part: str
    figure: Figure
    before: float
    after: float
    evidence: str
    low: float | None = None
    high: float | None = None
    p_worse: float | None = None
    p_better: float | None = None

    @property
    def harm(self) -> float:
        """Above 0, the new run is worse."""
        return self.after - self.before if self.figure.better == "lower" else self.before - self.after


def judged(cells: Sequence[Rows], tolerances: Tolerances) -> Iterator[Judgement]:
    """The gravest figure of each instrument of a cell; in 5 % of healthy runs any of one instrument is called worse (Holm)."""
    by_instrument: dict[str, list[_Test]] = {}
    for rows in cells:
        for test in _tests(rows, tolerances):
            by_instrument.setdefault(test.instrument, []).append(test)
    for tests in by_instrument.values():
        worse = holm({index: one.p_worse for index, one in enumerate(tests) if one.p_worse is not None})
        better = holm({index: one.p_better for index, one in enumerate(tests) if one.p_better is not None})
        answers = [_judgement(one, worse.get(index, 1.0), better.get(index, 1.0)) for index, one in enumerate(tests)]
        for cell in dict.fromkeys(one.cell for one in answers):
            own = [one for one in answers if one.cell == cell]
            yield min(own, key=lambda one: (GRAVEST_FIRST.index(one.verdict), one.p if one.p is not None else 1.0))


def _tests(rows: Rows, tolerances: Tolerances) -> Iterator[_Test]:
    """Every figure of the old run that has a better side; one that the new run has not, too."""
    records, columns = list(rows.new.values()), ["instrument", "figure", "part"]
    old, new = frame_of(rows.old.values(), rows.old_path), frame_of(records, rows.new_path)
    one_training = pairings(rows.old, rows.new, tolerances)[0].kind == PERTURBED
    declared = {name: one.figures for record in (*rows.old.values(), *records) for name, one in record.instruments.items()}
    lines_of_new = {key: group for key, group in new.groupby(columns, sort=False)}
    for key, before in old.groupby(columns, sort=False):
        instrument, name, part = key
        figure = declared.get(instrument, {}).get(name)
        if figure is None or not figure.better or before.value.isna().any():
            continue
        after = lines_of_new.get(key)
        if after is None or after.value.isna().any():
            numbers: dict[str, Any] = {"before": _mean(before)[0], "after": np.nan, "evidence": NO_NUMBER}
        else:
            numbers = _by_rows(before, after, figure) if one_training else _by_seeds(before, after, figure)
        yield _Test(record=records[0], instrument=instrument, name=name, part=part, figure=figure, **numbers)


def _by_rows(before: pd.DataFrame, after: pd.DataFrame, figure: Figure) -> dict[str, Any]:
    """Runs that are one training but for rounding pair row by row; a figure without rows is held to its margin alone."""
    before = before[before.seed.isin(after.seed)]
    pairs = before.merge(after, on=["seed", "row"], suffixes=("", "_new"))
    share = pairs.weight / pairs.weight.mean()
    means = {"before": (pairs.value * share).mean(), "after": (pairs.value_new * share).mean()}
    if len(pairs) != len(before) or len(pairs) != len(after):
        return {"before": before.value.mean(), "after": after.value.mean(), "evidence": OTHER_ROWS}
    harm = (pairs.value_new - pairs.value) * share * (1 if figure.better == "lower" else -1)
    if (pairs.row == "").all():
        ends = {"low": harm.mean(), "high": harm.mean()}
        return means | ends | {"p_worse": float(harm.mean() <= 0), "p_better": float(harm.mean() >= 0), "evidence": "no rows"}
    by_row = harm.groupby(pairs.row).mean().to_numpy()
    resamples = resampled_means(by_row)
    low, high = interval(resamples)
    p_better, p_worse = bootstrap_p(float(by_row.mean()), resamples)
    ends = {"low": low, "high": high, "p_worse": p_worse, "p_better": p_better}
    return means | ends | {"evidence": f"{len(by_row)} rows, paired"}


def _by_seeds(before: pd.DataFrame, after: pd.DataFrame, figure: Figure) -> dict[str, Any]:
    """Other trainings are held to the noise between seeds, several on each side.

    Held to one seed alone, noise that is skewed is called worse too often: 9 to 11 % of healthy grids, by five against one.
    """
    old, new = ([_mean(one)[0] for _, one in side.groupby("seed", dropna=False)] for side in (before, after))
    means, noise = {"before": np.mean(old), "after": np.mean(new)}, deviation([old, new])
    if noise is None or not noise.sd or min(len(old), len(new)) < 2:
        return means | {"evidence": ONE_SEED}
    error = noise.sd * (1 / len(old) + 1 / len(new)) ** 0.5
    harm = float(np.mean(new) - np.mean(old)) * (1 if figure.better == "lower" else -1)
    gain = by_training(-harm, error, noise.df, rows=1, flips=None)
    ends = {"low": -gain.high, "high": -gain.low, "p_worse": gain.p_worse, "p_better": gain.p_better}
    return means | ends | {"evidence": f"{len(old)} and {len(new)} seeds: error {error:.3f}"}


def _judgement(test: _Test, p_worse: float, p_better: float) -> Judgement:
    """The verdict, by p-values that are adjusted: a change of at least the margin is worse or better."""
    margin = test.figure.margin
    if np.isnan(test.after):
        quantity = f"{test.instrument}/{test.name}"
        return judgement_of(test.record, quantity, Verdict.NOT_COMPARABLE, detail=test.evidence, before=test.before)
    if test.p_worse is None or test.high is None:
        verdict = Verdict.SAME if not test.harm else Verdict.NOT_COMPARABLE
    elif p_worse < ALPHA and test.harm >= margin:
        verdict = Verdict.WORSE
    elif p_better < ALPHA and -test.harm >= margin:
        verdict = Verdict.BETTER
    else:
        verdict = Verdict.SAME if test.high < margin or not test.harm else Verdict.CANNOT_TELL
    form = test.figure.shown.lstrip("+") or ".3f"
    figures = {"before": test.before, "after": test.after, "effect": test.after - test.before}
    ends = {"low": test.low, "high": test.high, "p": None if test.p_worse is None else p_worse, "margin": margin}
    of_part = f"of {test.part} " if test.part else ""
    detail = f"{of_part}{test.after:{form}}, it was {test.before:{form}}; {test.evidence}; margin {margin}"
    return judgement_of(test.record, f"{test.instrument}/{test.name}", verdict, detail=detail, **figures, **ends)
