"""Judges whether the arithmetic of training changed between two records of one cell and seed, and at which stage.

Two trainings on the same rows, in the same order and from the same seed have the same figures, but for rounding. The first
updates show a change before any score does, and need no statistics: later updates amplify rounding, the first ten hardly.
What comes later shows in the curve of losses, smoothed: it may lie as far apart as those of trainings whose starts differ in
their last digits.
`STAGES` go through a run in the order of its flow, and the first one that changed is named. The tolerances are measured
(`benchmarks/thresholds/numerics.toml`).
Where both records have figures of modules, the stages of the probe name the module that changed, too
(`tunegrid.results.modules`). These figures name, and never decide: they hold what the model computes of padding, which may
change without harm.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.record.checks import BERTSCORE
from tunegrid.record.record import FirstStep, TrainingRecord
from tunegrid.results import modules
from tunegrid.results.alike import unlike_libraries
from tunegrid.results.examples import read
from tunegrid.results.judgements import Verdict
from tunegrid.results.modules import Modules, Runs
from tunegrid.results.thresholds import LAB_CALIBRATE, numbers, tables

TOLERANCES = ROOT / "benchmarks" / "thresholds" / "numerics.toml"
# By arithmetic, and by "cell " and a cell's id where its first updates amplify more. Nats: loss of the `first` update and of
# `later` ones. Shares: `weights`, `probe_gradients`, `gradients`, `moved`, and `moved_alone` where first gradients are equal;
# `curve`, of the mean loss; `decoded`, of the largest logit; `module_outputs` and `module_gradients`, of a module's own.
Tolerances = Mapping[str, Mapping[str, float]]
FIGURES = (
    *("first", "later", "weights", "probe_gradients", "gradients", "moved", "moved_alone", "curve", "decoded"),
    *("module_outputs", "module_gradients"),
)
UPDATES = 10
MOVED = 3  # updates after which `moved` is taken
WINDOW = 5  # updates: the losses of so many make a point of the curve; rounding moves single ones by more
OF_PROBE = ("probe_gradients", "probe_reached")
BY_GROUP = ("weights", "probe_gradients", "gradients", "moved")
FINE = "fp32"  # the arithmetic in which a search for text does not depend on rounding
SMALL = 1e-3  # of the largest group: what is smaller has no digits to compare
ENCODED = 1e-5  # points by which a mean BERTScore may round; on another CPU 4e-7, and one text of 200 moves it by 5e-4
SCORED = 0.01  # points that scores of fixed answers may differ by: another BERTScore encoder's last digits


def load_tolerances(path: Path = TOLERANCES) -> Tolerances:
    """How far figures may lie apart and still be rounding, by arithmetic and by cell.

    Raises:
        InputError: where the file is not sound.
    """
    with tables(path, "tolerances", LAB_CALIBRATE) as content:
        return {name: numbers(table, _needed(name)) for name, table in content.items() if name != "evidence"}


def _needed(name: str) -> Collection[str]:
    """Which figures a table must tell; one of a cell tells those that are its own."""
    return () if name.startswith("cell ") else FIGURES


def tolerance_of(cell: str, kind: str, tolerances: Tolerances) -> Mapping[str, float]:
    """What is rounding in a cell of this arithmetic."""
    return {**tolerances[kind], **tolerances.get(f"cell {cell}", {})}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What a stage compares.

    Attributes:
        old, new: how both trained.
        tolerance: of their arithmetic.
        fine: whether it is exact enough for generated ids to be compared.
        modules: reads the figures of both's modules.
    """

    old: TrainingRecord
    new: TrainingRecord
    tolerance: Mapping[str, float]
    fine: bool
    modules: Callable[[], tuple[Modules, Modules] | None] = lambda: None

    @property
    def steps(self) -> tuple[FirstStep, FirstStep] | None:
        """The figures of both first steps, where both have them."""
        return (self.old.first_step, self.new.first_step) if self.old.first_step and self.new.first_step else None

    @property
    def probed_alike(self) -> tuple[FirstStep, FirstStep] | None:
        """The same where both probed the same rows: figures of the probe are compared only then."""
        return self.steps if self.steps and self.steps[0].probe == self.steps[1].probe else None

    def furthest(self, figure: str) -> tuple[float, str]:
        """How far the groups' figures lie apart at most, as a share, and which group by which factor.

        A group far smaller than the largest is held to the largest: what is zero but for rounding has no digits to compare.
        """
        steps = self.probed_alike if figure in OF_PROBE else self.steps
        if steps is None:
            return 0.0, ""
        before, after = (getattr(step, figure) for step in steps)
        known = [value for value in (*before.values(), *after.values()) if value is not None]
        least = SMALL * max(known, default=0.0)
        gaps = {group: _gap(before.get(group), after.get(group), least) for group in before | after}
        worst = max(gaps, key=lambda group: gaps[group], default="")
        return gaps.get(worst, 0.0), f"{worst} {_factor(before.get(worst), after.get(worst))}"

    def changed(self, figure: str, tolerance: str = "") -> str:
        """The group that lies furthest apart, and its factor; empty where all are within the figure's tolerance, or another."""
        gap, group = self.furthest(figure)
        return group if gap > self.tolerance[tolerance or figure] else ""

    def apart(self) -> dict[str, float]:
        """How far each figure with a tolerance lies apart: losses in nats, norms of groups as shares."""
        gaps, probes = loss_gaps(self), [step.probe_loss or 0.0 for step in self.probed_alike or ()]
        first = max([*gaps[:1], abs(probes[0] - probes[1]) if probes else 0.0])
        by_group = {name: self.furthest(name)[0] for name in BY_GROUP}
        decoded = {} if self.decoded is None else {"decoded": self.decoded}
        both = self.modules() if self.probed_alike else None
        return {
            **{"first": first, "later": max(gaps[1:], default=0.0), **by_group, "curve": self.curve, **decoded},
            **(modules.furthest(*both) if both else {}),
        }

    def with_module(self, words: str, phase: str, *, backward: bool = False) -> str:
        """What changed, behind the module that changed first in a phase of the probe, where one can be named."""
        try:
            both = self.modules() if words and self.probed_alike else None
        except InputError as error:  # modules only name: a damaged file costs no verdict
            return f"{words}; no module is named: {error}"
        if both is None:
            return words
        module = modules.first_forward(both, phase, self.tolerance["module_outputs"])
        if backward and not module:
            module = modules.first_backward(both, phase, self.tolerance["module_gradients"])
        return f"{module}; {words}" if module else words

    @property
    def decoded(self) -> float | None:
        """By how much more or less a search with a cache is off, as a share of the largest logit; None where none searched."""
        before, after = (step.decoded for step in self.probed_alike) if self.probed_alike else (None, None)
        return None if before is None or after is None else abs(before - after)

    @property
    def curve(self) -> float:
        """How far the smoothed curves of losses lie apart at most, as a share of the old mean loss."""
        before, after = (_smoothed(training.losses) for training in (self.old, self.new))
        if len(before) != len(after):
            return float("inf")
        gap = max((abs(a - b) for a, b in zip(before, after, strict=True)), default=0.0)
        level = fmean(loss or 0.0 for loss in self.old.losses or [0.0])
        return gap / level if level else (float("inf") if gap else 0.0)

    @property
    def curves_part(self) -> bool:
        """Whether the curves lie farther apart than rounding drives them."""
        return self.curve > self.tolerance["curve"]

    def recounted(self, figure: str) -> str:
        """The group of which another number of tensors has a gradient; empty where none has, or where nobody counted."""
        steps = self.probed_alike if figure in OF_PROBE else self.steps
        before, after = (getattr(step, figure) for step in steps) if steps else (None, None)
        if before is None or after is None:
            return ""
        other = [group for group in before | after if before.get(group) != after.get(group)]
        return f"{other[0]}: {after.get(other[0], 0)} tensors have one, {before.get(other[0], 0)} had" if other else ""

    @property
    def begins_alike(self) -> bool:
        """Whether nothing was rounded otherwise before the optimizer's first step: loss and gradients have the same digits."""
        gaps = [self.furthest(figure)[0] for figure in ("weights", "probe_gradients", "gradients")]
        return self.steps is not None and self.old.losses[:1] == self.new.losses[:1] and not any(gaps)


