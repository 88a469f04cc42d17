"""Judges the libraries' own path of two runs: both records hold hashes of ids and texts, and figures.

A hash is another or it is not; figures may differ by rounding, as those of numerics (`benchmarks/thresholds/numerics.toml`).
The first stage that changed is named.
"""

from collections.abc import Mapping, Sequence

from tunegrid.record import Record
from tunegrid.record.stock import STOCK_STAGES, StockRecord, StockStage
from tunegrid.results.judgements import Verdict
from tunegrid.results.numerics import FINE, Tolerances, tolerance_of

# By which of the tolerances of numerics a stage's figures are held, and whether these are shares of the old ones.
STOCK_FIGURES: Mapping[str, tuple[str, bool]] = {
    "loss": ("first", False),
    "gradient": ("gradients", True),
    "rates": ("gradients", True),
    "losses": ("later", False),
    "weights": ("moved", True),
    "accumulation": ("later", False),
    "resume": ("later", False),
    "scores": ("later", False),
}
EXACT = ("windows", "start", "labels", "batch", "order")  # stages whose hashes do not depend on rounding


def compared_paths(old: Record, new: Record, tolerances: Tolerances) -> tuple[Verdict, str]:
    """The verdict on two records of a cell, and a sentence's part: the first stage of the libraries' path that changed."""
    if reason := _no_paths(old, new, tolerances):
        return Verdict.NOT_COMPARABLE, reason
    assert old.stock, "checked above"
    assert new.stock, "checked above"
    allowed = tolerance_of(old.cell, arithmetic(old), tolerances)
    exact = (*EXACT, "generation", "pipeline") if arithmetic(old) == FINE else EXACT
    for name in STOCK_STAGES:
        if change := _changed(name, old.stock, new.stock, allowed, exact):
            return Verdict.CHANGED, f"{name}: {change}"
    equal = _figures(old.stock) == _figures(new.stock)
    return (Verdict.EQUAL, "all figures are equal") if equal else (Verdict.ROUNDING, "figures differ by rounding")


def _no_paths(old: Record, new: Record, tolerances: Tolerances) -> str:
    """Why the paths of two records cannot be held to each other; empty where they can."""
    if not old.stock or not new.stock:
        return "no libraries' path was run"
    if refused := old.stock.refused or new.stock.refused:
        return refused
    if old.seeds != new.seeds:
        return "no run of the same seed"
    if old.recipe != new.recipe or old.limits != new.limits:
        return "other recipes or limits"
    if old.data and new.data and old.data.fingerprint != new.data.fingerprint:
        return "other rows"
    if arithmetic(old) not in tolerances:
        return f"no tolerance was measured for {arithmetic(old)}"
    return ""


def arithmetic(record: Record) -> str:
    """What rounding depends on, as numerics names it: the precision that the recipe asks for, over a packed base or not."""
    return f"nf4 {record.recipe.precision}" if record.recipe.quantization else record.recipe.precision


def _figures(path: StockRecord) -> Mapping[str, tuple[str | None, Sequence[float | None]]]:
    """What the path did, without how far ours is from it."""
    return {name: (stage.digest, stage.figures) for name, stage in path.stages.items()}


def _changed(name: str, old: StockRecord, new: StockRecord, allowed: Mapping[str, float], exact: Sequence[str]) -> str:
    before, after = old.stages.get(name), new.stages.get(name)
    if before is None and after is None:
        return ""
    said = new.differs.partition(": ")[2] if new.differs and new.differs.startswith(f"{name}: ") else ""
    if before is None or after is None:
        where = (new if after is None else old).differs or "it was not compared"
        return f"compared in one run alone; in the other, {where}"
    if said and not (old.differs or "").startswith(f"{name}: "):
        return f"{said}; it did not differ from ours before"
    if name in exact and before.digest != after.digest:
        return said or "ids, names or texts are others"
    return _other_figures(before, after, *STOCK_FIGURES[name], allowed) if name in STOCK_FIGURES else ""


def _other_figures(before: StockStage, after: StockStage, figure: str, share: bool, allowed: Mapping[str, float]) -> str:
    if len(before.figures) != len(after.figures):
        return f"{len(after.figures)} figures, there were {len(before.figures)}"
    largest = max((abs(value) for value in before.figures if value is not None), default=0.0)
    for number, (old, new) in enumerate(zip(before.figures, after.figures, strict=True), 1):
        if old is None or new is None:
            if old is not new:
                return f"figure {number} is {_shown(new)}, it was {_shown(old)}"
        elif abs(new - old) > allowed[figure] * (largest if share else 1.0):
            return f"figure {number} is {_shown(new)}, it was {_shown(old)}"
    return ""


def _shown(value: float | None) -> str:
    return "no number" if value is None else f"{value:.6g}"
