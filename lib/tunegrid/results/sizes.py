"""Shows how far each method is from full fine-tuning against the size of the backbone, where runs hold sizes of one family.

A family is what loads under one architecture: `bert` and `bertlarge` are BERT. A gap is a method's main score minus that of
full fine-tuning on the same backbone, and its interval holds for other seeds, other test rows, or both, as `Chance.gap` says.
Whether size changes the gap is the difference between the largest and the smallest backbone, whose variances add up: they share
no training, and that they share test rows is not taken into account. Needs no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tunegrid.grid.methods import SFT
from tunegrid.results.compare import Comparison, Entry, Gap, combined
from tunegrid.results.table import Column, latex_float, lines, markdown, markdown_table, number, signed

COLUMNS = (
    Column(title="task", width=6),
    Column(title="method", width=8),
    Column(title="backbone", width=10),
    Column(title="parameters", right=True),
    Column(title="minus sft", right=True),
    Column(title="95 % interval", width=13),
    Column(title="by"),
)
TITLE = "points of each method minus those of sft, by the backbone's size"
NOTE = "a method's last line is the change from its smallest backbone to its largest; an interval by rows covers no other seed"
MILLION = 1e6


@dataclass(frozen=True, kw_only=True)
class SizedGap:
    """A method's gap on one backbone; `gap` is None where nothing tells how far it may be off."""

    backbone: str
    parameters: int
    points: float
    gap: Gap | None


Family = tuple[str, str, str]  # task, method, architecture


def by_family(comparisons: Sequence[Comparison]) -> dict[Family, list[SizedGap]]:
    """The gaps of each task, method and family that has several sizes, the smallest first."""
    families: dict[Family, list[SizedGap]] = {}
    for comparison in comparisons:
        full = next((entry for entry in comparison.sound if entry.method == SFT.id), None)
        if full is None or full.first.model is None or full.first.parameters is None:
            continue
        for entry in comparison.sound:
            if entry is not full:
                key = (comparison.task, entry.method, full.first.model.architecture)
                families.setdefault(key, []).append(_sized(comparison, entry, full))
    several = {key: gaps for key, gaps in families.items() if len({gap.parameters for gap in gaps}) > 1}
    return {key: sorted(gaps, key=lambda gap: gap.parameters) for key, gaps in several.items()}


def _sized(comparison: Comparison, entry: Entry, full: Entry) -> SizedGap:
    assert full.first.parameters, "checked by `by_family`"
    return SizedGap(
        backbone=comparison.backbone,
        parameters=full.first.parameters.total_params,
        points=entry.score - full.score,
        gap=comparison.chance.gap(entry, full),
    )


def change(small: SizedGap, large: SizedGap) -> Gap | None:
    """The larger backbone's gap minus the smaller one's; None where one of them has no error."""
    if small.gap is None or large.gap is None:
        return None
    error, df = combined([(gap.error**2, gap.df) for gap in (small.gap, large.gap)])
    by = "; ".join(dict.fromkeys((small.gap.by, large.gap.by)))
    return Gap(points=large.points - small.points, error=error, df=df, by=by)


def rows(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """A line for each backbone, and one for the change from the smallest to the largest."""
    table = []
    for (task, method, _), gaps in by_family(comparisons).items():
        small, large = gaps[0], gaps[-1]
        sizes = [(gap.backbone, f"{gap.parameters / MILLION:.0f} M", gap.points, gap.gap) for gap in gaps]
        names, times = f"{small.backbone} to {large.backbone}", f"x {number(large.parameters / small.parameters, 1)}"
        moved = (names, times, large.points - small.points, change(small, large))
        table += [(task, method, *_words(*line)) for line in [*sizes, moved]]
    return table


def _words(backbone: str, size: str, points: float, gap: Gap | None) -> tuple[str, ...]:
    interval = gap.interval if gap else None
    ends = f"{interval.low:+.1f} to {interval.high:+.1f}" if interval else "-"
    return backbone, size, signed(points, 1), ends, interval.by if interval else "-"


def as_text(comparisons: Sequence[Comparison]) -> str:
    """The table; empty where no family has several sizes."""
    table = rows(comparisons)
    return "\n".join(["", TITLE, *lines(COLUMNS, table), NOTE]) if table else ""


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """The same for a pull request or a report."""
    table = rows(comparisons)
    shown = ["", f"**{markdown(TITLE)}**", "", *markdown_table(COLUMNS, table), "", f"* {markdown(NOTE)}"]
    return "\n".join(shown) if table else ""


def as_latex(comparisons: Sequence[Comparison]) -> str:
    """The same for a paper."""
    table = rows(comparisons)
    return "\n".join(["", *latex_float(TITLE, COLUMNS, table, [NOTE])]) if table else ""


FORMATS: Mapping[str, Callable[[Sequence[Comparison]], str]] = {"text": as_text, "markdown": as_markdown, "latex": as_latex}