def _smoothed(losses: Sequence[float | None]) -> list[float]:
    """Means of `WINDOW` losses, one for every update at which so many have come in; of all losses where there are fewer."""
    known = [loss or 0.0 for loss in losses]
    window = min(WINDOW, len(known))
    return [fmean(known[end - window : end]) for end in range(window, len(known) + 1)] if known else []


def _gap(before: float | None, after: float | None, least: float) -> float:
    if before is None or after is None:
        return 0.0 if before == after else float("inf")
    scale = max(before, after, least)
    return abs(before - after) / scale if scale else 0.0


def _factor(before: float | None, after: float | None) -> str:
    return f"x {after / before:.4g}" if before and after is not None else f"{_shown(after)}, before {_shown(before)}"


# Stages, in the order of the flow. Each says what changed; nothing where nothing did.


def tokens(pair: Pair) -> str:
    """Token ids and targets of the training rows."""
    return "token ids or targets of the training rows are others" if _differ(pair, "tokens") else ""


def order(pair: Pair) -> str:
    """Which rows come in which update."""
    return "the same rows in another order, or in other batches" if pair.old.order != pair.new.order else ""


def types(pair: Pair) -> str:
    """How weights are stored, and in which type packed ones compute."""
    if pair.steps is None:
        return ""
    before, after = (step.types for step in pair.steps)
    if other := [group for group in before | after if before.get(group) != after.get(group)]:
        return f"weights of {other[0]} are {after.get(other[0])}, they were {before.get(other[0])}"
    old, new = (step.computed for step in pair.steps)
    if old is None or new is None:
        return ""
    other = [group for group in old | new if old.get(group) != new.get(group)]
    return f"{other[0]} computes in {new.get(other[0])}, it did in {old.get(other[0])}" if other else ""


