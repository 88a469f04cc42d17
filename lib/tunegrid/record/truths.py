"""Says, as sentences, what in a record contradicts the rest of it.

What its status demands to be there is in `tunegrid.record.rules`; here is whether what is there can be true. A record that
missed something tells so itself, so that most of this holds a record that passed.
"""

from collections.abc import Callable, Iterator, Mapping

from tunegrid.grid.methods import METHODS
from tunegrid.record.parts import Estimate
from tunegrid.record.record import Record
from tunegrid.record.wrong import below_bounds, failures, impossible_figures

PERCENT = 1e-6  # what rounding may do to a share
# The audits that need a run of some length: no other may fail without counting.
NEED_LENGTH = ("weights_moved", "generation_not_truncated", "learned_something")


def names(record: Record) -> Iterator[str]:
    """The cell is its backbone, task and method, and the recipe is of that method."""
    parts = f"{record.backbone}_{record.task}_{record.method}"
    if record.cell != parts:
        yield f"cell is {record.cell}, but backbone, task and method are {parts}"
    method = next((method for method in METHODS if method.id == record.method), None)
    if method is None:  # of the zoo or of a user
        return
    for part, has, expected in (
        ("adapter", record.recipe.adapter is not None, method.adapts),
        ("quantization", record.recipe.quantization is not None, method.quantization is not None),
    ):
        if has != expected:
            yield f"recipe.{part} is {'set' if has else 'null'}, which is not method {record.method}"


def scores(record: Record) -> Iterator[str]:
    """A task is judged by some scores, its main one among them, and a cell that passed has that one."""
    if record.main_score not in record.bounded_scores:
        yield f"main_score {record.main_score!r} is not among bounded_scores, by which gates judge"
    if record.evaluation is not None and record.status == "passed" and record.scores.get(record.main_score) is None:
        yield f"scores has no {record.main_score}, but the status is 'passed'"


def findings(record: Record) -> Iterator[str]:
    """A cell that finished was audited; only audits that failed are excused, and of those only some."""
    if record.finished and not record.audits and record.stock is None:
        yield f"audits is empty, but the status is {record.status!r}"
    failed = {finding.name for finding in record.audits if not finding.passed}
    for name in record.excused:
        if name not in failed:
            yield f"excused has {name}, which is no audit that failed"
        elif name not in NEED_LENGTH:
            yield f"excused has {name}, which no run is too short for"


def stock_path(record: Record) -> Iterator[str]:
    """A cell whose libraries' path differs from ours did not pass."""
    if record.status == "passed" and record.stock and record.stock.differs:
        yield f"stock.differs says {record.stock.differs!r}, but the status is 'passed'"


def outcome(record: Record) -> Iterator[str]:
    """A cell that passed failed no audit, reached its bounds and has figures that can be."""
    if record.status == "passed":
        wrong = (
            *failures(record.audits, record.excused),
            *below_bounds(record.scores, record.bounds),
            *impossible_figures(record),
        )
        yield from (f"the status is 'passed', but {sentence}" for sentence in wrong)


def beginning(record: Record) -> Iterator[str]:
    """A cell of which the first updates were asked for has these, and neither scores nor bounds; no other cell says so."""
    if record.first_updates is None:
        if record.status == "begun":
            yield "first_updates is null, but the status is 'begun'"
        return
    if record.status != "begun":
        yield f"first_updates is {record.first_updates}, but the status is {record.status!r}"
    if record.training and record.training.updates != record.first_updates:
        yield f"first_updates is {record.first_updates}, but training.updates is {record.training.updates}"
    for name in ("evaluation", "scores", "examples", "bounds"):
        if getattr(record, name):
            yield f"{name} is set, but after the first updates nothing is scored"


def course(record: Record) -> Iterator[str]:
    """Each update has a loss, an epoch was chosen among those that were scored, and `stopped` says what the status says."""
    training = record.training
    if training is None:
        return
    if training.updates != len(training.losses):
        yield f"training.updates is {training.updates}, but training.losses has {len(training.losses)}"
    if training.chosen_epoch is not None and training.chosen_epoch > len(training.epoch_scores):
        yield f"training.chosen_epoch is {training.chosen_epoch}, but {len(training.epoch_scores)} epochs were scored"
    if record.finished and training.stopped is not None:
        yield f"training.stopped tells why it ended early, but the status is {record.status!r}"


def share(record: Record) -> Iterator[str]:
    """The share of trainable parameters is that of the counts."""
    counts = record.parameters
    if counts is None:
        return
    percent = 100 * counts.trainable_params / counts.total_params
    if abs(counts.trainable_percent - percent) > PERCENT:
        yield f"parameters.trainable_percent is {counts.trainable_percent:.4g}, but {percent:.4g} by the counts"


def rows(record: Record) -> Iterator[str]:
    """No split has more rows than it was limited to."""
    if record.data is None:
        return
    limits: Mapping[str, int | None] = {
        "train": record.limits.train_rows,
        "validation": record.limits.validation_rows,
        "test": record.limits.test_rows,
    }
    for split, limit in limits.items():
        count = getattr(record.data.rows, split)
        if limit is not None and count > limit:
            yield f"data.rows.{split} is {count}, but limits.{split}_rows is {limit}"


def calibration(record: Record) -> Iterator[str]:
    """One temperature makes validation rows no less likely; an interval holds its figure."""
    part = record.calibration
    if part is None:
        return
    before, after = part.validation_nll, part.scaled_validation_nll
    if before is not None and after is not None and after > before:
        yield f"calibration.scaled_validation_nll is {after:.4g}, above {before:.4g} without scaling"
    for kind, figures in (("unscaled", part.unscaled), ("scaled", part.scaled)):
        for name in ("ece", "adaptive_ece", "brier", "nll") if figures else ():
            one: Estimate = getattr(figures, name)
            if not one.low <= one.value <= one.high:
                yield f"calibration.{kind}.{name} is {one.value:.4g}, outside of its interval {one.low:.4g} to {one.high:.4g}"


def shifted_rows(record: Record) -> Iterator[str]:
    """No more rows are read otherwise than changed, changed than scored, and no more pairs both right than one of them."""
    part = record.shifted
    if part is None:
        return
    for name, shift in part.shifts.items():
        if not shift.read <= shift.changed <= part.rows:
            yield f"shifted.shifts.{name}: {shift.read} rows read otherwise, {shift.changed} changed, {part.rows} scored"
    for name, contrast in part.contrasts.items():
        if not contrast.both <= contrast.right <= contrast.pairs <= part.rows:
            counts = f"{contrast.both} both right, {contrast.right} right, {contrast.pairs} pairs, {part.rows} scored"
            yield f"shifted.contrasts.{name}: {counts}"


TRUTHS: tuple[Callable[[Record], Iterator[str]], ...] = (
    *(names, scores, findings, stock_path),
    *(outcome, beginning, course, share, rows, calibration, shifted_rows),
)
