"""Says what is rounding, a stage of `python -m tunegrid.lab measure`: writes thresholds/numerics.toml.

It compares trainings of one seed that only round differently: each seed that the bounds stage trains from moved starts, too,
makes pairs, without any training of its own.

A tolerance is twice the largest deviation of all cells of one arithmetic, rounded up to two digits, and no less than its floor.
A cell that deviates by more than ten times the median of these cells does not widen it, but has a tolerance of its own. How far
curves part depends on a cell's rate and updates more than on arithmetic, so that each cell has its own; an arithmetic has the
median cell's, for cells that were never measured. It stays below what other masks of dropout do.

What another implementation of AdamW rounds, and what other masks of dropout do, was measured with version 0.16.0. Those figures
are taken from the file as it is.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from statistics import median
from textwrap import wrap

import pandas as pd

from tunegrid.errors import InputError
from tunegrid.lab.calibrate import CalibrationPlan
from tunegrid.lab.grid_runs import GridRun, LabSessions, note
from tunegrid.record import Record
from tunegrid.results.bounds import origin
from tunegrid.results.modules import Modules, Moved, read_both
from tunegrid.results.numerics import BY_GROUP, UPDATES, Pair, arithmetic, furthest, losses
from tunegrid.results.thresholds import TOLERANCES

FAR = 10  # times the median of the cells' largest deviations
FAR_OF_MODULES = 3  # the same of single modules, of which a model has many: the median cell shows some that amplify much
HEADER = """
Written by `python -m tunegrid.lab measure`: how far two trainings of one seed, with the same rows, order and recipe,
may lie apart and still be rounding. By arithmetic; `nf4` names a base in NF4: rounding to 4 bits amplifies the last bit.
Nats: the loss before training and of the `first` update, and of `later` ones, 2 to 10. Shares: the norms by group of parameters
of `weights` before training, of `probe_gradients` without dropout, of `gradients` of the first update, and of how far three
updates `moved` them; `moved_alone` holds where all that comes before is bit-identical, so that only the optimizer rounds; of
the largest logit, by how much more or less a search with a cache is off (`decoded`); of the mean loss, how far the `curve` of
losses, smoothed over five updates, lies apart anywhere up to the last update; of its own norm, how far what a module gives in
the probe (`module_outputs`) and the gradients there (`module_gradients`) move at most: they name modules, and decide nothing.
Each is twice the largest deviation of harmless changes, rounded up to two digits: of starts that are moved in their last
digits, against unmoved ones of their seeds; `moved_alone` is of another implementation of AdamW, measured with version 0.16.0
and kept since. "cell ..." are cells that deviate by more than {far} times the median of the cells of their arithmetic, of
modules {far_of_modules} times: they do not widen its tolerance. Each cell has its own `curve`, no farther than half way to
what other masks of dropout do; an arithmetic has the median cell's. No tolerance of an arithmetic is below its floor: {floors}.
"""
FLOORS: Mapping[str, float] = {  # another processor rounds where this one did not
    "first": 1.5e-5,
    "later": 5e-5,
    "weights": 5e-6,
    "probe_gradients": 2e-5,
    "gradients": 1e-4,
    "moved": 2.5e-3,
    "moved_alone": 1e-5,
    "decoded": 1e-4,
    "curve": 2e-3,
    "module_outputs": 1e-4,
    "module_gradients": 1.5e-4,
}
# What a few runs of the grid on one machine may not show. Where adapters are fp32, an optimizer may round several times more at
# another seed (bert_qa_lora: 9.6e-5 and 4.7e-4; gpt2_sum_qlora: none and 4.8e-5). Processors differ most in bf16: one with
# other units was 1e-3 nats off at first, and 3.5e-3 later. There LoRA's product in another order moves weights by 2.7e-3
# (`-m library_bugs -k order`), and no quick cell searches.
FLOORS_OF: Mapping[str, Mapping[str, float]] = {
    "fp32": {"moved_alone": 1e-3},
    "nf4 fp32": {"moved_alone": 1e-3},
    "bf16": {"first": 2e-3, "later": 7e-3, "gradients": 1e-2, "moved": 6e-3, "moved_alone": 1e-3, "decoded": 5e-2},
}
Tables = dict[str, dict[str, float]]  # figures by arithmetic, and by "cell " and an id


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far two trainings of a cell lie apart.

    Attributes:
        kind: their arithmetic.
        figures: by name.
    """

    cell: str
    kind: str
    figures: Mapping[str, float]