def weights(pair: Pair) -> str:
    """The weights that training starts from."""
    changed = pair.changed("weights")
    return pair.with_module(f"weights before training, {changed}" if changed else "", "forward")


def forward(pair: Pair) -> str:
    """The loss of a few rows, without dropout."""
    if pair.probed_alike is None:
        return ""
    before, after = (step.probe_loss for step in pair.probed_alike)
    apart = before is None or after is None or abs(before - after) > pair.tolerance["first"]
    words = f"the loss before training is {_shown(after)}, it was {_shown(before)}" if apart and before != after else ""
    return pair.with_module(words, "forward")


def backward(pair: Pair) -> str:
    """The gradients of that loss."""
    if counted := pair.recounted("probe_reached"):
        return pair.with_module(f"gradients of {counted}, before training", "forward", backward=True)
    changed = pair.changed("probe_gradients")
    words = f"gradients of {changed} before training, forward equal" if changed else ""
    return pair.with_module(words, "forward", backward=True)


def random_numbers(pair: Pair) -> str:
    """What the generator gives, and how much of it the first update draws."""
    if _differ(pair, "stream"):
        return "the generator gives others from the same seed; arithmetic without dropout is equal"
    words = "the first update draws others; arithmetic without dropout is equal" if _differ(pair, "drawn") else ""
    return pair.with_module(words, "dropout")


def dropout(pair: Pair) -> str:
    """The loss of the first update, with dropout."""
    before, after = pair.old.losses[0], pair.new.losses[0]
    apart = before is None or after is None or abs(before - after) > pair.tolerance["first"]
    words = f"the loss of update 1 is {_shown(after)}, it was {_shown(before)}" if apart else ""
    return pair.with_module(words, "dropout")


def gradients(pair: Pair) -> str:
    """The gradients of the first update."""
    if counted := pair.recounted("reached"):
        return f"gradients of {counted}, at update 1"
    changed = pair.changed("gradients")
    return f"gradients of {changed} at update 1, forward equal" if changed else ""


def optimizer(pair: Pair) -> str:
    """How far the first three updates moved the weights; with equal gradients only the optimizer itself can round otherwise."""
    changed = pair.changed("moved", "moved_alone" if pair.begins_alike else "moved")
    return f"{changed} moved by update 3, first gradients equal" if changed else ""


def later_updates(pair: Pair) -> str:
    """The losses of the updates that follow."""
    gaps = loss_gaps(pair)
    late = next((i for i, gap in enumerate(gaps) if i and gap > pair.tolerance["later"]), None)
    return f"losses part by {gaps[late]:.1e} at update {late + 1}, not at update 1" if late is not None else ""


def generation(pair: Pair) -> str:
    """Texts by the untrained model, and how far a search with a cache is off."""
    if pair.probed_alike is None:
        return ""
    if pair.decoded is not None and pair.decoded > pair.tolerance["decoded"]:
        before, after = (step.decoded for step in pair.probed_alike)
        words = f"scores of a search with a cache are off by {after:.1e} of the largest logit, they were by {before:.1e}"
        return pair.with_module(words, "search")
    both = all(step.generated for step in pair.probed_alike)  # memory may not do for it
    words = "the untrained model generates another text" if pair.fine and both and _differ(pair, "generated") else ""
    return pair.with_module(words, "search")


