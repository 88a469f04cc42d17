"""Judges whether the arithmetic of training changed between two records of one cell and seed, and at which stage.

Two trainings on the same rows, in the same order and from the same seed have the same figures, but for rounding. The first
updates show a change before any score does, and need no statistics: later updates amplify rounding, the first ten hardly.
What comes later shows in the curve of losses, smoothed: it may lie as far apart as those of trainings whose starts differ in
their last digits.
`changes` goes through a run in the order of its flow, and the first stage that changed is named. The tolerances are measured
(`benchmarks/thresholds/numerics.toml`).
If both records have figures of modules, the stages of the probe name the module that changed, too
(`tunegrid.results.modules`). These figures name, and never decide: they hold what the model computes of padding, which may
change without harm.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.record.checks import BERTSCORE
from tunegrid.record.parts import TrainingRecord
from tunegrid.results import modules
from tunegrid.results.alike import unlike_libraries
from tunegrid.results.examples import read
from tunegrid.results.judgements import GRAVEST_FIRST, Judgement, Verdict, judgement_of
from tunegrid.results.modules import FirstModules, Modules, Runs
from tunegrid.results.report import count
from tunegrid.results.thresholds import BERTSCORE_ROUNDING, FIXED_ANSWERS, SMALL_NORM, Tolerances, tolerance_of

STAGES = (  # in the order of the flow
    *("text", "rows", "loading", "start", "forward", "backward without dropout", "random numbers", "forward with dropout"),
    *("backward", "optimizer", "backward or optimizer", "generation", "prediction", "scoring", "evaluation"),
)
UPDATES = 10
MOVED = 3  # updates after which `moved` is taken
WINDOW = 5  # updates: the losses of so many make a point of the curve; rounding moves single ones by more
OF_PROBE = ("probe_loss", "probe_gradients", "probe_reached", "decoded", "generated")
BY_GROUP = ("weights", "probe_gradients", "gradients", "moved")
FINE = "fp32"  # the arithmetic in which a search for text does not depend on rounding


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two trainings that can be compared.

    Attributes:
        tolerance: of their arithmetic and cell.
        fine: whether the arithmetic is exact enough for generated ids to be compared.
        modules: reads the figures of modules of both.
    """

    old: TrainingRecord
    new: TrainingRecord
    tolerance: Mapping[str, float]
    fine: bool
    modules: Callable[[], tuple[Modules, Modules] | None] = lambda: None

    def figures(self, name: str) -> tuple[Any, Any]:
        """A figure of both first steps; twice None unless both have it, and of the same probe if it is the probe's."""
        old, new = self.old.first_step, self.new.first_step
        if not old or not new or (name in OF_PROBE and old.probe != new.probe):
            return None, None
        return getattr(old, name), getattr(new, name)

    def differs(self, name: str) -> bool:
        """Whether a figure that both have is another."""
        before, after = self.figures(name)
        return None not in (before, after) and before != after

    def other_groups(self, name: str) -> list[tuple[str, Any, Any]]:
        """The groups of which a figure that both have is another: each with what it was, and is."""
        before, after = self.figures(name)
        if before is None or after is None:
            return []
        return [
            (group, before.get(group), after.get(group)) for group in before | after if before.get(group) != after.get(group)
        ]

    def furthest(self, name: str) -> tuple[float, str]:
        """How far the norms of groups lie apart at most, as a share, and which group by which factor.

        A group far smaller than the largest is held to the largest: what is zero but for rounding has no digits to compare.
        """
        norms = [norm for one in self.figures(name) for norm in (one or {}).values() if norm is not None]
        least = SMALL_NORM * max(norms, default=0.0)
        gaps = [(_gap(before, after, least), group, before, after) for group, before, after in self.other_groups(name)]
        gap, group, before, after = max(gaps, key=lambda one: one[0], default=(0.0, "", None, None))
        factor = f"x {after / before:.4g}" if before and after is not None else f"{_shown(after)}, before {_shown(before)}"
        return gap, f"{group} {factor}"

    def apart(self) -> dict[str, float]:
        """How far each figure with a tolerance lies apart: losses in nats, norms of groups as shares."""
        gaps, (before, after) = self.loss_gaps, self.figures("probe_loss")
        apart = {"first": max([*gaps[:1], abs((before or 0.0) - (after or 0.0))]), "later": max(gaps[1:], default=0.0)}
        apart |= {name: self.furthest(name)[0] for name in BY_GROUP} | {"curve": self.curve}
        before, after = self.figures("decoded")
        apart |= {} if before is None or after is None else {"decoded": abs(before - after)}
        both = self.modules() if self.same_probe else None
        return apart | (modules.furthest(*both) if both else {})

    @property
    def same_probe(self) -> bool:
        """Whether both probed the same rows before training: figures of the probe are compared only then."""
        return self.figures("probe_gradients") != (None, None)

    @property
    def loss_gaps(self) -> list[float]:
        """How far the losses of the first updates lie apart, in nats."""
        losses = zip(self.old.losses[:UPDATES], self.new.losses[:UPDATES], strict=False)
        return [abs((before or 0.0) - (after or 0.0)) for before, after in losses]

    @property
    def curve(self) -> float:
        """How far the smoothed curves of losses lie apart at most, as a share of the old mean loss."""
        before, after = (_smoothed(training.losses) for training in (self.old, self.new))
        if len(before) != len(after):
            return math.inf
        gap = max((abs(a - b) for a, b in zip(before, after, strict=True)), default=0.0)
        level = fmean(loss or 0.0 for loss in self.old.losses or [0.0])
        return gap / level if level else (math.inf if gap else 0.0)

    @property
    def curves_part(self) -> bool:
        """Whether the curves lie farther apart than rounding drives them."""
        return self.curve > self.tolerance["curve"]

    @property
    def begins_alike(self) -> bool:
        """Whether nothing was rounded otherwise before the optimizer's first step: loss and gradients have the same digits."""
        gaps = [self.furthest(name)[0] for name in ("weights", "probe_gradients", "gradients")]
        return self.figures("weights") != (None, None) and self.old.losses[:1] == self.new.losses[:1] and not any(gaps)

    def change(self, stage: str, words: str, phase: str = "", *, backward: bool = False) -> "Change":
        """What changed at a stage, with the modules that changed first in a phase of the probe, if they can be named."""
        try:
            both = self.modules() if phase and self.same_probe else None
        except InputError as error:  # modules only name: a damaged file costs no verdict
            return Change(stage=stage, words=f"{words}; no module is named: {error}")
        first = modules.first_modules(*both, phase, self.tolerance, backward=backward) if both else None
        return Change(stage=stage, words=words, first=first)


