"""Sets a figure of two methods beside each other, over their seeds: peaks, seconds, drops, likelihoods, nats forgotten.

As `tunegrid.results.compare` does for scores: the variances of both means between seeds add up, with that of the rows or texts
that were asked. One seed tells no method from another, so that without a second one nothing is claimed. Needs no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from tunegrid.record.parts import Estimate
from tunegrid.results.compare import Error, Gap, combined, row_error
from tunegrid.results.noise import MOST_DF
from tunegrid.results.statistics import ALPHA, Array, holm
from tunegrid.results.table import number

NORMAL = 1.96  # standard errors from the middle of a 95 % interval to its ends
ONE_SEED = "a single seed does not say how far another one would be; --seeds 0-4 trains more"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of a method's trainings on one backbone and task.

    Attributes:
        what: it is, as "peak".
        values: by seed.
        estimates: the same with the intervals of what was asked, rows or texts; empty where nothing was drawn.
        rows: its changes by row, the mean over seeds, by which methods pair; they go before `estimates`.
    """

    method: str
    what: str
    values: Sequence[float]
    estimates: Sequence[Estimate] = ()
    rows: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One method's figure beside another's.

    Attributes:
        gap: the first minus the second; None where it cannot be told, for this `reason`.
        told: it differs from 0, at 5 % over all that were asked together.
    """

    one: str
    other: str
    what: str
    gap: Gap | None
    told: bool = False
    reason: str = ""


def gap(one: Figure, other: Figure) -> Gap | None:
    """One mean minus another, over seeds and what was asked; None where a method has a single seed."""
    both = (one, other)
    if min(len(figure.values) for figure in both) < 2:
        return None
    errors: list[Error] = [(variance(figure.values) / len(figure.values), len(figure.values) - 1.0) for figure in both]
    asked = _asked(one, other)
    known = [(own, df) for own, df in [*errors, *asked] if own > 0]
    error, df = combined(known) if known else (0.0, MOST_DF)
    seeds = " and ".join(dict.fromkeys(str(len(figure.values)) for figure in both))
    by = f"{seeds} seeds{', rows' if asked else ''}"
    return Gap(points=fmean(one.values) - fmean(other.values), error=error, df=df, by=by)


def _asked(one: Figure, other: Figure) -> list[Error]:
    """The variance by other rows: paired where both have them, else of each, as if they were not the same rows."""
    if one.rows is not None and other.rows is not None and len(one.rows) == len(other.rows) > 1:
        return [row_error(one.rows - other.rows)]
    halves = [fmean((own.high - own.low) / 2 for own in figure.estimates) for figure in (one, other) if figure.estimates]
    return [((half / NORMAL) ** 2, MOST_DF) for half in halves]


def contrasts(pairs: Sequence[tuple[Figure, Figure]]) -> list[Contrast]:
    """The contrasts of these pairs; that any is told apart by mistake has a chance of 5 % at most (Holm)."""
    gaps = [gap(one, other) for one, other in pairs]
    adjusted = holm({index: own.p() for index, own in enumerate(gaps) if own})
    return [
        Contrast(
            one=one.method,
            other=other.method,
            what=one.what,
            gap=own,
            told=adjusted.get(index, 1.0) < ALPHA,
            reason="" if own else ONE_SEED,
        )
        for index, ((one, other), own) in enumerate(zip(pairs, gaps, strict=True))
    ]


# In words


def places(digits: int, *figures: float) -> int:
    """So many digits after the point, or more where a figure that is not 0 would read as 0, up to four."""
    return next((more for more in range(digits, 4) if all(not figure or round(figure, more) for figure in figures)), 4)


def shown(low: float, high: float, digits: int, *, sign: bool = False) -> str:
    """Both ends of an interval; with more digits where an end that is not 0 would read as 0, up to four."""
    form = f"{'+' if sign else ''}.{places(digits, low, high)}f"
    return f"{low:{form}} to {high:{form}}"


def clauses(told: Sequence[Contrast], unit: str, digits: int) -> list[str]:
    """Contrasts as parts of sentences: what differs, then what cannot be told from what, then what nothing tells."""
    apart = [_apart(own, unit, digits) for own in told if own.told]
    open_ = [own for own in told if own.gap and not own.told]
    alike = [_alike(group, digits) for group in _grouped(open_, "other")]
    unknown = [own for own in told if own.gap is None]
    return [*apart, *alike, *map(_unknown, _grouped(unknown, "reason"))]


def _grouped(told: Sequence[Contrast], name: str) -> list[list[Contrast]]:
    """The contrasts that have one value of this field, for each value."""
    values = dict.fromkeys(getattr(own, name) for own in told)
    return [[own for own in told if getattr(own, name) == value] for value in values]


def _apart(told: Contrast, unit: str, digits: int) -> str:
    """It says below or above only here, where the interval leaves out 0."""
    assert told.gap, "nothing else is told apart"
    own = told.gap.interval
    side, low, high = ("below", -own.high, -own.low) if told.gap.points < 0 else ("above", own.low, own.high)
    size = number(abs(told.gap.points), places(digits, low, high, abs(told.gap.points)))
    return f"{told.one}'s {told.what} is {size} {unit} {side} {told.other}'s ({shown(low, high, digits)})"


def _alike(told: Sequence[Contrast], digits: int) -> str:
    """What cannot be told from one method's; of several figures, the one with the smallest p-value has its interval."""
    ones = [_nearest_told(group, digits) for group in _grouped(told, "one")]
    return f"{' and '.join(ones)} cannot be told from {told[0].other}'s"


def _nearest_told(told: Sequence[Contrast], digits: int) -> str:
    known = {own.what: own.gap for own in told if own.gap}
    what = min(known, key=lambda name: known[name].p())
    own = known[what].interval
    interval = shown(own.low, own.high, digits, sign=True)
    several = f"{len(told)} figures of {told[0].one}, of which {what} is the least alike"
    return f"{told[0].one}'s {what} ({interval})" if len(told) == 1 else f"{several} ({interval}),"


def _unknown(told: Sequence[Contrast]) -> str:
    ones, others, whats = (dict.fromkeys(getattr(own, name) for own in told) for name in ("one", "other", "what"))
    what = next(iter(whats)) if len(whats) == 1 else "figures"
    verb = "differs" if len(ones) == 1 else "differ"
    return f"whether {' and '.join(ones)} {verb} from {' or '.join(others)} in {what} cannot be told: {told[0].reason}"
