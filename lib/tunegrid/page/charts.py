"""Charts as geometry: turns figures into coordinates that the templates draw as SVG. A chart knows no record."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

POINTS_A_CURVE = 120  # more cannot be told apart at the width of a chart


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Figures on an axis of pixels; `log` for figures that span magnitudes."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, figure: float) -> float:
        """The pixel of a figure."""
        low, high, figure = (math.log10(value) if self.log else value for value in (self.low, self.high, figure))
        share = (figure - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 5) -> list[float]:
        """Round figures inside the axis."""
        magnitudes = self.log and self.high > 8 * self.low  # a log axis of less than that looks almost linear
        return log_ticks(self.low, self.high, most) if magnitudes else linear_ticks(self.low, self.high, most)


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """At most so many multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    power = 10 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(step * index, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten; with their double and fivefold, where that still leaves at most so many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


# Quality against cost

SHAPES = {  # outlines around 0,0 that a line or a fill tells apart at 10 pixels
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M-3.6-3.6h7.2v7.2h-7.2z",
    "^": "M0-4.8l4.8 8.4h-9.6z",
    "D": "M0-5l5 5l-5 5l-5-5z",
    "v": "M0 4.8l4.8-8.4h-9.6z",
    "P": "M-1.7-4.8h3.4v3.1h3.1v3.4h-3.1v3.1h-3.4v-3.1h-3.1v-3.4h3.1z",
    "*": "M0-5.6l1.4 3.7l3.9 .2l-3.1 2.4l1.1 3.8l-3.3-2.2l-3.3 2.2l1.1-3.8l-3.1-2.4l3.9-.2z",
    "X": "M-2.4-4.8l2.4 2.4l2.4-2.4l2.4 2.4l-2.4 2.4l2.4 2.4l-2.4 2.4l-2.4-2.4l-2.4 2.4l-2.4-2.4l2.4-2.4l-2.4-2.4z",
}
MOST_LABELS = 12  # in a chart; of more dots only those on a front have one
COLOURS = 4  # c0 to c3 of page.css, which also the colour-blind tell apart (Okabe and Ito)


@dataclass(frozen=True)
class Look:
    """How a mark looks; `colour` None: as its line of text, where shape alone says what it is."""

    shape: str
    colour: int | None


@dataclass(frozen=True)
class Looks:
    """A look for each method on each backbone: few of them in one chart, many methods in a chart for each backbone."""

    methods: Sequence[str]
    backbones: Sequence[str]

    @property
    def together(self) -> bool:
        """Whether one chart can hold all backbones: shape says the method, and colour the backbone."""
        return len(self.methods) <= len(SHAPES) and len(self.backbones) <= COLOURS

    def of(self, backbone: str, method: str) -> Look:
        """Its mark."""
        turn, place = divmod(self.methods.index(method), len(SHAPES))
        return Look(list(SHAPES)[place], self.backbones.index(backbone) if self.together else turn % COLOURS)

    @property
    def legend(self) -> list[tuple[str, Look]]:
        """What each mark says."""
        first = self.backbones[0]
        if not self.together:
            return [(method, self.of(first, method)) for method in self.methods]
        shapes = [(method, Look(self.of(first, method).shape, None)) for method in self.methods]
        return shapes + [(backbone, Look("s", index)) for index, backbone in enumerate(self.backbones)]


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A cell in a chart of quality against cost, as figures; `front` names the Pareto front that it is on, if any."""

    name: str
    front: str
    look: Look
    cost: float
    score: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A dot as it is drawn; `label` has a place only where it covers nothing."""

    dot: Dot
    x: float
    y: float
    top: float
    bottom: float
    label: tuple[float, float, str] | None  # x, y, anchor


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """A chart of quality against cost."""

    width: int
    height: int
    x: Scale
    y: Scale
    marks: Sequence[Mark]
    fronts: Sequence[str]  # the points of a polyline each


def scatter(dots: Sequence[Dot], width: int = 340, height: int = 250) -> Scatter | None:
    """Quality over cost, on a logarithmic axis; None where nothing was measured."""
    dots = [dot for dot in dots if dot.cost > 0]
    if not dots:
        return None
    costs, lows, highs = [dot.cost for dot in dots], [dot.low for dot in dots], [dot.high for dot in dots]
    pad = max(1.0, 0.08 * (max(highs) - min(lows)))
    x = Scale(low=min(costs) / 1.25, high=max(costs) * 1.25, start=38, end=width - 10, log=True)
    y = Scale(low=max(0.0, min(lows) - pad), high=min(100.0 + pad, max(highs) + pad), start=height - 34, end=10)
    best = sorted((dot for dot in dots if dot.front), key=lambda dot: (dot.cost, dot.score))
    ordered = [*best, *(dot for dot in dots if not dot.front)]
    whiskers = [(x(dot.cost) - 1, y(dot.high), x(dot.cost) + 1, y(dot.low)) for dot in dots]
    named = ordered if len(dots) <= MOST_LABELS else best
    labels = placed([(x(dot.cost), y(dot.score), dot) for dot in named], whiskers, (width, height))
    marks = [
        Mark(
            dot=dot,
            x=x(dot.cost),
            y=y(dot.score),
            top=y(dot.high),
            bottom=y(dot.low),
            label=labels.get(dot.name),
        )
        for dot in [*(d for d in dots if not d.front), *best]  # the front on top
    ]
    names = dict.fromkeys(dot.front for dot in best)
    stairs = [" ".join(_steps([dot for dot in best if dot.front == name], x, y)) for name in names]
    return Scatter(width=width, height=height, x=x, y=y, marks=marks, fronts=stairs)


def _steps(best: Sequence[Dot], x: Scale, y: Scale) -> Iterable[str]:
    """The front as stairs: nothing between two of its dots was measured."""
    for index, dot in enumerate(best):
        if index:
            yield f"{x(dot.cost)},{y(best[index - 1].score)}"
        yield f"{x(dot.cost)},{y(dot.score)}"


CHARACTER, LINE = 5.6, 11.0  # pixels of a label's letter and line
Box = tuple[float, float, float, float]  # left, top, right, bottom


def placed(
    dots: Sequence[tuple[float, float, Dot]], lines: Sequence[Box], size: tuple[int, int]
) -> dict[str, tuple[float, float, str]]:
    """A place beside its dot for each label that covers no dot, line or other label; the first dots choose first."""
    taken: list[Box] = [*((x - 5, y - 5, x + 5, y + 5) for x, y, _ in dots), *lines]
    positions: dict[str, tuple[float, float, str]] = {}
    for x, y, dot in dots:
        length = CHARACTER * len(dot.name)
        for left, base, anchor in _around(x, y, length):
            box = (left, base - LINE + 2, left + length, base + 2)
            if _inside(box, size) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                positions[dot.name] = (round(left if anchor == "start" else left + length, 1), round(base, 1), anchor)
                break
    return positions


def _inside(box: Box, size: tuple[int, int]) -> bool:
    return box[0] >= 38 and box[2] <= size[0] and box[1] >= 2 and box[3] <= size[1] - 34


def _around(x: float, y: float, length: float) -> list[tuple[float, float, str]]:
    """Places to try: right, left, above, below; the left end, the base line, and where the text is anchored."""
    right, left = (x + 8, "start"), (x - 8 - length, "end")
    return [(end, y + shift, anchor) for shift in (4, -6, 13) for end, anchor in (right, left)]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


# Bars


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a stacked bar, in percent of the longest bar."""

    start: float
    width: float
    kind: int


def stacked(figures: Sequence[float | None], longest: float) -> list[Segment]:
    """A bar's parts, one after the other; parts of no size are left out."""
    segments, start = [], 0.0
    for kind, figure in enumerate(figures):
        width = 100 * (figure or 0.0) / longest if longest else 0.0
        if width > 0:
            segments.append(Segment(start=round(start, 2), width=round(width, 2), kind=kind))
        start += width
    return segments


# Curves


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Losses of a run, and of an older one behind it, as paths on common axes."""

    width: int
    height: int
    new: str
    old: str
    y: Scale
    x: Scale


@dataclass(frozen=True)
class Extent:
    """What the axes of a curve hold: so many updates, and losses from `low` to `high`."""

    updates: int
    low: float
    high: float


def extent(curves: Iterable[Sequence[float | None]]) -> Extent:
    """Of all these curves together, down to 0 where the lowest loss is less than half of the highest."""
    curves = list(curves)
    numbers = [loss for one in curves for loss in one if loss is not None]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    return Extent(max(map(len, curves), default=0), min(0.0, low) if low < 0.5 * high else low, high)


def curve(
    new: Sequence[float | None], old: Sequence[float | None], width: int, height: int, left: int = 0, axes: Extent | None = None
) -> Curve | None:
    """Losses by update, on axes of their own or on those that several share; None where there are fewer than two."""
    if len([loss for loss in new if loss is not None]) < 2:
        return None
    axes = axes or extent([new, old])
    y = Scale(low=axes.low, high=axes.high, start=height - 4 - (14 if left else 0), end=4)
    x = Scale(low=1, high=axes.updates, start=left + 2, end=width - 4)
    return Curve(width=width, height=height, new=_path(new, x, y), old=_path(old, x, y), x=x, y=y)


def thinned(losses: Sequence[float | None], most: int = POINTS_A_CURVE) -> list[tuple[float, float]]:
    """Update and loss; of more updates than `most`, means over equal stretches of them."""
    stretch = math.ceil(len(losses) / most) or 1
    points = []
    for first in range(0, len(losses), stretch):
        part = [loss for loss in losses[first : first + stretch] if loss is not None]
        if part:
            points.append((first + (stretch + 1) / 2, sum(part) / len(part)))
    return points


def _path(losses: Sequence[float | None], x: Scale, y: Scale) -> str:
    points = [(min(update, x.high), loss) for update, loss in thinned(losses)]
    return "M" + " ".join(f"{x(update):g} {y(loss):g}" for update, loss in points) if points else ""


@dataclass(frozen=True, kw_only=True)
class Spark:
    """A cell's scores over runs: a line, and one dot per run."""

    line: str
    dots: Sequence[tuple[float, float, int]]  # x, y, which run


def spark(
    scores: Sequence[float | None],
    like: Sequence[float] = (),
    times: Sequence[float] | None = None,
    width: int = 120,
    height: int = 28,
) -> Spark | None:
    """A line through the runs that have the cell; None where fewer than two have it.

    Args:
        scores: of each run.
        like: scores of the cells that share its scale, which is at least one point high.
        times: of each run; None: at equal distances.
        width: in pixels.
        height: in pixels.
    """
    known = [(index, score) for index, score in enumerate(scores) if score is not None]
    if len(known) < 2:
        return None
    shown = [*like, *(score for _, score in known)]
    middle = (min(shown) + max(shown)) / 2
    half = max(0.5, (max(shown) - min(shown)) / 2)
    x = along(times or range(len(scores)), width)
    y = Scale(low=middle - half, high=middle + half, start=height - 6, end=6)
    places = times or range(len(scores))
    dots = [(x(places[index]), y(score), index) for index, score in known]
    return Spark(line=" ".join(f"{dot_x:g},{dot_y:g}" for dot_x, dot_y, _ in dots), dots=dots)


@dataclass(frozen=True, kw_only=True)
class TimeAxis:
    """The axis above sparks: a tick for each run, and what stands at its ends."""

    labels: tuple[str, str]
    ticks: Sequence[float]


def along(times: Sequence[float], width: int = 120) -> Scale:
    """The axis of time that sparks of one history share."""
    return Scale(low=times[0], high=times[-1], start=6, end=width - 6)