@dataclass(frozen=True, kw_only=True)
class Change:
    """A stage that changed, in words, and the modules that changed first there."""

    stage: str
    words: str
    first: FirstModules | None = None

    def __str__(self) -> str:
        """As "stage: modules; words"."""
        return f"{self.stage}: {f'{self.first.words}; ' if self.first else ''}{self.words}"


def _smoothed(losses: Sequence[float | None]) -> list[float]:
    """Means of `WINDOW` losses, one for every update at which so many have come in; of all losses if there are fewer."""
    known = [loss or 0.0 for loss in losses]
    window = min(WINDOW, len(known))
    return [fmean(known[end - window : end]) for end in range(window, len(known) + 1)] if known else []


def _gap(before: float | None, after: float | None, least: float) -> float:
    if before is None or after is None:
        return math.inf
    scale = max(before, after, least)
    return abs(before - after) / scale if scale else 0.0


def _apart(before: float | None, after: float | None) -> float:
    if before is None or after is None:
        return 0.0 if before is after else math.inf
    return abs(before - after)


def _shown(value: float | None) -> str:
    return "no number" if value is None else f"{value:.6g}"


# Stages, in the order of the flow


def changes(pair: Pair) -> Iterator[Change]:
    """Every stage that changed, in the order of the flow."""
    yield from _before_training(pair)
    yield from _in_training(pair)
    yield from _in_evaluation(pair)


def _before_training(pair: Pair) -> Iterator[Change]:
    if pair.differs("tokens"):
        yield pair.change("text", "token ids or targets of the training rows are others")
    if pair.old.order != pair.new.order:
        yield pair.change("rows", "the same rows in another order, or in other batches")
    for group, before, after in pair.other_groups("types")[:1]:
        yield pair.change("loading", f"weights of {group} are {after}, they were {before}")
    for group, before, after in pair.other_groups("computed")[:1]:  # the type in which packed weights compute
        yield pair.change("loading", f"{group} computes in {after}, it did in {before}")
    if changed := _changed(pair, "weights"):
        yield pair.change("start", f"weights before training, {changed}", "forward")
    before, after = pair.figures("probe_loss")  # of a few rows, without dropout
    if _apart(before, after) > pair.tolerance["first"]:
        words = f"the loss before training is {_shown(after)}, it was {_shown(before)}"
        yield pair.change("forward", words, "forward")
    if reached := _reached(pair, "probe_reached", "before training"):
        yield pair.change("backward without dropout", reached, "forward", backward=True)
    elif changed := _changed(pair, "probe_gradients"):
        words = f"gradients of {changed} before training, forward equal"
        yield pair.change("backward without dropout", words, "forward", backward=True)


