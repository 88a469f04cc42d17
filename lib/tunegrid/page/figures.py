"""Draws the charts of a `Page` for papers, each as SVG and PNG: the page's own figures by matplotlib, which only this needs."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunegrid.errors import InputError
from tunegrid.page import charts
from tunegrid.page.cells import LEDGER, CellView
from tunegrid.page.render import tick
from tunegrid.page.view import RATE, Group, Page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEEDED = "tunegrid plot needs matplotlib: pip install -e '.[plot]'"
WIDTH = 7.0  # inches: the text of an A4 page
INK, COLOURS = "#566070", ("#0068a6", "#c65102", "#007d5b", "#a8508a")  # of page.css, on paper
PARTS = ("#0b5c8a", "#4f9bc4", "#9cc7e0", "#c9ced8")
LINES = [(colour, style) for style, colour in product(("-", "--", ":", "-."), COLOURS)]  # of a method's losses
SETTINGS = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "figure.titlesize": 9,
    "figure.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d9dde4",
    "axes.axisbelow": True,
    "svg.hashsalt": "tunegrid",  # the same run, the same file
    "svg.fonttype": "none",  # text stays text
    "savefig.dpi": 300,
}


def write(page: Page, folder: Path) -> list[Path]:
    """Write all charts that the page has; raises InputError without matplotlib, or where the folder cannot be written."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise InputError(NEEDED) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(SETTINGS):
            return [path for name, figure in figures(page) for path in _saved(figure, folder / name)]
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}); give another folder") from None


def _saved(figure: "Figure", path: Path) -> Iterator[Path]:
    for suffix in (".svg", ".png"):
        whole = path.with_name(path.name + suffix)
        figure.savefig(whole, metadata={"Date": None} if suffix == ".svg" else None)
        yield whole


def figures(page: Page) -> Iterator[tuple[str, "Figure"]]:
    """A name and a figure for each chart."""
    for group in page.groups:
        for panel in group.panels:
            name = f"quality-{group.task}" + (f"-{panel.backbone}" if panel.backbone else "")
            yield name, quality(group, panel.charts, f"{group.task}{f' on {panel.backbone}' if panel.backbone else ''}")
        if any(cell.losses() for cell in group.cells):
            yield f"losses-{group.task}", losses(group, page.loss_axes[group.task])
        yield f"costs-{group.task}", costs(group)
        known = [cell for cell in group.cells if cell.reliability]
        if known:
            yield f"calibration-{group.task}", calibration(known)
    for forgotten in page.forgotten:
        if forgotten.chart:
            axis = "nats forgotten"
            yield f"forgetting-{forgotten.task}", scatters([(axis, forgotten.chart)], forgotten.looks, forgotten.score, "")


def quality(group: Group, drawn: Sequence[tuple[str, charts.Scatter]], title: str) -> "Figure":
    """The main score against each cost."""
    return scatters(drawn, group.looks, group.cells[0].first.main_score, title)


