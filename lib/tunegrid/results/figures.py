"""What instruments measured: figures of rows beside a run, reduced over rows and seeds, shown, and held to another run's.

A run's JSON declares the figures (`Record.instruments`); their values are in a file that it names, one a cell and seed. So
nothing here knows an instrument. Needs numpy, pandas and scipy, no torch.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tunegrid.record import Record
from tunegrid.record.record import Figure
from tunegrid.results.examples import read_figures
from tunegrid.results.judgements import GRAVEST_FIRST, Judgement, Verdict, by_cell, judgement_of
from tunegrid.results.noise import deviation
from tunegrid.results.quality import Rows, verdict_of
from tunegrid.results.report import Section, count
from tunegrid.results.statistics import ALPHA, Effect, by_rows, by_training, critical_value, holm, ratio

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
        known.append((*key, value, low, high, next(filter(None, group.note), "")))
    return pd.DataFrame(known, columns=[*KEYS, "value", "low", "high", "note"])


def _mean(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Of one seed: the weighted mean with its interval over rows, or the one value with what it brought."""
    if (rows.row == "").all():
        return rows.value.mean(), rows.low.mean(), rows.high.mean()
    return ratio((rows.value * rows.weight).tolist(), rows.weight.tolist())


def tables(records: Sequence[Record], run: Path | None) -> Iterator[Section]:
    """One for each instrument that was asked: a row for each cell and part; sentences say what was not measured, and why."""
    known = reduced(frame_of(records, run))
    for name, part in {name: part for record in records for name, part in record.instruments.items()}.items():
        own = known[known.instrument == name]
        shown = {figure: one.shown for figure, one in part.figures.items() if one.shown and (own.figure == figure).any()}
        lines = own[own.figure.isin(shown)].copy()
        lines["text"] = [_shown(line, shown[line.figure]) for line in lines.itertuples()]
        frame = lines.pivot_table("text", ["cell", "part"], "figure", aggfunc="first", sort=False).reindex(columns=[*shown])
        unmeasured = own[own.value.isna() & (own.note != "")]
        cells = (unmeasured.cell + " " + unmeasured.part).str.strip().groupby(unmeasured.note, sort=False)
        yield Section(
            heading=f"{name}: {part.question}",
            frame=frame.fillna("-").reset_index(),
            formats=dict.fromkeys(shown, ""),
            sentences=[f"no figure, {', '.join(those)}: {reason}" for reason, those in cells],
        )


def _shown(line: Any, form: str) -> str:
    ends = "" if np.isnan(line.low) else f" ({line.low:{form}} {line.high:{form}})"
    return "-" if np.isnan(line.value) else f"{line.value:{form}}{ends}"


# Is a run worse than another?


def judged(cells: Sequence[Rows], one_training: Collection[str]) -> Iterator[Judgement]:
    """The gravest figure of each instrument of a cell; in 5 % of healthy runs any of one instrument is called worse (Holm).

    `one_training` names the cells whose runs differ by rounding alone from one of their seed.
    """
    by_instrument: dict[str, list[_Test]] = {}
    for rows in cells:
        for instrument, test in _tests(rows, rows.cell in one_training):
            by_instrument.setdefault(instrument, []).append(test)
    for tests in by_instrument.values():
        effects = {index: test.effect for index, test in enumerate(tests) if test.effect}
        worse, better = (holm({i: getattr(effect, p) for i, effect in effects.items()}) for p in ("p_worse", "p_better"))
        answers = [_judgement(test, worse.get(index), better.get(index)) for index, test in enumerate(tests)]
        for own in by_cell(answers).values():
            yield min(own, key=lambda one: (GRAVEST_FIRST.index(one.verdict), 1.0 if one.p is None else one.p))


class _Test(NamedTuple):
    """One figure of a part of a cell's runs."""

    record: Record
    quantity: str
    part: str
    figure: Figure
    before: float
    after: float
    evidence: str
    effect: Effect | None = None  # for the better; None: nothing could be tested, as `evidence` says


