"""Draws the charts of a run with matplotlib: scores against cost, seeds, losses and history.

The charts are for the run's page and for papers. Equal runs produce identical files, without
creation dates or random ids. Import this module late, because matplotlib takes half a second
to load.
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
from tunegrid.record import Record
from tunegrid.report.compare import PEAK, SECONDS, TENSORS, TRAINED, Comparison, Entry
from tunegrid.terminal import defuse

# Colours by their names in page.css, which has another set for dark screens. Colour-blind readers
# can tell these four apart (Okabe and Ito).
PALETTE = {"c0": "#0068a6", "c1": "#c65102", "c2": "#007d5b", "c3": "#a8508a"}
GREYS = {"ink": "#1b2028", "soft": "#566070", "rule": "#d9dde4", "ground": "#fffffe"}
MARKERS = "os^DvP*X"
DASHES = ("-", "--", ":", "-.")
MOST_POINTS = 120  # in a curve; a chart is too narrow to show more
SEED_REACH = 0.3  # half the length of a mean's line, in columns
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "text.color": GREYS["ink"],
    "font.size": 8,
    "figure.figsize": (3.6, 3.1),
    "figure.subplot.left": 0.15,
    "figure.subplot.right": 0.97,
    "figure.subplot.top": 0.97,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": GREYS["rule"],
    "axes.labelcolor": GREYS["soft"],
    "grid.color": GREYS["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": GREYS["soft"],
    "ytick.color": GREYS["soft"],
    "lines.linewidth": 1.1,
    "lines.markersize": 5,
    "legend.frameon": False,
}

CellPair = tuple[str, str]  # the backbone and method of a cell
Losses = Mapping[str, Sequence[float | None]]  # by method; one loss per update


@dataclass(frozen=True)
class Chart:
    """A chart, the name of its files, and a title that says what it shows."""

    name: str
    title: str
    figure: Figure

    def svg(self) -> str:
        """The chart as an SVG element in the page's colours, without ids that might clash."""
        drawing = StringIO()
        with rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(drawing, format="svg", transparent=True)
        unused = r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->"
        text = re.sub(unused, "", drawing.getvalue(), flags=re.DOTALL)
        text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
        for name, colour in (PALETTE | GREYS).items():
            text = text.replace(colour, f"var(--{name})")
        box = re.search('viewBox="[^"]*"', text)
        content = text.partition(">")[2]
        title = html.escape(defuse(self.title))
        return f'<svg class="chart" {box and box[0]} role="img" aria-label="{title}">{content}'

    def save(self, folder: Path) -> None:
        """Writes the chart as SVG and PDF; raises OSError if a file cannot be written."""
        self.save_svg(folder / f"{self.name}.svg")
        with replace_file(folder / f"{self.name}.pdf") as file:
            self.figure.savefig(file, format="pdf", metadata={"CreationDate": None})

    def save_svg(self, path: Path) -> None:
        """Writes the chart as one SVG file; raises OSError if it cannot be written."""
        with rc_context({"svg.hashsalt": self.name}), replace_file(path) as file:
            self.figure.savefig(file, format="svg", metadata={"Date": None})


def style() -> AbstractContextManager[None]:
    """A context that replaces the user's matplotlib settings while charts are drawn and saved."""
    return context(["default", STYLE])


def blank(xlabel: str, ylabel: str, entries: Sequence[Line2D]) -> tuple[Figure, Axes]:
    """Creates a figure with empty axes and a legend below them."""
    figure = Figure()
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=defuse(ylabel))  # a score may have any name
    figure.legend(
        handles=entries,
        loc="lower center",
        ncols=4,
        fontsize=7,
        handlelength=1.4,
        columnspacing=1.0,
    )
    figure.subplots_adjust(bottom=0.15 + 0.05 * math.ceil(len(entries) / 4))
    return figure, axes