def _in_training(pair: Pair) -> Iterator[Change]:
    equal = "arithmetic without dropout is equal"
    if pair.differs("stream"):
        yield pair.change("random numbers", f"the generator gives others from the same seed; {equal}")
    elif pair.differs("drawn"):
        yield pair.change("random numbers", f"the first update draws others; {equal}", "dropout")
    before, after = pair.old.losses[0], pair.new.losses[0]
    if _apart(before, after) > pair.tolerance["first"]:
        words = f"the loss of update 1 is {_shown(after)}, it was {_shown(before)}"
        yield pair.change("forward with dropout", words, "dropout")
    if reached := _reached(pair, "reached", "at update 1"):
        yield pair.change("backward", reached)
    elif changed := _changed(pair, "gradients"):
        yield pair.change("backward", f"gradients of {changed} at update 1, forward equal")
    # With equal gradients, only the optimizer itself can round otherwise.
    if changed := _changed(pair, "moved", "moved_alone" if pair.begins_alike else "moved"):
        yield pair.change("optimizer", f"{changed} moved by update {MOVED}, first gradients equal")
    late = [(gap, update) for update, gap in enumerate(pair.loss_gaps, 1) if update > 1 and gap > pair.tolerance["later"]]
    for gap, update in late[:1]:
        yield pair.change("backward or optimizer", f"losses part by {gap:.1e} at update {update}, not at update 1")


def _in_evaluation(pair: Pair) -> Iterator[Change]:
    before, after = pair.figures("decoded")
    if None not in (before, after) and abs(before - after) > pair.tolerance["decoded"]:
        words = f"scores of a search with a cache are off by {after:.1e} of the largest logit, they were by {before:.1e}"
        yield pair.change("generation", words, "search")
    elif pair.fine and pair.differs("generated"):
        yield pair.change("generation", "the untrained model generates another text", "search")
    if pair.fine and pair.differs("predicted"):
        yield pair.change("prediction", "the untrained model predicts others for the same rows")
    scores = [one for one in pair.other_groups("metrics") if _apart(*one[1:]) > FIXED_ANSWERS]
    for name, before, after in scores[:1]:
        yield pair.change("scoring", f"{name} of fixed answers is {_shown(after)}, it was {_shown(before)}")


def _changed(pair: Pair, name: str, tolerance: str = "") -> str:
    """The group that lies furthest apart, and its factor; empty if all are within the figure's tolerance, or another."""
    gap, group = pair.furthest(name)
    return group if gap > pair.tolerance[tolerance or name] else ""


def _reached(pair: Pair, name: str, when: str) -> str:
    """The first group of which another number of tensors has a gradient; empty if none has."""
    for group, before, after in pair.other_groups(name)[:1]:
        return f"gradients reach {count(after or 0, 'tensor')} of {group} {when}, they reached {before or 0}"
    return ""


# Verdicts


def judged(pairs: Sequence[tuple[Record, Record]], tolerances: Tolerances, runs: Runs | None = None) -> tuple[Judgement, bool]:
    """The gravest verdict on the arithmetic of a cell's runs, whose files these are; and whether they are of one training.

    They are if each finished run differs by rounding alone from one of its seed, from the first update to the last.
    """
    answers = [compared(before, after, tolerances, runs) for before, after in pairs]
    gravest = min((judgement for judgement, _ in answers), key=lambda one: GRAVEST_FIRST.index(one.verdict))
    finished = [(before, one) for (before, after), (_, one) in zip(pairs, answers, strict=True) if after.finished]
    return gravest, all(before.finished and one for before, one in finished)


def compared(old: Record, new: Record, tolerances: Tolerances, runs: Runs | None = None) -> tuple[Judgement, bool]:
    """The judgement on two records of a cell, and whether they are of one training but for rounding.

    Of one training are records of one seed, recipe, order and data: all losses are equal, and so are the weights that they lead
    to; or no stage changed, and the curves of losses lie no farther apart than those of starts that differ in their last digits.

    Args:
        old: the baseline's record.
        new: the record to judge.
        tolerances: by arithmetic and by cell.
        runs: the files of both, beside which figures of modules may lie; None: no module is named.
    """
    old, new, updates = alike_long(old, new)
    reason = not_comparable(old, new, tolerances)
    if reason or not old.training or not new.training:
        return judgement_of(old, "numerics", Verdict.NOT_COMPARABLE, detail=reason, first_updates=updates), False
    pair, equal = pair_of(old, new, tolerances, runs), losses(old) == losses(new)
    change, evidence = next(changes(pair), None), {}
    if change:
        verdict, detail, names = Verdict.CHANGED, str(change), change.first.names if change.first else ()
        evidence = {"stage": change.stage, "modules": names}
    elif not equal:
        verdict, detail = Verdict.ROUNDING, _rounding(pair)
    else:
        verdict, detail = _by_predictions(old, new, runs)
        evidence = {"stage": "evaluation"} if verdict is Verdict.CHANGED else {}
    libraries = unlike_libraries(old, new)
    detail = f"{detail}; with {libraries}" if libraries else detail
    known = old.seeds.seed is not None and old.data and new.data and old.training.order
    one_training = bool(known) and pair.old.order == pair.new.order and (equal or not (change or pair.curves_part))
    return judgement_of(old, "numerics", verdict, detail=detail, first_updates=updates, **evidence), one_training


