"""Draws the histories of several libraries: a row for each library, a mark for each release.

The picture is one SVG. The page is one HTML file that needs no server: a click on a mark shows what
the release changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tunegrid.machine import write_whole
from tunegrid.page.charts import GREYS, PALETTE, Chart, style
from tunegrid.page.render import environment

NOTHING = "nothing changed"
# What a mark can say, in the order of importance, and how it looks; sizes are in points squared.
LOOKS: Mapping[str, Mapping[str, Any]] = {
    "numerics": {"marker": "D", "s": 70, "color": PALETTE["c1"]},
    "audits": {"marker": "^", "s": 85, "color": PALETTE["c3"]},
    "memory": {"marker": "s", "s": 60, "color": PALETTE["c0"]},
    "quality": {"marker": "P", "s": 80, "color": PALETTE["c2"]},
    "did not run": {"marker": "x", "s": 45, "color": GREYS["ink"]},
    "out of reach": {
        "marker": "o",
        "s": 45,
        "facecolors": "none",
        "edgecolors": GREYS["soft"],
    },
    "compared with nothing": {"marker": "|", "s": 70, "color": GREYS["soft"]},
    NOTHING: {"marker": "o", "s": 12, "color": GREYS["soft"]},
}
CHANGES = ("numerics", "audits", "memory", "quality")  # which the picture labels
TITLE = "What each release changed in 27 fine-tunings"
WIDTH, ROW_HEIGHT = 10.0, 0.62  # inches
LOW, HIGH = 9, 18  # points from a mark to its label


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A release in the picture, and the facts that a click shows."""

    library: str
    version: str
    kind: str  # a key of LOOKS
    facts: Mapping[str, str]

    @property
    def anchor(self) -> str:
        """The mark's id on the page."""
        return f"{self.library}-{self.version}"


def draw_timeline(rows: Mapping[str, Sequence[Mark]], title: str = TITLE) -> Chart:
    """Draws each library's marks from left to right, oldest first.

    Releases keep their order, not their dates. Must be called within `style()`.
    """
    figure = Figure(figsize=(WIDTH, ROW_HEIGHT * len(rows) + 1.1))
    axes: Axes = figure.subplots()
    longest = max(map(len, rows.values()))
    for row, marks in enumerate(rows.values()):
        axes.hlines(-row, 0, len(marks) - 1, color=GREYS["rule"], linewidth=1, zorder=1)
        for kind, look in LOOKS.items():
            places = [place for place, mark in enumerate(marks) if mark.kind == kind]
            if places:
                points = axes.scatter(places, [-row] * len(places), zorder=2, **look)
                points.set_urls([f"#{marks[place].anchor}" for place in places])
        height = LOW
        for place, mark in enumerate(marks):
            # Labels of neighbours stand above each other.
            is_next = place > 0 and marks[place - 1].kind in CHANGES
            height = HIGH if is_next and height == LOW else LOW
            label: dict[str, Any] = {
                "xy": (place, -row),
                "textcoords": "offset points",
                "ha": "center",
            }
            if mark.kind in CHANGES:
                axes.annotate(mark.version, xytext=(0, height), fontweight="bold", **label)
            elif place in (0, len(marks) - 1):
                axes.annotate(mark.version, xytext=(0, -14), color=GREYS["soft"], **label)
    names = [f"{name}\n{_looked_at(marks)}" for name, marks in rows.items()]
    axes.set_yticks([-row for row in range(len(rows))], names, fontsize=9, linespacing=1.3)
    axes.set_xlim(-0.8, longest - 0.2)
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    used = {mark.kind for marks in rows.values() for mark in marks}
    for kind, look in LOOKS.items():
        if kind in used:
            axes.scatter([], [], label=kind, **look)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.01), ncols=len(LOOKS), fontsize=9)
    figure.subplots_adjust(left=0.16, right=0.985, top=0.91, bottom=0.1)
    return Chart("history", title, figure)


def _looked_at(marks: Sequence[Mark]) -> str:
    compared = [mark for mark in marks if mark.kind in (*CHANGES, NOTHING)]
    changed = [mark for mark in compared if mark.kind in CHANGES]
    return f"{len(changed)} of {len(compared)} changed"


def write_timeline(rows: Mapping[str, Sequence[Mark]], picture: Path, page: Path) -> None:
    """Writes the picture as SVG and the page as HTML; raises OSError if that fails."""
    with style():
        chart = draw_timeline(rows)
        svg = Markup(chart.svg())  # charts escape their own text
        chart.save_svg(picture)
    marks = [mark for row in rows.values() for mark in row]
    template = environment().get_template("history.html.j2")
    write_whole(page, template.render(title=TITLE, svg=svg, marks=marks, rows=rows))
