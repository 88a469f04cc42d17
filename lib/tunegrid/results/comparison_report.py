"""Prints comparisons of methods as text or Markdown."""

from collections.abc import Callable, Mapping, Sequence

from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.results.comparison import Comparison
from tunegrid.results.entries import COSTS, PEAK, SECONDS, TRAINED, Entry
from tunegrid.results.table import Column, lines, markdown, number

MIB = 2**20
COLUMNS = (
    Column(title="method", width=8),
    Column(title="points", right=True),
    Column(title="95 % interval", width=13),
    Column(title="by"),
    Column(title="group"),
    Column(title="MiB", width=6, right=True),
    Column(title="GiB", width=6, right=True),
    Column(title="seconds", right=True),
    Column(title="over seeds"),
    Column(title="front"),
)
SUMMARY = (
    Column(title="task", width=6),
    Column(title="method", width=8),
    Column(title="best, or not told from it", right=True),
    Column(title="on the front", right=True, gap=2),
    Column(title="perhaps", right=True, gap=2),
)
LEGEND = (
    "points: the main score. by: what the interval rests on: noise between seeds (calibrated, of so many seeds, or of the "
    "other methods' seeds), test rows, or both",
    "group: methods that share a letter cannot be told apart (pairs, Holm, 5 % a table)",
    "MiB: what training changes and a checkpoint keeps; GiB: the highest memory peak; seconds: of training",
    "*: no other method is as good for as little of this. front: the same of all three costs together; no: the method in "
    "brackets is as good for as little; perhaps: it costs as little, and its lower score cannot be told from this one",
)
ON_A_CPU = "GiB on a CPU is that of the whole process: unless each cell had its own (--isolate=yes), cells before it count"

OF_QUICK = "the quick profile's learning rates were tuned with test scores in view, so that its scores do not rank methods"


def row(comparison: Comparison, entry: Entry) -> tuple[str, ...]:
    """A method's line."""
    interval = comparison.chance.interval(entry) if entry.scores else None
    return (
        entry.method,
        number(entry.score if entry.scores else None, 1),
        f"{interval.low:.1f} to {interval.high:.1f}" if interval else "-",
        interval.by if interval else "-",
        comparison.groups.get(entry.method, "-"),
        *(_cost(comparison, entry, name) for name in COSTS),
        f"{min(entry.seconds):.1f}-{max(entry.seconds):.1f}" if len(entry.seconds) > 1 else "-",
        _standing(comparison, entry),
    )


def _cost(comparison: Comparison, entry: Entry, name: str) -> str:
    figure = entry.costs[name]
    digits = {TRAINED: 2, PEAK: 2, SECONDS: 1}[name]
    text = number(figure / MIB if figure is not None and name == TRAINED else figure, digits)
    return text + ("*" if entry.method in comparison.on_front(name) else " ")


def _standing(comparison: Comparison, entry: Entry) -> str:
    if entry.objections:
        return "audits failed"
    answer, other = comparison.standing(entry)
    return f"{answer} ({other})" if other else answer


def remarks(comparison: Comparison) -> list[str]:
    """A sentence for everything that limits what the table says."""
    notes = [f"left out of groups and front: {e.method}: {sentence}" for e in comparison.entries for sentence in e.objections]
    notes += [f"cannot tell {' and '.join(sorted(pair))} apart: {reason}" for pair, reason in comparison.untested.items()]
    absent = [name for name in COSTS if name not in comparison.costs]
    notes += [f"not measured of every method, so the front leaves it out: {name}" for name in absent]
    notes += comparison.unlike
    contended = [e.method for e in comparison.entries if any(r.device and r.device.contended for r in e.records)]
    notes += [f"measured on a device that others used: {', '.join(contended)}"] if contended else []
    return notes + ([f"not in this run: {', '.join(comparison.absent)}"] if comparison.absent else [])


def title(comparison: Comparison) -> str:
    """Task, backbone and score."""
    first = comparison.entries[0].first
    seeds = {len(entry.records) for entry in comparison.entries}
    count = f"{min(seeds)} to {max(seeds)} seeds" if len(seeds) > 1 else "one seed" if seeds == {1} else f"{max(seeds)} seeds"
    return f"{comparison.task} on {comparison.backbone}: {first.main_score}, {count}"


def summary(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """By task and method: on how many of its backbones it is among the best, and on the front; empty for one backbone."""
    table = []
    for task in dict.fromkeys(comparison.task for comparison in comparisons):
        own = [comparison for comparison in comparisons if comparison.task == task]
        methods = dict.fromkeys(entry.method for comparison in own for entry in comparison.entries)
        table += [(task, *_counts(own, method)) for method in methods if len(own) > 1]
    return table


def _counts(own: Sequence[Comparison], method: str) -> tuple[str, ...]:
    ranked = [(comparison, entry) for comparison in own for entry in comparison.sound if entry.method == method]
    answers = [comparison.standing(entry)[0] for comparison, entry in ranked]
    best = sum(method in comparison.best for comparison, _ in ranked)
    return (method, *(f"{count} of {len(own)}" for count in (best, answers.count("yes"), answers.count("perhaps"))))


def legend(comparisons: Sequence[Comparison]) -> list[str]:
    """What the columns mean."""
    records = [entry.first for comparison in comparisons for entry in comparison.entries]
    on_a_cpu = any(record.device and record.device.type == "cpu" for record in records)
    of_quick = any(record.profile == QUICK_PROFILE.id for record in records)
    return [*LEGEND, *([ON_A_CPU] if on_a_cpu else []), *([OF_QUICK] if of_quick else [])]


def as_text(comparisons: Sequence[Comparison]) -> str:
    """A table for each task and backbone, the summary, and what the columns mean."""
    parts = []
    for one in comparisons:
        parts += [title(one), *lines(COLUMNS, [row(one, entry) for entry in one.entries]), *remarks(one), ""]
    counts = summary(comparisons)
    parts += [*lines(SUMMARY, counts), ""] if counts else []
    return "\n".join([*parts, *legend(comparisons)])


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """The same for a pull request or a report."""
    parts = []
    for one in comparisons:
        parts += [f"**{markdown(title(one))}**", "", *_table(COLUMNS, [row(one, entry) for entry in one.entries]), ""]
        parts += [*(f"* {markdown(line)}" for line in remarks(one)), ""]
    counts = summary(comparisons)
    parts += [*_table(SUMMARY, counts), ""] if counts else []
    return "\n".join([*parts, *(f"* {markdown(line)}" for line in legend(comparisons))])


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    head = [f"| {' | '.join(column.title for column in columns)} |", "|" + "---|" * len(columns)]
    return head + [f"| {' | '.join(markdown(cell) for cell in cells)} |" for cells in rows]


FORMATS: Mapping[str, Callable[[Sequence[Comparison]], str]] = {"text": as_text, "markdown": as_markdown}