def alike_long(old: Record, new: Record) -> tuple[Record, Record, int | None]:
    """Both records as they were after the updates in common, and how many these are, if one made its first updates alone."""
    if old.first_updates is None and new.first_updates is None:
        return old, new, None
    updates = min(record.training.updates if record.training else 0 for record in (old, new)) or None
    return (_cut(old, updates), _cut(new, updates), updates) if updates else (old, new, None)


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


def _rounding(pair: Pair) -> str:
    """How far the first losses lie apart, and whether the curves part later."""
    gaps = pair.loss_gaps
    far = f"losses differ by at most {max(gaps):.1e} up to update {len(gaps)}"
    start = far if any(gaps) else f"losses are equal to update {len(gaps)}, then others"
    apart = f"curves part by {pair.curve:.2g} of the mean loss, where rounding is up to {pair.tolerance['curve']:.2g}"
    return f"{start}; {apart}" if pair.curves_part else start


def _by_predictions(old: Record, new: Record, runs: Runs | None) -> tuple[Verdict, str]:
    """Equal losses mean equal weights: other predictions are then the evaluation's doing.

    BERTScore's points alone may round otherwise, because a model computes them; with other texts, other scores differ, too.
    """
    if new.first_updates:
        return Verdict.EQUAL, f"all losses are equal up to update {new.first_updates}"
    files = [record.examples.file if record.examples else None for record in (old, new)]
    if not all(files) or files[0] == files[1]:
        return Verdict.EQUAL, "all losses are equal"
    before, after = (read(record, run) for record, run in zip((old, new), runs or (None, None), strict=True))
    if before and after and before == after:  # an older file is another one for its confidences
        return Verdict.EQUAL, "all losses, predictions and points are equal"
    apart = {name: points for name in old.scores if (points := _apart(old.scores[name], new.scores.get(name)))}
    if apart and apart.keys() <= set(BERTSCORE) and max(apart.values()) <= BERTSCORE_ROUNDING:
        return Verdict.ROUNDING, f"all losses are equal, BERTScore differs by at most {max(apart.values()):.1e} points"
    return Verdict.CHANGED, "evaluation: all losses are equal, predictions or their points are not"


def pair_of(old: Record, new: Record, tolerances: Tolerances, runs: Runs | None = None) -> Pair:
    """Two records that can be compared, with the tolerances of their arithmetic and cell."""
    kind = arithmetic(old)
    assert old.training, "it has trained"
    assert new.training, "it has trained"
    pair = Pair(old=old.training, new=new.training, tolerance=tolerance_of(old.cell, kind, tolerances), fine=kind == FINE)
    return replace(pair, modules=partial(modules.read_both, old, new, runs)) if runs else pair


def furthest_apart(pairs: Iterable[tuple[Record, Record]], tolerances: Tolerances, runs: Runs) -> dict[str, dict[str, float]]:
    """The most that each figure lies apart in pairs that are not equal, by arithmetic, or by "cell ..." with own tolerances."""
    most: dict[str, dict[str, float]] = {}
    for old, new in pairs:
        judgement, _ = compared(old, new, tolerances)
        if judgement.verdict in (Verdict.ROUNDING, Verdict.CHANGED):
            kind = f"cell {old.cell}" if f"cell {old.cell}" in tolerances else arithmetic(old)
            known = most.setdefault(kind, {})
            before, after, _ = alike_long(old, new)
            for name, apart in pair_of(before, after, tolerances, runs).apart().items():
                known[name] = max(apart, known.get(name, 0.0))
    return most


def losses(record: Record) -> list[float]:
    """The losses of all updates; empty if one is not a number."""
    values = record.training.losses if record.training else []
    numbers = [value for value in values if value is not None]
    return numbers if len(numbers) == len(values) else []


def arithmetic(record: Record) -> str:
    """What rounding depends on: "nf4" over a quantized base, else the precision of training."""
    quantization = record.recipe.quantization
    precision = record.training.precision if record.training else "none"
    return f"nf4 {precision}" if quantization else precision


def not_comparable(old: Record, new: Record, tolerances: Tolerances) -> str:
    """Why the figures of two records cannot be held to each other; empty if they can."""
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
