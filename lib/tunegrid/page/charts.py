"""Draws the charts of a run by matplotlib, for its page and for papers: scores against cost, losses, and history.

Equal runs draw equal files: no chart has a date or a random name. Imported late, since matplotlib takes half a second.
"""

import html
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullLocator

from tunegrid.grid.cells import study_place
from tunegrid.machine import replace_file
from tunegrid.report.compare import PEAK, SECONDS, TENSORS, TRAINED, Comparison, Entry
from tunegrid.terminal import defuse

# By their names in page.css, which has others for the dark; the first four also the colour-blind tell apart (Okabe and Ito).
COLOURS = {"c0": "#0068a6", "c1": "#c65102", "c2": "#007d5b", "c3": "#a8508a"}
GREYS = {"ink": "#1b2028", "soft": "#566070", "rule": "#d9dde4", "ground": "#fffffe"}
MARKERS, DASHES = "os^DvP*X", ("-", "--", ":", "-.")
POINTS = 120  # of a curve: more cannot be told apart at the width of a chart
SEED_REACH = 0.3  # of the line of a mean, to each side, in columns
STYLE: dict[Any, Any] = {
    **{"svg.fonttype": "none", "pdf.fonttype": 42, "text.parse_math": False, "figure.figsize": (3.6, 3.1), "font.size": 8},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.linewidth": 0.6},
    **{"axes.edgecolor": GREYS["rule"], "grid.color": GREYS["rule"], "text.color": GREYS["ink"], "lines.linewidth": 1.1},
    **{"axes.labelcolor": GREYS["soft"], "xtick.color": GREYS["soft"], "ytick.color": GREYS["soft"], "lines.markersize": 5},
    **{"figure.subplot.left": 0.15, "figure.subplot.right": 0.97, "figure.subplot.top": 0.97, "legend.frameon": False},
}


@dataclass(frozen=True)
class Chart:
    """A chart with the name of its files, and what it shows in words."""

    name: str
    title: str
    figure: Figure

    def svg(self) -> str:
        """For a page, whose colours it takes: an element whose parts have no names that another chart's have."""
        drawing = StringIO()
        with rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(drawing, format="svg", transparent=True)
        text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawing.getvalue(), flags=re.DOTALL)
        text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
        for name, colour in (COLOURS | GREYS).items():
            text = text.replace(colour, f"var(--{name})")
        box, parts = re.search('viewBox="[^"]*"', text), text.partition(">")[2]
        return f'<svg class="chart" {box and box[0]} role="img" aria-label="{html.escape(defuse(self.title))}">{parts}'

    def save(self, folder: Path) -> None:
        """Write it as SVG and PDF; raises OSError if that cannot be done."""
        for kind, date in (("svg", "Date"), ("pdf", "CreationDate")):
            with rc_context({"svg.hashsalt": self.name}), replace_file(folder / f"{self.name}.{kind}") as part:
                self.figure.savefig(part, format=kind, metadata={date: None})


def style() -> AbstractContextManager[None]:
    """In which all charts are drawn and saved, whatever the user's own settings of matplotlib are."""
    return context(["default", STYLE])


def blank(xlabel: str, ylabel: str, entries: Sequence[Line2D]) -> tuple[Figure, Axes]:
    """A figure with an empty chart, and a legend below it."""
    figure = Figure()
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=defuse(ylabel))  # a score may have any name
    figure.legend(handles=entries, loc="lower center", ncols=4, fontsize=7, handlelength=1.4, columnspacing=1.0)
    figure.subplots_adjust(bottom=0.15 + 0.05 * math.ceil(len(entries) / 4))
    return figure, axes