def _tests(rows: Rows, one_training: bool) -> Iterator[tuple[str, _Test]]:
    """Every figure of the old run that has a better side, by instrument; one that the new run has not, too."""
    records, columns = list(rows.new.values()), ["instrument", "figure", "part"]
    old, new = frame_of(rows.old.values(), rows.old_path), frame_of(records, rows.new_path)
    declared = {name: one.figures for record in (*rows.old.values(), *records) for name, one in record.instruments.items()}
    of_new = dict(iter(new.groupby(columns, sort=False)))
    for (instrument, name, part), before in old.groupby(columns, sort=False):
        figure, after = declared.get(instrument, {}).get(name), of_new.get((instrument, name, part))
        if figure is None or not figure.better or before.value.isna().any():
            continue
        evidence: tuple[Any, ...] = (_mean(before)[0], np.nan, NO_NUMBER)
        if after is not None and not after.value.isna().any():
            gain = -1 if figure.better == "lower" else 1
            evidence = _by_rows(before, after, gain) if one_training else _by_seeds(before, after, gain)
        yield instrument, _Test(records[0], f"{instrument}/{name}", part, figure, *evidence)


def _by_rows(before: pd.DataFrame, after: pd.DataFrame, gain: int) -> tuple[Any, ...]:
    """Runs that are one training but for rounding pair row by row; a figure without rows is held to its margin alone."""
    before = before[before.seed.isin(after.seed)]
    pairs = before.merge(after, on=["seed", "row"], suffixes=("", "_new"))
    if len(pairs) != len(before) or len(pairs) != len(after):
        return before.value.mean(), after.value.mean(), OTHER_ROWS
    share = pairs.weight / pairs.weight.mean()
    means = (pairs.value * share).mean(), (pairs.value_new * share).mean()
    by_row = (gain * (pairs.value_new - pairs.value) * share).groupby(pairs.row).mean().to_numpy()
    if (pairs.row == "").all():
        [far] = by_row
        chances = {"p_worse": float(far >= 0), "p_better": float(far <= 0)}
        return *means, "no rows", Effect(points=far, low=far, high=far, **chances, error=0.0, rows=0, flips=None)
    return *means, f"{count(len(by_row), 'row')}, paired", by_rows(by_row)


def _by_seeds(before: pd.DataFrame, after: pd.DataFrame, gain: int) -> tuple[Any, ...]:
    """Other trainings are held to the noise between seeds, several on each side.

    Held to one seed alone, noise that is skewed is called worse too often: 9 to 11 % of healthy grids, by five against one.
    """
    old, new = ([_mean(one)[0] for _, one in side.groupby("seed", dropna=False)] for side in (before, after))
    means, noise = (float(np.mean(old)), float(np.mean(new))), deviation([old, new])
    if noise is None or not noise.sd or min(len(old), len(new)) < 2:
        return *means, ONE_SEED
    error = noise.sd * (1 / len(old) + 1 / len(new)) ** 0.5
    effect = by_training(gain * (means[1] - means[0]), error, noise.df, rows=1, flips=None)
    return *means, f"{len(old)} and {count(len(new), 'seed')}: error {error:.3f}", effect


def _judgement(test: _Test, p_worse: float | None, p_better: float | None) -> Judgement:
    """The verdict, by p-values that are adjusted; the interval is of harm, a rise if lower is better."""
    change, margin, form = test.after - test.before, test.figure.margin, test.figure.shown.lstrip("+") or ".3f"
    if np.isnan(test.after):
        return judgement_of(test.record, test.quantity, Verdict.NOT_COMPARABLE, detail=test.evidence, before=test.before)
    verdict = Verdict.NOT_COMPARABLE if change else Verdict.SAME
    numbers: dict[str, Any] = {"before": test.before, "after": test.after, "effect": change, "p": p_worse, "margin": margin}
    if test.effect and p_worse is not None and p_better is not None:
        verdict = verdict_of(test.effect, p_worse, p_better, margin, ALPHA) if change else Verdict.SAME
        numbers |= {"low": -test.effect.high, "high": -test.effect.low}
    of_part = f"of {test.part} " if test.part else ""
    detail = f"{of_part}{test.after:{form}}, it was {test.before:{form}}; {test.evidence}; margin {margin}"
    return judgement_of(test.record, test.quantity, verdict, **numbers, detail=detail)