def apart(old: Record, new: Record) -> Apart:
    """How far a training lies apart from one of the same seed; raises InputError where one of them left no losses."""
    if not losses(old) or not losses(new) or not old.training or not new.training:
        raise InputError(f"{old.cell} of seed {old.seeds.seed} has a loss that is not finite; tolerances rest on healthy runs")
    pair = Pair(old=old.training, new=new.training, tolerance={}, fine=False)
    both = read_both(old, new, (None, None))  # this machine's store has what the lab's own sessions kept
    return Apart(cell=old.cell, kind=arithmetic(old), figures=figures_of(pair) | (modules_apart(*both) if both else {}))


def figures_of(pair: Pair) -> dict[str, float]:
    """How far each figure with a tolerance lies apart, without those of modules: losses in nats, norms as shares."""
    gaps = [abs((a or 0.0) - (b or 0.0)) for a, b in zip(pair.old.losses[:UPDATES], pair.new.losses[:UPDATES], strict=False)]
    probe, search = pair.figures("probe_loss"), pair.figures("decoded")
    first = max([*gaps[:1], abs((probe[0] or 0.0) - (probe[1] or 0.0))])
    norms = {name: furthest(*pair.figures(name))[0] for name in BY_GROUP}
    decoded = {} if None in search else {"decoded": abs(search[0] - search[1])}
    return {"first": first, "later": max(gaps[1:], default=0.0), **norms, "curve": pair.curve, **decoded}


def modules_apart(old: Modules, new: Modules) -> dict[str, float]:
    """How far outputs and gradients of modules moved at most, in any phase of the probe."""
    shares = pd.concat([Moved.between(old, new, phase).shares for phase in new.phase.unique()]).fillna(0.0)
    figures = {"module_outputs": ["input", "output"], "module_gradients": ["gradient", "weight_gradients"]}
    return {name: float(shares[own].to_numpy().max()) for name, own in figures.items()}


# The rule


def tolerance(deviation: float, floor: float = 0.0) -> float:
    """Twice a deviation, rounded up to two digits; no less than the floor."""
    doubled = Context(prec=2, rounding=ROUND_CEILING).create_decimal(Decimal(repr(2 * deviation)))
    return max(floor, float(doubled))


def far_beyond(by_cell: Mapping[str, float], floor: float, far: float = FAR) -> list[str]:
    """The cells that deviate by more than so many times the median cell, and by more than the floor allows."""
    limit = far * median(by_cell.values())
    return [cell for cell, deviation in by_cell.items() if deviation > limit and 2 * deviation > floor]


def floor_of(kind: str, figure: str) -> float:
    """What is rounding in this arithmetic, however little was seen."""
    return FLOORS_OF.get(kind, {}).get(figure, FLOORS[figure])


def largest(seen: Iterable[Apart]) -> Tables:
    """The largest deviations by arithmetic, without those of cells far beyond the others, which have a table of their own."""
    by_kind: dict[str, dict[str, dict[str, float]]] = {}
    for one in seen:
        for figure, deviation in one.figures.items():
            by_cell = by_kind.setdefault(one.kind, {}).setdefault(figure, {})
            by_cell[one.cell] = max(deviation, by_cell.get(one.cell, 0.0))
    tables: Tables = {kind: {} for kind in by_kind}
    for kind, figures in by_kind.items():
        for figure in (figure for figure in FLOORS if figure in figures):
            of_all, floor = figures[figure], floor_of(kind, figure)
            if figure == "curve":
                tables[kind][figure] = usual = median(of_all.values())
                own = [cell for cell, seen in of_all.items() if tolerance(seen, floor) != tolerance(usual, floor)]
            else:
                own = far_beyond(of_all, floor, FAR_OF_MODULES if figure.startswith("module_") else FAR)
                tables[kind][figure] = max(deviation for cell, deviation in of_all.items() if cell not in own)
            for cell in own:
                tables.setdefault(f"cell {cell}", {})[figure] = figures[figure][cell]
    return tables