def looks(cells: Sequence[tuple[str, str]]) -> tuple[dict[tuple[str, str], dict[str, Any]], list[Line2D]]:
    """A look for each backbone and method, and a legend: shape and dashes say the method, and colour the backbone.

    Of more backbones than there are colours, colour says the method, too.
    """
    pairs = sorted(cells, key=lambda cell: study_place(f"{cell[0]}__{cell[1]}"))
    backbones, methods = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    several, shades = len(backbones) <= len(COLOURS), list(COLOURS.values())
    colours = (
        dict(zip(backbones, shades, strict=False)) if several else {m: shades[(i + i // 8) % 4] for i, m in enumerate(methods)}
    )
    shapes: dict[str, dict[str, Any]] = {
        m: {"marker": MARKERS[i % 8], "linestyle": DASHES[i % 4]} for i, m in enumerate(methods)
    }
    legend = [Line2D([], [], label=m, color=GREYS["soft"] if several else colours[m], **shapes[m]) for m in methods]
    legend += [Line2D([], [], label=b, color=colours[b], linewidth=4) for b in backbones if several]
    return {(b, m): shapes[m] | {"color": colours[b if several else m]} for b, m in cells}, legend


def quality(comparisons: Sequence[Comparison]) -> Iterator[Chart]:
    """Scores of each task against each cost: filled marks are on their backbone's Pareto front, which is a line of stairs."""
    for task in dict.fromkeys(one.task for one in comparisons):
        group = [one for one in comparisons if one.task == task]
        for cost in (TRAINED, PEAK if all(PEAK in one.costs for one in group) else TENSORS, SECONDS):
            points = []
            for comparison in group:
                for method, entry in comparison.entries.items():
                    if entry.costs[cost] > 0:  # it is NaN if it was not measured
                        points.append((comparison, method, entry.costs[cost]))
            if points:
                yield cost_chart(task, cost, points)


def seeds(comparisons: Sequence[Comparison]) -> Iterator[Chart]:
    """The score of each seed, by task, and the mean of each method as a line; nothing for tasks of one seed."""
    for task in dict.fromkeys(one.task for one in comparisons):
        group = [one for one in comparisons if one.task == task]
        entries = [entry for comparison in group for entry in comparison.entries.values()]
        if max(len(entry.scores) for entry in entries) > 1:
            yield seed_chart(task, entries)


def seed_chart(task: str, entries: Sequence[Entry]) -> Chart:
    """One of these charts, a column for each method of each backbone."""
    styles, legend = looks([(entry.first.backbone, entry.first.method) for entry in entries])
    score = entries[0].first.main_score
    figure, axes = blank("", f"{task}: {score}", legend)
    for column, entry in enumerate(entries):
        look = styles[entry.first.backbone, entry.first.method] | {"linestyle": ""}
        axes.plot([column] * len(entry.scores), entry.scores, **look, markerfacecolor=GREYS["ground"])
        axes.hlines([entry.score], column - SEED_REACH, column + SEED_REACH, color=look["color"])
    axes.set_xticks([])
    return Chart(f"{task}-seeds", f"{task}: {score} of each seed; lines are means", figure)


def cost_chart(task: str, cost: str, points: Sequence[tuple[Comparison, str, float]]) -> Chart:
    """One of these charts; each method of each comparison with its cost."""
    styles, legend = looks([(one.backbone, method) for one, method, _ in points])
    score = points[0][0].entries[points[0][1]].first.main_score
    figure, axes = blank(cost, f"{task}: {score}", legend)
    fronts: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one, method, price in points:
        look, mean = styles[one.backbone, method] | {"linestyle": ""}, one.entries[method].score
        fill = GREYS["ground"]
        if cost in one.costs and method in one.front(cost):
            fill = look["color"]
            fronts[one.backbone].append((price, mean))
        axes.vlines([price], *(one.entries[method].interval or (mean, mean)), color=look["color"], linewidth=0.9)
        axes.plot([price], [mean], **look, markerfacecolor=fill, zorder=3)
    for stairs in fronts.values():
        axes.step(*zip(*sorted(stairs), strict=True), where="post", color=GREYS["soft"], linewidth=0.7, linestyle=":")
    logarithmic(axes, [price for _, _, price in points])
    return Chart(f"{task}-{cost.replace(' ', '-')}", f"{task}: {score} against {cost}; the figures are in the tables", figure)


def logarithmic(axes: Axes, figures: Sequence[float]) -> None:
    """A logarithmic axis of costs with a few round ticks."""
    low, high = min(figures), max(figures)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.3, high * 1.3)
    ticks: Locator = LogLocator(subs=(1, 3) if high > 30 * low else (1, 2, 5)) if high > 8 * low else MaxNLocator(4)
    axes.xaxis.set_major_locator(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def losses(name: str, new: Mapping[str, Sequence[float | None]], old: Mapping[str, Sequence[float | None]]) -> Chart:
    """Losses by update of the methods of one backbone and task, those of an older run grey behind them."""
    styles = dict(zip(new, cycle(product(DASHES, COLOURS.values())), strict=False))
    grey: dict[str, Any] = {"color": GREYS["soft"], "linewidth": 0.7}
    lines: dict[str, dict[str, Any]] = {m: {"linestyle": dashes, "color": colour} for m, (dashes, colour) in styles.items()}
    legend = [Line2D([], [], label=method, **line) for method, line in lines.items()]
    legend += [Line2D([], [], label="before", **grey)] if any(old.values()) else []
    figure, axes = blank("update", f"{name}: loss", legend)
    for method, line in lines.items():
        axes.plot(*thin(old.get(method, ())), **grey)
        axes.plot(*thin(new[method]), **line)
    return Chart(f"{name.replace(' ', '-')}-losses", f"{name}: loss by update", figure)


def thin(values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Updates and losses; of many, means over equal stretches of them."""
    stretch = len(values) // POINTS + 1
    series = pd.Series(values, index=range(1, len(values) + 1), dtype=float).dropna()
    means = series.groupby((series.index - 1) // stretch).mean()
    return [stretch * index + (stretch + 1) / 2 for index in means.index], list(means)


def history(
    task: str, score: str, cells: Mapping[tuple[str, str], Sequence[float | None]], times: Sequence[datetime] | None
) -> Chart:
    """Main scores of a task's cells over runs: by time, or else one after the other."""
    styles, legend = looks(list(cells))
    figure, axes = blank("saved" if times else "run", f"{task}: {score}", legend)
    for cell, scores in cells.items():
        axes.plot([*(times or range(1, len(scores) + 1))], [math.nan if s is None else s for s in scores], **styles[cell])
    dates: Any = AutoDateLocator  # matplotlib has no types for it
    locator = dates(maxticks=4) if times else MaxNLocator(6, integer=True)
    axes.xaxis.set_major_locator(locator)
    if times:
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    return Chart(f"{task}-history", f"{task}: main scores over runs; the figures are in the table", figure)
