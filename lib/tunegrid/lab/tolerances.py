"""What is rounding: makes thresholds/numerics.toml of trainings of one seed that only round differently.

A tolerance is twice the largest deviation of all cells of one arithmetic, rounded up to two digits, and no less than its floor.
A cell that deviates by more than ten times the median of these cells does not widen it, but has a tolerance of its own. How far
curves part, and in how many rows predictions differ, depends on a cell's rate and updates more than on arithmetic, so that each
cell has its own; an arithmetic has the largest, for cells that were never measured. Curves have three times their largest
deviation: they are chaotic, and nine pairs of runs seldom show the farthest.

What another implementation of AdamW rounds (`moved_alone`) was measured with version 0.16.0. Those figures, and the head that
explains all of them, are taken from the file as it is.
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
from tunegrid.gate.numerics import BY_GROUP, UPDATES, Pair, arithmetic, changed_rows, finite_losses, furthest
from tunegrid.gate.thresholds import TOLERANCES
from tunegrid.record import Record

FAR = 10  # times the median of the cells' largest deviations
FAR_OF_MODULES = 3  # the same of single modules, of which a model has many: the median cell shows some that amplify much
BY_CELL = ("curve", "rows")
TIMES: Mapping[str, int] = {"curve": 3}  # the largest deviation; of all others twice
FLOORS: Mapping[str, float] = {  # another processor rounds where this one did not; the file's head says them, too
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
# What a few runs of the grid on one machine may not show. Where adapters are fp32, an optimizer may round several times more at
# another seed (bert_qa_lora: 9.6e-5 and 4.7e-4; gpt2_sum_qlora: none and 4.8e-5). Processors differ most in bf16: one with
# other units was 1e-3 nats off at first, and 3.5e-3 later. There LoRA's product in another order moves weights by 2.7e-3
# (`-m library_bugs -k order`), and no quick cell searches.
KIND_FLOORS: Mapping[str, Mapping[str, float]] = {
    "fp32": {"moved_alone": 1e-3},
    "nf4 fp32": {"moved_alone": 1e-3},
    "bf16": {"first": 2e-3, "later": 7e-3, "gradients": 1e-2, "moved": 6e-3, "moved_alone": 1e-3, "decoded": 5e-2},
}
Tables = dict[str, dict[str, float]]  # figures by arithmetic, and by "cell " and an id


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far two trainings of a cell lie apart, by figure."""

    cell: str
    kind: str  # their arithmetic
    figures: Mapping[str, float]


def diffs(old: Record, new: Record) -> Apart:
    """How far a training lies apart from one of the same seed; raises InputError if one of them lacks what the other has."""
    if not finite_losses(old) or not finite_losses(new) or not old.training or not new.training:
        raise InputError(f"{old.cell} of seed {old.seeds.seed} has a loss that is not finite; tolerances rest on healthy runs")
    modules = read_both(old, new, (None, None))  # this machine's store has what the lab's own sessions kept
    figures = pair_figures(Pair(old=old.training, new=new.training, tolerance={}, fine=False))
    figures |= modules_apart(*modules) if modules else {}
    rows = changed_rows(old, new, (None, None))
    figures |= {"rows": rows[0] / rows[1]} if rows else {}
    if lone_figures := [name for name, deviation in figures.items() if deviation == float("inf")]:
        raise InputError(f"{old.cell} has {lone_figures[0]} in only one of two trainings; tolerances rest on healthy runs")
    return Apart(cell=old.cell, kind=arithmetic(old), figures=figures)


def pair_figures(pair: Pair) -> dict[str, float]:
    """How far each figure with a tolerance lies apart, without those of modules: losses in nats, norms as shares."""
    gaps = [abs((a or 0.0) - (b or 0.0)) for a, b in zip(pair.old.losses[:UPDATES], pair.new.losses[:UPDATES], strict=False)]
    norms = {name: furthest(*pair.figures(name))[0] for name in BY_GROUP}
    pairs = {name: pair.figures(name) for name in ("probe_loss", "decoded")}
    probe_gaps = {name: abs(old - new) for name, (old, new) in pairs.items() if None not in (old, new)}
    return {"first": max(gaps[:1]), "later": max(gaps[1:], default=0.0), **norms, "curve": pair.curve, **probe_gaps}


def modules_apart(old: Modules, new: Modules) -> dict[str, float]:
    """How far outputs and gradients of modules moved at most, in any phase of the probe."""
    shares = pd.concat([Moved.measure(old, new, phase).shares for phase in new.phase.unique()]).fillna(0.0)
    figures = {"module_outputs": ["input", "output"], "module_gradients": ["gradient", "weight_gradients"]}
    return {name: float(shares[columns].to_numpy().max()) for name, columns in figures.items()}