def tolerances_of(most: Tables) -> Tables:
    """Every tolerance of each arithmetic, the floor where nothing was seen, and those that cells have of their own."""
    least = {"curve": FLOORS["curve"]}  # of a cell: beyond its arithmetic's in all other figures
    return {
        name: {figure: tolerance(deviation, least.get(figure, 0.0)) for figure, deviation in seen.items()}
        if name.startswith("cell ")
        else {figure: tolerance(seen.get(figure, 0.0), floor_of(name, figure)) for figure in FLOORS}
        for name, seen in most.items()
    }


# The file


@dataclass(frozen=True, kw_only=True)
class ToleranceEvidence:
    """Trainings that only round otherwise, and what version 0.16.0 measured.

    Attributes:
        pairs: a seed's training, and one from a start that is moved in its last digits.
        alone: by arithmetic or cell, how far the movement by another implementation of AdamW lies off (`moved_alone`).
        masks: by cell, the curve of a training with other masks of dropout from the eleventh update on: no rounding.
        seeds, draws: of the moved starts.
        first: a record that names device and versions.
    """

    pairs: Sequence[Apart]
    alone: Mapping[str, float]
    masks: Mapping[str, Apart]
    seeds: Sequence[int]
    draws: Sequence[int]
    first: Record

    @property
    def most(self) -> Tables:
        """The largest deviations; raises InputError where a figure was there in one of two trainings alone."""
        for one in self.pairs:
            if lost := [name for name, deviation in one.figures.items() if deviation == float("inf")]:
                raise InputError(f"{one.cell} has {lost[0]} in one of two trainings alone; tolerances rest on healthy runs")
        tables = largest(self.pairs)
        for name, deviation in self.alone.items():
            tables.setdefault(name, {})["moved_alone"] = deviation
        return {name: {figure: table[figure] for figure in FLOORS if figure in table} for name, table in tables.items()}

    @property
    def tolerances(self) -> Tables:
        """By arithmetic and cell. A curve's stays half way between rounding and other masks, where these are farther apart."""
        tables = tolerances_of(self.most)
        seen: dict[str, float] = {}
        for one in self.pairs:
            seen[one.cell] = max(one.figures.get("curve", 0.0), seen.get(one.cell, 0.0))
        for cell, one in self.masks.items():
            rounded, drawn = seen.get(cell, 0.0), one.figures["curve"]
            if rounded < drawn <= allowed(tables, cell, one.kind):
                tables.setdefault(f"cell {cell}", {})["curve"] = (rounded + drawn) / 2
        return tables

    def figures(self) -> dict[str, object]:
        """What a page may say of it."""
        own = [name.removeprefix("cell ") for name in self.most if name.startswith("cell ")]
        return {
            "pairs": len(self.pairs),
            "cells_of_their_own": sorted(own),
            "largest": self.most,
        }


def allowed(tables: Tables, cell: str, kind: str) -> float:
    """How far a cell's curve may part: its own tolerance, or its arithmetic's."""
    return tables.get(f"cell {cell}", {}).get("curve", tables[kind]["curve"])


def blunt(evidence: ToleranceEvidence) -> list[str]:
    """A sentence for every cell whose curve may round as far as other masks of dropout part it."""
    tables = evidence.tolerances
    return [
        f"blunt: {cell} curve {most:.1e}; other masks of dropout part it by {one.figures['curve']:.1e} only"
        for cell, one in evidence.masks.items()
        if one.figures["curve"] <= (most := allowed(tables, cell, one.kind))
    ]