def prediction(pair: Pair) -> str:
    """What the untrained model predicts for a few test rows; both may not have asked."""
    asked = pair.steps is not None and all(step.predicted for step in pair.steps)
    return "the untrained model predicts others for the same rows" if pair.fine and asked and _differ(pair, "predicted") else ""


def scoring(pair: Pair) -> str:
    """Scores of answers that no model gave."""
    if pair.steps is None:
        return ""
    before, after = (step.metrics for step in pair.steps)
    other = [name for name in before | after if _apart(before.get(name), after.get(name)) > SCORED]
    return (
        f"{other[0]} of fixed answers is {_shown(after.get(other[0]))}, it was {_shown(before.get(other[0]))}" if other else ""
    )


STAGES: Mapping[str, Callable[[Pair], str]] = {
    "text": tokens,
    "rows": order,
    "loading": types,
    "start": weights,
    "forward": forward,
    "backward without dropout": backward,
    "random numbers": random_numbers,
    "forward with dropout": dropout,
    "backward": gradients,
    "optimizer": optimizer,
    "backward or optimizer": later_updates,
    "generation": generation,
    "prediction": prediction,
    "scoring": scoring,
}


def changes(pair: Pair) -> Iterator[str]:
    """A sentence's part for every stage that changed, in the order of the flow."""
    yield from (f"{name}: {change}" for name, stage in STAGES.items() if (change := stage(pair)))


def compared(old: Record, new: Record, tolerances: Tolerances, runs: Runs | None = None) -> tuple[Verdict, str]:
    """The verdict on two records of a cell, and a sentence's part: the first stage that changed, and libraries that differ.

    Args:
        old: the baseline's record.
        new: the record to judge.
        tolerances: by arithmetic and by cell.
        runs: the files of both, beside which figures of modules may lie; None: no module is named.
    """
    old, new = alike_long(old, new)
    reason = not_comparable(old, new, tolerances)
    if reason or not old.training or not new.training:
        return Verdict.NOT_COMPARABLE, reason
    pair, libraries = pair_of(old, new, tolerances, runs), unlike_libraries(old, new)
    verdict, detail = _judged(pair, old, new, runs)
    return verdict, f"{detail}; with {libraries}" if libraries else detail


def updates_in_common(old: Record, new: Record) -> int | None:
    """How many updates both made, where one made its first alone; None where both were to train to their ends."""
    if old.first_updates is None and new.first_updates is None:
        return None
    return min(record.training.updates if record.training else 0 for record in (old, new)) or None


def alike_long(old: Record, new: Record) -> tuple[Record, Record]:
    """Both records as they were after the updates that they have in common, where one made its first alone."""
    updates = updates_in_common(old, new)
    return (_cut(old, updates), _cut(new, updates)) if updates else (old, new)


def _cut(record: Record, updates: int) -> Record:
    """The record as it was after so many updates: what comes later is left out."""
    training = record.training
    if training is None:
        return record
    step = training.first_step
    if step and updates < MOVED:
        step = replace(step, moved={})
    begun = replace(training, updates=updates, losses=training.losses[:updates], first_step=step)
    return replace(record, training=begun, scores={}, examples=None, first_updates=updates)


def _judged(pair: Pair, old: Record, new: Record, runs: Runs | None) -> tuple[Verdict, str]:
    if change := next(changes(pair), ""):
        return Verdict.CHANGED, change
    return (Verdict.ROUNDING, _rounding(pair)) if losses(old) != losses(new) else _by_predictions(old, new, runs)


def _rounding(pair: Pair) -> str:
    """How far the first losses lie apart, and whether the curves part later."""
    gaps = loss_gaps(pair)
    far = f"losses of the first {len(gaps)} updates differ by at most {max(gaps):.1e}"
    start = far if any(gaps) else f"losses are equal to update {len(gaps)}, then others"
    apart = f"curves part by {pair.curve:.2g} of the mean loss, where rounding is up to {pair.tolerance['curve']:.2g}"
    return f"{start}; {apart}" if pair.curves_part else start


