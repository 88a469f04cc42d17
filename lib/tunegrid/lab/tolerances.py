"""Builds thresholds/numerics.toml from training runs that share a seed and differ only in rounding.

A tolerance is twice the largest deviation of all cells with the same arithmetic, rounded up to two
digits, and no less than its floor. A cell that deviates by more than ten times the median of these
cells (three times for single modules) does not widen the tolerance, but gets its own. The distance
between loss curves and the share of rows with changed predictions depend more on a cell's learning
rate and number of updates than on its arithmetic. For these figures, each cell has its own
tolerance, and cells that were never measured use the largest. The tolerance of curves is three
times their largest deviation, because curves are chaotic and nine pairs of runs rarely show the
largest possible deviation.

The rounding of another AdamW implementation (`moved_alone`) was measured with version 0.16.0. These
figures are kept from the existing file, as is its head comment, which explains all figures.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from statistics import median

import pandas as pd

from tunegrid.errors import InputError
from tunegrid.gate.bounds import RecordsByCell, origin
from tunegrid.gate.modules import Modules, Moved, read_both
from tunegrid.gate.numerics import (
    BY_GROUP,
    UPDATES,
    Pair,
    arithmetic,
    changed_rows,
    finite_losses,
    furthest,
)
from tunegrid.gate.thresholds import TOLERANCES
from tunegrid.record import Record

FAR = 10  # times the median of the cells' largest deviations
# The same for single modules. A model has so many that some modules of the median cell amplify
# rounding strongly.
FAR_OF_MODULES = 3
BY_CELL = ("curve", "rows")
# multiple of the largest deviation; 2 for all other figures
TIMES: Mapping[str, int] = {"curve": 3}
# Other processors round where this one did not. The file's head quotes these figures, too.
FLOORS: Mapping[str, float] = {
    "probe_loss": 1.5e-5,
    "first": 1.5e-5,
    "later": 5e-5,
    "weights": 5e-6,
    "probe_gradients": 2e-5,
    "gradients": 1e-4,
    "moved": 2.5e-3,
    "moved_alone": 1e-5,
    "decoded": 1e-4,
    "curve": 2e-3,
    "rows": 5e-4,
    "module_outputs": 1e-4,
    "module_gradients": 1.5e-4,
}
# Effects that a few runs of the grid on one machine may not show. With fp32 adapters, another
# seed's optimizer may round several times more (bert_qa_lora: 9.6e-5 and 4.7e-4; gpt2_sum_qlora:
# none and 4.8e-5). Processors differ most in bf16: one with other units was 1e-3 nats off at first
# and 3.5e-3 later. In bf16, LoRA's product in another order moves weights by 2.7e-3 (`-m
# library_bugs -k order`). No quick cell in bf16 runs a search.
KIND_FLOORS: Mapping[str, Mapping[str, float]] = {
    "fp32": {"moved_alone": 1e-3},
    "nf4 fp32": {"moved_alone": 1e-3},
    "bf16": {
        "first": 2e-3,
        "later": 7e-3,
        "gradients": 1e-2,
        "moved": 6e-3,
        "moved_alone": 1e-3,
        "decoded": 5e-2,
    },
}
Tables = dict[str, dict[str, float]]  # figures by arithmetic, or by "cell " and an id


@dataclass(frozen=True, kw_only=True)
class Apart:
    """The deviations between two training runs of a cell, by figure."""

    cell: str
    kind: str  # the arithmetic of both training runs
    figures: Mapping[str, float]


def diffs(old: Record, new: Record) -> Apart:
    """Measure the deviations between two training runs of a cell with the same seed.

    Raises InputError if a loss is not finite, or if only one training run has a figure.
    """
    is_finite = finite_losses(old) and finite_losses(new)
    if not is_finite or not old.training or not new.training:
        fault = f"{old.cell} of seed {old.seeds.seed} has a loss that is not finite"
        raise InputError(f"{fault}; tolerances rest on healthy runs")
    # The lab's own sessions put their files into this machine's store.
    modules = read_both(old, new, (None, None))
    rows = changed_rows(old, new, (None, None))
    figures = pair_figures(Pair(old=old.training, new=new.training, tolerance={}, fine=False))
    if modules:
        figures |= modules_apart(*modules)
    if rows:
        figures["rows"] = rows[0] / rows[1]
    for name, deviation in figures.items():
        if deviation == float("inf"):
            fault = f"{old.cell} has {name} in only one of two trainings"
            raise InputError(f"{fault}; tolerances rest on healthy runs")
    return Apart(cell=old.cell, kind=arithmetic(old), figures=figures)


def pair_figures(pair: Pair) -> dict[str, float]:
    """The deviations of all figures except those of modules and rows.

    Deviations of losses are in nats, and those of norms are relative.
    """
    gaps = []
    for old, new in zip(pair.old.losses[:UPDATES], pair.new.losses[:UPDATES], strict=False):
        gaps.append(abs((old or 0.0) - (new or 0.0)))
    figures = {"first": gaps[0], "later": max(gaps[1:], default=0.0)}
    for name in BY_GROUP:
        figures[name] = furthest(*pair.figures(name))[0]
    figures["curve"] = pair.curve
    for name in ("probe_loss", "decoded"):
        old, new = pair.figures(name)
        if old is not None and new is not None:
            figures[name] = abs(old - new)
    return figures


def modules_apart(old: Modules, new: Modules) -> dict[str, float]:
    """The largest relative changes of modules' outputs and gradients in any phase of the probe."""
    phases = [Moved.measure(old, new, phase).shares for phase in new.phase.unique()]
    shares = pd.concat(phases).fillna(0.0)
    outputs = shares[["input", "output"]]
    gradients = shares[["gradient", "weight_gradients"]]
    return {
        "module_outputs": float(outputs.to_numpy().max()),
        "module_gradients": float(gradients.to_numpy().max()),
    }