def numerics_toml(evidence: ToleranceEvidence) -> str:
    """The file of tolerances."""
    lines = [*_header(), ""]
    for name, table in evidence.tolerances.items():
        lines += [f'["{name}"]', *(f"{figure} = {_digits(value, 2)}" for figure, value in table.items()), ""]
    lines += [
        "[evidence]",
        *origin(evidence.first),
        f"pairs = {len(evidence.pairs)}",
        f"seeds = {list(evidence.seeds)}",
        f"draws = {list(evidence.draws)}",
        "",
        "# The largest deviations seen in pairs; `moved_alone`: by another implementation of AdamW, with version 0.16.0.",
        "[evidence.largest]",
        *(f'"{name}" = {{ {_shown(table)} }}' for name, table in evidence.most.items()),
        "",
        "# With version 0.16.0: other masks of dropout from the eleventh update on, the nearest of a cell. They are no",
        "# rounding, and lie beyond the tolerance.",
        "[evidence.drawn]",
        *(
            f'{cell} = {{ kind = "{one.kind}", curve = {_digits(one.figures["curve"])} }}'
            for cell, one in evidence.masks.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _header() -> list[str]:
    floors = [_shown(FLOORS, 2), *(f"in {kind}: {_shown(own, 2)}" for kind, own in FLOORS_OF.items())]
    return wrap(
        HEADER.format(far=FAR, far_of_modules=FAR_OF_MODULES, floors="; ".join(floors)).strip(),
        128,
        initial_indent="# ",
        subsequent_indent="# ",
    )


def _digits(value: float, digits: int = 3) -> str:
    return f"{value:.{digits - 1}e}".replace("e-0", "e-") if value else "0.0"


def _shown(table: Mapping[str, float], digits: int = 3) -> str:
    return ", ".join(f"{figure} = {_digits(value, digits)}" for figure, value in table.items())


# The stage


def unmoved(plan: CalibrationPlan) -> list[GridRun]:
    """Runs of the seeds that are trained from moved starts, too."""
    return [run for run in plan.first if run.seeds[0] < plan.perturbed]


def planned(plan: CalibrationPlan) -> list[GridRun]:
    """All that the tolerances rest on."""
    return [*unmoved(plan), *plan.moved]


def measured(plan: CalibrationPlan, sessions: LabSessions) -> ToleranceEvidence:
    """Train what is missing; the evidence. Raises InputError where no start is moved."""
    if not plan.moved:
        raise InputError("tolerances rest on moved starts: give --perturbed-seeds and --draws of at least 1")
    sessions.train(planned(plan))
    before = {seed: grid for run in unmoved(plan) for seed, grid in run.grids().items()}
    moved = [(seed, grid) for run in plan.moved for seed, grid in run.grids().items()]
    present = tomllib.loads(TOLERANCES.read_text(encoding="utf-8"))["evidence"]
    return ToleranceEvidence(
        pairs=[apart(before[seed][cell], new) for seed, grid in moved for cell, new in grid.items()],
        alone={name: seen["moved_alone"] for name, seen in present["largest"].items() if "moved_alone" in seen},
        masks={
            cell: Apart(cell=cell, kind=seen["kind"], figures={"curve": seen["curve"]})
            for cell, seen in present["drawn"].items()
        },
        seeds=range(plan.perturbed),
        draws=[run.draw for run in plan.moved if run.draw is not None],
        first=next(iter(before[0].values())),
    )


def write(plan: CalibrationPlan, sessions: LabSessions, to: Path) -> int:
    """Train, write, say which tolerances are blunt; return the exit code."""
    evidence = measured(plan, sessions)
    path = to / "benchmarks" / "thresholds" / "numerics.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(numerics_toml(evidence), encoding="utf-8")
    note(to / "reports" / "measured.json", "numerics", evidence.figures())
    print(*blunt(evidence), f"wrote {path} from {len(evidence.pairs)} pairs", sep="\n")
    return 0