def cell_pair(record: Record) -> CellPair:
    """The backbone and method of a record's cell."""
    return record.backbone, record.method


def looks(cells: Sequence[CellPair]) -> tuple[dict[CellPair, dict[str, Any]], list[Line2D]]:
    """Chooses a style for each pair of backbone and method, and makes the legend.

    Markers and dashes show the method, colours the backbone. If there are more backbones than
    colours, colours show the method instead.
    """
    pairs = sorted(cells, key=lambda cell: study_place(f"{cell[0]}__{cell[1]}"))
    backbones = list(dict.fromkeys(backbone for backbone, _ in pairs))
    methods = list(dict.fromkeys(method for _, method in pairs))
    shades = list(PALETTE.values())
    by_backbone = len(backbones) <= len(shades)
    colours = dict(zip(backbones, shades, strict=False))
    shapes: dict[str, dict[str, Any]] = {}
    legend: list[Line2D] = []
    for i, method in enumerate(methods):
        shapes[method] = {"marker": MARKERS[i % 8], "linestyle": DASHES[i % 4]}
        colour = GREYS["soft"]
        if not by_backbone:
            colour = shades[(i + i // 8) % 4]
            shapes[method]["color"] = colour
        legend.append(Line2D([], [], **{"color": colour} | shapes[method], label=method))
    if not by_backbone:
        return {pair: shapes[pair[1]] for pair in cells}, legend
    for name, colour in colours.items():
        legend.append(Line2D([], [], label=name, color=colour, linewidth=4))
    return {(b, m): shapes[m] | {"color": colours[b]} for b, m in cells}, legend


def by_task(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """Groups comparisons by task."""
    groups: dict[str, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        groups[comparison.task].append(comparison)
    return groups


def quality(comparisons: Sequence[Comparison]) -> Iterator[Chart]:
    """Yields a chart of each task's scores against each cost that was measured.

    Filled marks lie on the Pareto front of their backbone, which is drawn as a staircase.
    """
    for task, group in by_task(comparisons).items():
        peak = PEAK if all(PEAK in comparison.costs for comparison in group) else TENSORS
        for cost in (TRAINED, peak, SECONDS):
            points = []
            for comparison in group:
                for entry in comparison.entries.values():
                    if entry.costs[cost] > 0:  # false for NaN, that is, if not measured
                        points.append((comparison, entry))
            if points:
                yield cost_chart(task, cost, points)


def seeds(comparisons: Sequence[Comparison]) -> Iterator[Chart]:
    """Yields a chart of scores by seed, with their means, for each task with several seeds."""
    for task, group in by_task(comparisons).items():
        entries: list[Entry] = []
        for comparison in group:
            entries += comparison.entries.values()
        if max(len(entry.scores) for entry in entries) > 1:
            yield seed_chart(task, entries)


def seed_chart(task: str, entries: Sequence[Entry]) -> Chart:
    """Plots the scores of a task's seeds, with a column for each backbone and method."""
    pairs = [cell_pair(entry.first) for entry in entries]
    styles, legend = looks(pairs)
    score = entries[0].first.main_score
    figure, axes = blank("", f"{task}: {score}", legend)
    for column, (pair, entry) in enumerate(zip(pairs, entries, strict=True)):
        look = styles[pair] | {"linestyle": ""}
        columns = [column] * len(entry.scores)
        axes.plot(columns, entry.scores, **look, markerfacecolor=GREYS["ground"])
        left = column - SEED_REACH
        axes.hlines([entry.score], left, column + SEED_REACH, color=look["color"])
    axes.set_xticks([])
    return Chart(f"{task}-seeds", f"{task}: {score} of each seed; lines are means", figure)


def cost_chart(task: str, cost: str, points: Sequence[tuple[Comparison, Entry]]) -> Chart:
    """Plots the mean scores of a task's methods against one cost."""
    styles, legend = looks([cell_pair(entry.first) for _, entry in points])
    score = points[0][1].first.main_score
    figure, axes = blank(cost, f"{task}: {score}", legend)
    prices = []
    fronts: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for comparison, entry in points:
        look = styles[cell_pair(entry.first)] | {"linestyle": ""}
        mean = entry.score
        price = entry.costs[cost]
        prices.append(price)
        fill = GREYS["ground"]
        if cost in comparison.costs and entry.first.method in comparison.front(cost):
            fill = look["color"]
            fronts[comparison.backbone].append((price, mean))
        low, high = entry.interval or (mean, mean)
        axes.vlines([price], low, high, color=look["color"], linewidth=0.9)
        axes.plot([price], [mean], **look, markerfacecolor=fill, zorder=3)
    stairs: dict[str, Any] = {"where": "post", "color": GREYS["soft"], "linestyle": ":"}
    for front in fronts.values():
        x, y = zip(*sorted(front), strict=True)
        axes.step(x, y, linewidth=0.7, **stairs)
    logarithmic(axes, prices)
    title = f"{task}: {score} against {cost}; the figures are in the tables"
    return Chart(f"{task}-{cost.replace(' ', '-')}", title, figure)


def logarithmic(axes: Axes, figures: Sequence[float]) -> None:
    """Makes a chart's cost axis logarithmic, with a few round ticks."""
    low = min(figures)
    high = max(figures)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.3, high * 1.3)
    ticks: Locator = MaxNLocator(4)
    if high > 30 * low:
        ticks = LogLocator(subs=(1, 3))
    elif high > 8 * low:
        ticks = LogLocator(subs=(1, 2, 5))
    axes.xaxis.set_major_locator(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def loss_chart(name: str, new: Losses, old: Losses) -> Chart:
    """Plots the losses of each method by update, over those of an older run in grey."""
    grey: dict[str, Any] = {"color": GREYS["soft"], "linewidth": 0.7}
    lines: dict[str, dict[str, Any]] = {}
    legend = []
    styles = cycle(product(DASHES, PALETTE.values()))
    for method, (dashes, colour) in zip(new, styles, strict=False):
        lines[method] = {"linestyle": dashes, "color": colour}
        legend.append(Line2D([], [], label=method, **lines[method]))
    if any(old.values()):
        legend.append(Line2D([], [], label="before", **grey))
    figure, axes = blank("update", f"{name}: loss", legend)
    for method, line in lines.items():
        axes.plot(*thin(old.get(method, ())), **grey)
        axes.plot(*thin(new[method]), **line)
    return Chart(f"{name.replace(' ', '-')}-losses", f"{name}: loss by update", figure)


def thin(values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The updates and losses to plot; long curves become means over equally long stretches."""
    stretch = len(values) // MOST_POINTS + 1
    series = pd.Series(values, index=range(1, len(values) + 1), dtype=float).dropna()
    means = series.groupby((series.index - 1) // stretch).mean()
    return [stretch * index + (stretch + 1) / 2 for index in means.index], list(means)


def history(
    task: str,
    score: str,
    cells: Mapping[CellPair, Sequence[float | None]],
    times: Sequence[datetime] | None,
) -> Chart:
    """Plots the main scores of a task's cells in each run, against `times` if known."""
    styles, legend = looks(list(cells))
    figure, axes = blank("saved" if times else "run", f"{task}: {score}", legend)
    for cell, scores in cells.items():
        runs: Sequence[Any] = times or range(1, len(scores) + 1)
        points = [math.nan if score is None else score for score in scores]
        axes.plot([*runs], points, **styles[cell])
    locator: Any = MaxNLocator(6, integer=True)
    if times:
        dates: Any = AutoDateLocator  # matplotlib has no types for it
        locator = dates(maxticks=4)
        formatter = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.set_major_locator(locator)
    title = f"{task}: main scores over runs; the figures are in the table"
    return Chart(f"{task}-history", title, figure)