def scatters(drawn: Sequence[tuple[str, charts.Scatter]], looks: charts.Looks, score: str, title: str) -> "Figure":
    """Charts beside each other, with one legend below them."""
    from matplotlib.lines import Line2D

    figure, axes = _axes(1, len(drawn), 2.6 + 0.14 * (len(looks.legend) // 6))
    for place, (name, chart) in zip(axes, drawn, strict=True):
        _scatter(place, chart)
        place.set_xlabel(name)
    axes[0].set_ylabel(score)
    figure.suptitle(title)
    filled = {look for _, look in looks.legend if looks.together and look.colour is not None}  # a backbone's colour
    marks = [Line2D([], [], linestyle="", **_mark(look, look in filled)) for _, look in looks.legend]
    figure.legend(marks, [name for name, _ in looks.legend], loc="outside lower center", ncols=6, frameon=False)
    return figure


def _scatter(place: "Axes", chart: charts.Scatter) -> None:
    place.set_xscale("log" if chart.log else "linear")
    place.set_xlim(chart.x.low, chart.x.high)
    place.set_ylim(chart.y.low, chart.y.high)
    ticks = chart.x.ticks(4)
    place.set_xticks(ticks, labels=[tick(value) for value in ticks])
    place.set_xticks([], minor=True)
    for front in chart.fronts_of_dots:
        colour = COLOURS[front[0].look.colour or 0]
        place.step([dot.cost for dot in front], [dot.score for dot in front], where="post", color=colour, linestyle=":", lw=0.8)
    for mark in chart.marks:
        dot = mark.dot
        place.vlines(dot.cost, dot.low, dot.high, color=_colour(dot.look), lw=0.7, alpha=0.6)
        place.plot([dot.cost], [dot.score], **_mark(dot.look, bool(dot.front)))


def _mark(look: charts.Look, filled: bool) -> dict[str, Any]:
    colour = _colour(look)
    return {"marker": look.shape, "markersize": 5, "color": colour, "markerfacecolor": colour if filled else "white"}


def _colour(look: charts.Look) -> str:
    return INK if look.colour is None else COLOURS[look.colour]


def losses(group: Group, extent: charts.Extent) -> "Figure":
    """Loss by update: a chart for each backbone, all on the same axes; the older run is grey."""
    figure, axes = _axes(1, len(group.backbones), 2.4 + 0.14 * (len(group.methods) // 6))
    by_method: dict[str, Any] = {}
    for place, backbone in zip(axes, group.backbones, strict=True):
        place.set(
            title=f"{group.task} on {backbone}", xlabel="update", xlim=(0, extent.updates), ylim=(extent.low, extent.high)
        )
        for cell in (cell for cell in group.cells if cell.first.backbone == backbone):
            colour, style = LINES[group.methods.index(cell.first.method) % len(LINES)]
            place.plot(*_points(cell, old=True), color="#c9ced8", lw=0.8, zorder=1)
            by_method[cell.first.method], *_ = place.plot(*_points(cell), color=colour, linestyle=style, lw=1)
    axes[0].set_ylabel("loss, nats a target")
    figure.legend(list(by_method.values()), list(by_method), loc="outside lower center", ncols=6, frameon=False)
    return figure


def _points(cell: CellView, *, old: bool = False) -> tuple[list[float], list[float]]:
    points = charts.thinned(cell.losses(old=old))
    return [update for update, _ in points], [loss for _, loss in points]


def costs(group: Group) -> "Figure":
    """Bytes of tensors, and rows trained on a second, a bar for each cell."""
    figure, (tensors, rate) = _axes(1, 2, 0.7 + 0.16 * len(group.cells))
    names = [cell.id for cell in group.cells]
    left = [0.0] * len(names)
    for index, part in enumerate(LEDGER):
        widths = [float(cell.ledger[index] or 0) / 2**20 for cell in group.cells]
        if any(widths):
            tensors.barh(names, widths, left=left, color=PARTS[index], label=part)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    rate.barh(names, [cell.rate(RATE) or 0.0 for cell in group.cells], color=PARTS[1])
    tensors.set_xlabel("tensors, MiB")
    rate.set_xlabel("rows trained on a second")
    rate.set_yticklabels([])
    for place in (tensors, rate):
        place.invert_yaxis()
        place.grid(visible=False, axis="y")
    if any(left):
        tensors.legend(frameon=False)
    return figure


def calibration(cells: Sequence[CellView]) -> "Figure":
    """The share of hits by confidence: a diagram for each cell."""
    rows = -(-len(cells) // 6)
    figure, axes = _axes(rows, min(6, len(cells)), 1.5 * rows)
    for place, cell in zip(axes, cells, strict=False):
        total = sum(one.rows for one in cell.reliability)
        place.plot([0, 1], [0, 1], color=INK, linestyle=":", lw=0.8)
        for one in cell.reliability:
            place.vlines(one.confidence, one.low, one.high, color=INK, lw=0.7)
            place.plot([one.confidence], [one.hits], marker="o", color=COLOURS[0], markersize=2 + 6 * (one.rows / total) ** 0.5)
        place.set(title=cell.id, xlim=(0, 1.03), ylim=(0, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    for place in axes[len(cells) :]:
        place.set_visible(False)
    figure.supxlabel("confidence")
    figure.supylabel("share of hits")
    return figure


def _axes(rows: int, columns: int, height: float) -> tuple["Figure", list["Axes"]]:
    """A figure as wide as the text, and its axes in reading order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
