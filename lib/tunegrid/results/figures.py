"""What instruments measured: figures of rows beside a run, reduced over rows and seeds, shown, and held to another run's.

A run's JSON declares the figures (`Record.instruments`); their values are in a file that it names, one a cell and seed. So
nothing here knows an instrument. Needs numpy, pandas and scipy, no torch.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunegrid.record import Record
from tunegrid.record.parts import Figure
from tunegrid.results.examples import read_figures
from tunegrid.results.judgements import GRAVEST_FIRST, Judgement, Verdict, judgement_of
from tunegrid.results.noise import deviation
from tunegrid.results.quality import Rows
from tunegrid.results.report import Section, count
from tunegrid.results.statistics import ALPHA, bootstrap_p, by_training, critical_value, holm, interval, ratio, resampled_means

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
        shown = [figure for figure, one in part.figures.items() if one.shown and (own.figure == figure).any()]
        rows = []
        for (cell, of), group in own[own.figure.isin(shown)].groupby(["cell", "part"], sort=False):
            lines = {line.figure: line for line in group.itertuples()}
            rows.append((cell, of, *(_shown(lines.get(figure), part.figures[figure].shown) for figure in shown)))
        unmeasured = own[own.value.isna() & (own.note != "")]
        cells = (unmeasured.cell + " " + unmeasured.part).str.strip().groupby(unmeasured.note, sort=False)
        yield Section(
            heading=f"{name}: {part.question}",
            frame=pd.DataFrame(rows, columns=["cell", "part", *shown]),
            formats=dict.fromkeys(shown, ""),
            sentences=[f"no figure, {', '.join(those)}: {reason}" for reason, those in cells],
        )


def _shown(line: Any, form: str) -> str:
    if line is None or np.isnan(line.value):
        return "-"
    ends = "" if np.isnan(line.low) else f" ({line.low:{form}} {line.high:{form}})"
    return f"{line.value:{form}}{ends}"


# Is a run worse than another?


@dataclass(frozen=True, kw_only=True)
class _Test:
    """One figure of a part of a cell's runs; harm is a rise if lower is better, else a fall.

    Attributes:
        low, high: of harm's 95 % interval.
        p_worse, p_better: one-sided; None if nothing could be tested, for the reason in `evidence`.
    """

    record: Record
    quantity: str
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
        return _sign(self.figure) * (self.after - self.before)


def _sign(figure: Figure) -> int:
    return 1 if figure.better == "lower" else -1


def judged(cells: Sequence[Rows], one_training: Collection[str]) -> Iterator[Judgement]:
    """The gravest figure of each instrument of a cell; in 5 % of healthy runs any of one instrument is called worse (Holm).

    `one_training` names the cells whose runs differ by rounding alone from one of their seed.
    """
    by_instrument: dict[str, list[_Test]] = {}
    for rows in cells:
        for instrument, test in _tests(rows, rows.records[0][0].cell in one_training):
            by_instrument.setdefault(instrument, []).append(test)
    for tests in by_instrument.values():
        worse = holm({index: one.p_worse for index, one in enumerate(tests) if one.p_worse is not None})
        better = holm({index: one.p_better for index, one in enumerate(tests) if one.p_better is not None})
        gravest: dict[str, Judgement] = {}
        for index, test in enumerate(tests):
            one = _judgement(test, worse.get(index, 1.0), better.get(index, 1.0))
            gravest[one.cell] = min(gravest.get(one.cell, one), one, key=_gravity)
        yield from gravest.values()


def _gravity(judgement: Judgement) -> tuple[int, float]:
    return GRAVEST_FIRST.index(judgement.verdict), judgement.p if judgement.p is not None else 1.0


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
        if after is None or after.value.isna().any():
            evidence: Mapping[str, Any] = {"before": _mean(before)[0], "after": np.nan, "evidence": NO_NUMBER}
        else:
            evidence = _by_rows(before, after, figure) if one_training else _by_seeds(before, after, figure)
        yield instrument, _Test(record=records[0], quantity=f"{instrument}/{name}", part=part, figure=figure, **evidence)


def _by_rows(before: pd.DataFrame, after: pd.DataFrame, figure: Figure) -> Mapping[str, Any]:
    """Runs that are one training but for rounding pair row by row; a figure without rows is held to its margin alone."""
    before = before[before.seed.isin(after.seed)]
    pairs = before.merge(after, on=["seed", "row"], suffixes=("", "_new"))
    if len(pairs) != len(before) or len(pairs) != len(after):
        return {"before": before.value.mean(), "after": after.value.mean(), "evidence": OTHER_ROWS}
    share = pairs.weight / pairs.weight.mean()
    means = {"before": (pairs.value * share).mean(), "after": (pairs.value_new * share).mean()}
    harm = (pairs.value_new - pairs.value) * share * _sign(figure)
    if (pairs.row == "").all():
        low, high, evidence = harm.mean(), harm.mean(), "no rows"
        p_worse, p_better = float(harm.mean() <= 0), float(harm.mean() >= 0)
    else:
        by_row = harm.groupby(pairs.row).mean().to_numpy()
        resamples = resampled_means(by_row)
        (low, high), evidence = interval(resamples), f"{count(len(by_row), 'row')}, paired"
        p_better, p_worse = bootstrap_p(float(by_row.mean()), resamples)
    return means | {"low": low, "high": high, "p_worse": p_worse, "p_better": p_better, "evidence": evidence}


def _by_seeds(before: pd.DataFrame, after: pd.DataFrame, figure: Figure) -> Mapping[str, Any]:
    """Other trainings are held to the noise between seeds, several on each side.

    Held to one seed alone, noise that is skewed is called worse too often: 9 to 11 % of healthy grids, by five against one.
    """
    old, new = ([_mean(one)[0] for _, one in side.groupby("seed", dropna=False)] for side in (before, after))
    means, noise = {"before": np.mean(old), "after": np.mean(new)}, deviation([old, new])
    if noise is None or not noise.sd or min(len(old), len(new)) < 2:
        return means | {"evidence": ONE_SEED}
    error = noise.sd * (1 / len(old) + 1 / len(new)) ** 0.5
    gain = by_training(-_sign(figure) * float(np.mean(new) - np.mean(old)), error, noise.df, rows=1, flips=None)
    ends = {"low": -gain.high, "high": -gain.low, "p_worse": gain.p_worse, "p_better": gain.p_better}
    return means | ends | {"evidence": f"{len(old)} and {count(len(new), 'seed')}: error {error:.3f}"}


def _judgement(test: _Test, p_worse: float, p_better: float) -> Judgement:
    """The verdict, by p-values that are adjusted: a change of at least the margin, that can be seen, is worse or better."""
    margin, form = test.figure.margin, test.figure.shown.lstrip("+") or ".3f"
    if np.isnan(test.after):
        return judgement_of(test.record, test.quantity, Verdict.NOT_COMPARABLE, detail=test.evidence, before=test.before)
    if test.p_worse is None or test.high is None:
        verdict = Verdict.SAME if not test.harm else Verdict.NOT_COMPARABLE
    elif p_worse < ALPHA and test.harm >= margin:
        verdict = Verdict.WORSE
    elif p_better < ALPHA and -test.harm >= margin and round(test.harm, 3):
        verdict = Verdict.BETTER
    else:
        verdict = Verdict.SAME if test.high < margin or not test.harm else Verdict.CANNOT_TELL
    of_part = f"of {test.part} " if test.part else ""
    return judgement_of(
        test.record,
        test.quantity,
        verdict,
        before=test.before,
        after=test.after,
        effect=test.after - test.before,
        low=test.low,
        high=test.high,
        p=None if test.p_worse is None else p_worse,
        margin=margin,
        detail=f"{of_part}{test.after:{form}}, it was {test.before:{form}}; {test.evidence}; margin {margin}",
    )