# Deriving tolerances


def tolerance(deviation: float, floor: float, times: int) -> float:
    """A multiple of a deviation, rounded up to two significant digits, but at least the floor."""
    context = Context(prec=2, rounding=ROUND_CEILING)
    multiple = context.create_decimal(Decimal(repr(times * deviation)))
    return max(floor, float(multiple))


def get_floor(kind: str, figure: str) -> float:
    """The smallest tolerance allowed for a figure in the arithmetic `kind`, such as bf16."""
    return KIND_FLOORS.get(kind, {}).get(figure, FLOORS[figure])


def largest(pairs: Iterable[Apart]) -> Tables:
    """The largest deviations for each arithmetic, and for single cells.

    A cell has its own deviations for BY_CELL figures, and for figures in which it is an outlier.
    """
    maxima: dict[str, dict[str, dict[str, float]]] = {}
    for pair in pairs:
        for figure, deviation in pair.figures.items():
            deviations = maxima.setdefault(pair.kind, {}).setdefault(figure, {})
            deviations[pair.cell] = max(deviation, deviations.get(pair.cell, 0.0))
    tables: Tables = {kind: {} for kind in maxima}
    for kind, figures in maxima.items():
        for figure in FLOORS:
            if figure not in figures:
                continue
            deviations = figures[figure]
            far = FAR_OF_MODULES if figure.startswith("module_") else FAR
            limit = median(deviations.values()) * far
            floor = get_floor(kind, figure)
            usual_gaps = []
            for cell, gap in deviations.items():
                is_far = gap > limit and 2 * gap > floor
                if figure in BY_CELL or is_far:
                    tables.setdefault(f"cell {cell}", {})[figure] = gap
                if figure in BY_CELL or not is_far:
                    usual_gaps.append(gap)
            tables[kind][figure] = max(usual_gaps)
    return tables


def make_tolerances(maxima: Tables) -> Tables:
    """The tolerances for each arithmetic, at or above their floors, and for single cells."""
    tables: Tables = {}
    for name, deviations in maxima.items():
        is_cell = name.startswith("cell ")
        tables[name] = {}
        figures = deviations if is_cell else FLOORS
        for figure in figures:
            floor = get_floor(name, figure)
            if is_cell and figure not in BY_CELL:
                floor = 0.0  # the cell deviates more than its arithmetic
            times = TIMES.get(figure, 2)
            tables[name][figure] = tolerance(deviations.get(figure, 0.0), floor, times)
    return tables


# Writing the file


def numerics_toml(perturbed: Mapping[int, Sequence[RecordsByCell]]) -> str:
    """The text of numerics.toml, computed from each seed's run and its runs from moved starts.

    The existing file's head and its evidence on `moved_alone` are kept. Raises InputError if there
    are no moved starts.
    """
    pairs = []
    for first, *moved_grids in perturbed.values():
        for grid in moved_grids:
            pairs += [diffs(first[cell], record) for cell, record in grid.items()]
    if not pairs:
        advice = "give --moved-seeds and --draws of at least 1"
        raise InputError(f"tolerances rest on moved starts: {advice}")
    deviations = largest(pairs)
    text = TOLERANCES.read_text(encoding="utf-8")
    for name, figures in tomllib.loads(text)["evidence"]["largest"].items():
        if "moved_alone" in figures:
            deviations.setdefault(name, {})["moved_alone"] = figures["moved_alone"]
    maxima = {}
    for name, table in deviations.items():
        maxima[name] = {figure: table[figure] for figure in FLOORS if figure in table}
    lines = [*text.partition("\n\n")[0].splitlines(), ""]
    for name, table in make_tolerances(maxima).items():
        lines.append(f'["{name}"]')
        lines += [f"{figure} = {_digits(value, 2)}" for figure, value in table.items()]
        lines.append("")
    grids = next(iter(perturbed.values()))
    any_record = next(iter(grids[0].values()))
    run_counts = map(len, perturbed.values())
    lines.append("[evidence]")
    lines += origin(any_record)
    lines += [
        f"pairs = {len(pairs)}",
        f"seeds = {list(perturbed)}",
        f"draws = {list(range(1, max(run_counts)))}",
        "",
        "# The largest deviations seen in pairs; "
        "`moved_alone`: by another implementation of AdamW, with version 0.16.0.",
        "[evidence.largest]",
    ]
    for name, table in maxima.items():
        entries = [f"{figure} = {_digits(gap, 3)}" for figure, gap in table.items()]
        lines.append(f'"{name}" = {{ {", ".join(entries)} }}')
    return "\n".join([*lines, ""])


def _digits(value: float, digits: int) -> str:
    if not value:
        return "0.0"
    return f"{value:.{digits - 1}e}".replace("e-0", "e-")
