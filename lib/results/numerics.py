"""Did the arithmetic of training change? In: two records of a cell, of one seed. Out: equal, rounding or changed, and where.

Two trainings on the same rows, in the same order and from the same seed have the same losses, but for rounding. Their first
updates show a change before any score does, and need no statistics: later updates amplify rounding, the first ten hardly.
The tolerances are measured (`benchmarks/thresholds/numerics.toml`).
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib.record import Record
from lib.results.judgements import Verdict

TOLERANCES = Path(__file__).parents[2] / "benchmarks" / "thresholds" / "numerics.toml"
Tolerances = Mapping[str, Mapping[str, float]]  # by arithmetic: `first` update, `later` ones, in nats


def load_tolerances(path: Path = TOLERANCES) -> Tolerances:
    """How far losses may lie apart and still be rounding, by arithmetic."""
    tables: Mapping[str, Mapping[str, float]] = tomllib.loads(path.read_text())
    return {name: table for name, table in tables.items() if name != "evidence"}


def compared(old: Record, new: Record, tolerances: Tolerances, updates: int = 10) -> tuple[Verdict, str]:
    """The verdict on two records of a cell, and a sentence's part that names the first stage that changed.

    Args:
        old: the baseline's record.
        new: the record to judge.
        tolerances: by arithmetic, in nats.
        updates: how many are compared, from the first on.
    """
    reason = not_comparable(old, new, tolerances)
    if reason:
        return Verdict.NOT_COMPARABLE, reason
    before, after = losses(old), losses(new)
    if old.training and new.training and old.training.order != new.training.order:
        return Verdict.CHANGED, "rows: the same rows in another order, or in other batches"
    verdict, detail = curves(before, after, tolerances[arithmetic(old)], updates)
    return _by_predictions(old, new) if verdict is Verdict.EQUAL else (verdict, detail)


def curves(
    before: Sequence[float], after: Sequence[float], tolerance: Mapping[str, float], updates: int
) -> tuple[Verdict, str]:
    """The verdict on two curves of losses, and the first stage that changed: forward, or backward and optimizer."""
    gaps = [abs(a - b) for a, b in zip(before[:updates], after[:updates], strict=False)]
    if gaps[0] > tolerance["first"]:
        return Verdict.CHANGED, f"forward: the loss of update 1 is {after[0]:.6g}, it was {before[0]:.6g}"
    late = next((i for i, gap in enumerate(gaps) if i and gap > tolerance["later"]), None)
    if late is not None:
        return Verdict.CHANGED, f"backward or optimizer: losses part by {gaps[late]:.1e} at update {late + 1}, not at update 1"
    if list(before) == list(after):
        return Verdict.EQUAL, "all losses are equal"
    return Verdict.ROUNDING, f"losses of the first {len(gaps)} updates differ by at most {max(gaps):.1e}"


def _by_predictions(old: Record, new: Record) -> tuple[Verdict, str]:
    """Equal losses mean equal weights: other predictions are then the evaluation's doing."""
    files = [record.examples.file if record.examples else None for record in (old, new)]
    if all(files) and files[0] != files[1]:
        return Verdict.CHANGED, "evaluation: all losses are equal, predictions or their points are not"
    return Verdict.EQUAL, "all losses are equal"


def losses(record: Record) -> list[float]:
    """The losses of all updates; empty where one is not a number."""
    values = record.training.losses if record.training else []
    numbers = [value for value in values if value is not None]
    return numbers if len(numbers) == len(values) else []


def arithmetic(record: Record) -> str:
    """What rounding depends on: "nf4" over a quantized base, else the precision of training."""
    quantization = record.recipe.quantization
    precision = record.training.precision if record.training else "none"
    return f"nf4 {precision}" if quantization else precision


def not_comparable(old: Record, new: Record, tolerances: Tolerances) -> str:
    """Why the losses of two records cannot be held to each other; empty where they can."""
    if (old.seeds.seed, old.seeds.split_seed) != (new.seeds.seed, new.seeds.split_seed):
        return "no run of the same seed"
    if old.recipe != new.recipe or old.limits != new.limits:
        return "other recipes or limits"
    if old.data and new.data and old.data.fingerprint != new.data.fingerprint:
        return "other rows"
    if not losses(old) or not losses(new):
        return "a run without losses"
    if arithmetic(old) != arithmetic(new) or arithmetic(old) not in tolerances:
        return f"no tolerance was measured for {arithmetic(new)} after {arithmetic(old)}"
    return ""