def same_course(old: Record, new: Record, tolerances: Tolerances) -> bool:
    """Whether two records are of one training, but for rounding, from the first update to the last.

    They have one seed, recipe, order and data. All losses are equal, and so are the weights that they lead to; or no stage
    changed, and the curves of losses lie no farther apart than those of starts that differ in their last digits.
    """
    if old.seeds.seed is None or not old.data or not new.data or not_comparable(old, new, tolerances):
        return False
    pair = pair_of(old, new, tolerances)
    if not pair.old.order or pair.old.order != pair.new.order:
        return False
    return losses(old) == losses(new) or not (pair.curves_part or any(changes(pair)))


def pair_of(old: Record, new: Record, tolerances: Tolerances, runs: Runs | None = None) -> Pair:
    """Two records that can be compared, with the tolerances of their arithmetic and cell."""
    kind = arithmetic(old)
    assert old.training, "it has trained"
    assert new.training, "it has trained"
    pair = Pair(old=old.training, new=new.training, tolerance=tolerance_of(old.cell, kind, tolerances), fine=kind == FINE)
    return replace(pair, modules=partial(modules.read_both, old, new, runs)) if runs else pair


def furthest_apart(
    pairs: Iterable[tuple[Record, Record]], tolerances: Tolerances, runs: Runs | None = None
) -> dict[str, dict[str, float]]:
    """The most that each figure lies apart, by arithmetic; apart from it by cell, as "cell ...", where one has tolerances."""
    most: dict[str, dict[str, float]] = {}
    for old, new in (alike_long(*pair) for pair in pairs):
        kind = f"cell {old.cell}" if f"cell {old.cell}" in tolerances else arithmetic(old)
        known = most.setdefault(kind, {})
        known |= {name: max(apart, known.get(name, 0.0)) for name, apart in pair_of(old, new, tolerances, runs).apart().items()}
    return most


def _by_predictions(old: Record, new: Record, runs: Runs | None) -> tuple[Verdict, str]:
    """Equal losses mean equal weights: other predictions are then the evaluation's doing.

    BERTScore's points alone may round otherwise, because a model computes them; with other texts, other scores differ, too.
    """
    if new.first_updates:
        return Verdict.EQUAL, f"all losses of the first {new.first_updates} updates are equal"
    files = [record.examples.file if record.examples else None for record in (old, new)]
    if not all(files) or files[0] == files[1]:
        return Verdict.EQUAL, "all losses are equal"
    before, after = (read(record, run) for record, run in zip((old, new), runs or (None, None), strict=True))
    if before and after and before == after:  # an older file is another one for its confidences
        return Verdict.EQUAL, "all losses, predictions and points are equal"
    apart = {name: _apart(old.scores[name], new.scores.get(name)) for name in old.scores}
    rounded = {name for name, points in apart.items() if 0 < points <= ENCODED}
    if rounded and rounded == {name for name, points in apart.items() if points} and rounded <= set(BERTSCORE):
        return Verdict.ROUNDING, f"all losses are equal, BERTScore differs by at most {max(apart.values()):.1e} points"
    return Verdict.CHANGED, "evaluation: all losses are equal, predictions or their points are not"


def _apart(before: float | None, after: float | None) -> float:
    if before is None or after is None:
        return 0.0 if before is after else math.inf
    return abs(before - after)


def _differ(pair: Pair, figure: str) -> bool:
    return pair.steps is not None and getattr(pair.steps[0], figure) != getattr(pair.steps[1], figure)


def loss_gaps(pair: Pair) -> Sequence[float]:
    """How far the losses of the first updates lie apart, in nats."""
    both = zip(pair.old.losses[:UPDATES], pair.new.losses[:UPDATES], strict=False)
    return [abs((before or 0.0) - (after or 0.0)) for before, after in both]


def _shown(value: float | None) -> str:
    return "no number" if value is None else f"{value:.6g}"


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
    """Why the figures of two records cannot be held to each other; empty where they can."""
    if (old.seeds.seed, old.seeds.split_seed) != (new.seeds.seed, new.seeds.split_seed):
        return "no run of the same seed"
    if old.recipe != new.recipe or old.limits != new.limits:
        return "other recipes or limits"
    if old.processes != new.processes:  # dropout draws others on every rank
        return "other ranks"
    if old.data and new.data and old.data.fingerprint != new.data.fingerprint:
        return "other rows"
    if not losses(old) or not losses(new):
        return "a run without losses"
    if arithmetic(old) != arithmetic(new) or arithmetic(old) not in tolerances:
        return f"no tolerance was measured for {arithmetic(new)} after {arithmetic(old)}"
    return ""