# The rule


def tolerance(deviation: float, floor: float = 0.0, times: int = 2) -> float:
    """So many times a deviation, rounded up to two digits; no less than the floor."""
    multiple = Context(prec=2, rounding=ROUND_CEILING).create_decimal(Decimal(repr(times * deviation)))
    return max(floor, float(multiple))


def get_floor(kind: str, figure: str) -> float:
    """What is rounding in this arithmetic, however little was seen."""
    return KIND_FLOORS.get(kind, {}).get(figure, FLOORS[figure])


def largest(pairs: Iterable[Apart]) -> Tables:
    """The largest deviations by arithmetic, without those of cells far beyond the others, which have a table of their own."""
    maxima: dict[str, dict[str, dict[str, float]]] = {}
    for pair in pairs:
        for figure, deviation in pair.figures.items():
            deviations = maxima.setdefault(pair.kind, {}).setdefault(figure, {})
            deviations[pair.cell] = max(deviation, deviations.get(pair.cell, 0.0))
    tables: Tables = {kind: {} for kind in maxima}
    for kind, figures in maxima.items():
        for figure in (figure for figure in FLOORS if figure in figures):
            deviations, floor = figures[figure], get_floor(kind, figure)
            limit = median(deviations.values()) * (FAR_OF_MODULES if figure.startswith("module_") else FAR)
            outliers = [cell for cell, gap in deviations.items() if figure in BY_CELL or (gap > limit and 2 * gap > floor)]
            usual_gaps = [gap for cell, gap in deviations.items() if figure in BY_CELL or cell not in outliers]
            tables[kind][figure] = max(usual_gaps)
            for cell in outliers:
                tables.setdefault(f"cell {cell}", {})[figure] = deviations[cell]
    return tables


def make_tolerances(most: Tables) -> Tables:
    """Every tolerance of each arithmetic, the floor if nothing was seen, and those that cells have of their own."""
    tables: Tables = {}
    for name, table in most.items():
        own = name.startswith("cell ")  # a cell's are beyond its arithmetic's but for those that each has
        floors = {f: (FLOORS[f] if f in BY_CELL else 0.0) if own else get_floor(name, f) for f in (table if own else FLOORS)}
        tables[name] = {f: tolerance(table.get(f, 0.0), floor, TIMES.get(f, 2)) for f, floor in floors.items()}
    return tables


# The file


def numerics_toml(perturbed: Mapping[int, Sequence[RecordsByCell]]) -> str:
    """The file, of each seed's run and its runs from moved starts; what the present file says beside tolerances is kept."""
    text = TOLERANCES.read_text(encoding="utf-8")
    former_evidence = tomllib.loads(text)["evidence"]
    pairs = [diffs(runs[0][cell], record) for runs in perturbed.values() for grid in runs[1:] for cell, record in grid.items()]
    if not pairs:
        raise InputError("tolerances rest on moved starts: give --moved-seeds and --draws of at least 1")
    deviations = largest(pairs)
    for name, figures in former_evidence["largest"].items():
        if "moved_alone" in figures:
            deviations.setdefault(name, {})["moved_alone"] = figures["moved_alone"]
    maxima = {name: {figure: table[figure] for figure in FLOORS if figure in table} for name, table in deviations.items()}
    tables = make_tolerances(maxima)
    lines = [*text.partition("\n\n")[0].splitlines(), ""]
    for name, table in tables.items():
        lines += [f'["{name}"]', *(f"{figure} = {_digits(value, 2)}" for figure, value in table.items()), ""]
    lines += [
        "[evidence]",
        *origin(next(iter(next(iter(perturbed.values()))[0].values()))),
        f"pairs = {len(pairs)}",
        f"seeds = {list(perturbed)}",
        f"draws = {list(range(1, max(map(len, perturbed.values()))))}",
        "",
        "# The largest deviations seen in pairs; `moved_alone`: by another implementation of AdamW, with version 0.16.0.",
        "[evidence.largest]",
    ]
    for name, table in maxima.items():
        lines.append(f'"{name}" = {{ {", ".join(f"{figure} = {_digits(gap, 3)}" for figure, gap in table.items())} }}')
    return "\n".join([*lines, ""])


def _digits(value: float, digits: int) -> str:
    return f"{value:.{digits - 1}e}".replace("e-0", "e-") if value else "0.0"
