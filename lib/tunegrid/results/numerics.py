"""Judges whether the arithmetic of training changed between two records of one cell and seed, and at which stage.

Two trainings on the same rows, in the same order and from the same seed have the same figures, but for rounding. The first
updates show a change before any score does, and need no statistics: later updates amplify rounding, the first ten hardly.
What comes later shows in the curve of losses, smoothed: it may lie as far apart as those of trainings whose starts differ in
their last digits. The tolerances are measured (`benchmarks/thresholds/numerics.toml`).
Figures of modules (`tunegrid.results.modules`) name the module that changed, and never decide: they hold what the model
computes of padding, which may change without harm.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tunegrid.errors import InputError
from tunegrid.record import Record
from tunegrid.record.checks import BERTSCORE
from tunegrid.record.record import TrainingRecord
from tunegrid.results.alike import unlike_libraries
from tunegrid.results.examples import Runs, read
from tunegrid.results.judgements import GRAVEST_FIRST, Judgement, Verdict, judgement_of
from tunegrid.results.thresholds import BERTSCORE_ROUNDING, FIXED_ANSWERS, SMALL_NORM, Tolerances, tolerance_of

if TYPE_CHECKING:
    from tunegrid.results.modules import Modules, Names

UPDATES = 10
MOVED = 3  # updates after which `moved` is taken
WINDOW = 5  # updates: the losses of so many make a point of the curve; rounding moves single ones by more
OF_PROBE = ("probe_loss", "probe_gradients", "probe_reached", "decoded", "generated")
OPTIONAL = ("computed", "probe_reached", "reached", "decoded", "generated", "predicted")  # None: not looked at
BY_GROUP = ("weights", "probe_gradients", "gradients", "moved")
FINE, EXACT = "fp32", ("generated", "predicted")  # the arithmetic in which these do not depend on rounding
BACKWARD = "backward without dropout"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two trainings that can be compared."""

    old: TrainingRecord
    new: TrainingRecord
    tolerance: Mapping[str, float]  # of their arithmetic and cell
    fine: bool  # whether the arithmetic is exact enough for generated ids to be compared
    modules: "Callable[[], tuple[Modules, Modules] | None]" = lambda: None  # reads the figures of modules of both

    def figures(self, name: str) -> tuple[Any, Any]:
        """A figure of both; twice None unless both have it, of the same probe if it is one's."""
        if name == "order":
            return self.old.order, self.new.order
        if name == "first loss":
            return self.old.losses[0], self.new.losses[0]
        if name == "later":  # by update, of those that both made
            updates = min(UPDATES, len(self.old.losses), len(self.new.losses))
            before, after = (dict(enumerate(one.losses[1:updates], 2)) for one in (self.old, self.new))
            return before, after
        old, new = self.old.first_step, self.new.first_step
        if not old or not new or (name in OF_PROBE and old.probe != new.probe):
            return None, None
        before, after = getattr(old, name), getattr(new, name)
        return (None, None) if name in OPTIONAL and None in (before, after) else (before, after)

    @property
    def curve(self) -> float:
        """How far the smoothed curves of losses lie apart at most, as a share of the old mean loss."""
        before, after = (np.array(one.losses, float) for one in (self.old, self.new))
        if len(before) != len(after):
            return math.inf
        window, level = min(WINDOW, len(before)), before.mean() if len(before) else 0.0
        gap = np.abs(np.convolve(before - after, np.full(window, 1 / window), "valid")).max() if window else 0.0
        return float(gap / level) if level else (math.inf if gap else 0.0)


def furthest(before: Any, after: Any) -> tuple[float, str]:
    """How far the norms of groups lie apart at most, as a share, and of which group.

    A group far smaller than the largest is held to the largest: what is zero but for rounding has no digits to compare.
    """
    before, after = before or {}, after or {}
    least = SMALL_NORM * max((norm for norm in (*before.values(), *after.values()) if norm is not None), default=0.0)
    gaps = []
    for group in before | after:
        gap, scale = _apart(before.get(group), after.get(group)), max(before.get(group) or 0.0, after.get(group) or 0.0, least)
        gaps.append((gap / scale if scale else gap, group))
    return max(gaps, key=lambda gap: gap[0], default=(0.0, ""))


def _apart(before: Any, after: Any) -> float:
    """How far two figures lie apart; infinitely far if one of two others is no number."""
    if before is None or after is None or isinstance(before, str):
        return 0.0 if before == after else math.inf
    return float(abs(before - after))


def _shown(value: Any) -> str:
    return "no number" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _difference(name: str, before: Any, after: Any, limit: float) -> dict[str, Any] | None:
    """What a stage's words are made of if its figure is another; of groups, the first, and of norms the one farthest apart."""
    if not isinstance(before, dict):
        before, after = {"": before}, {"": after}
    gap, group = furthest(before, after) if name in BY_GROUP else (0.0, "")
    if name not in BY_GROUP:
        gaps = ((_apart(before.get(one), after.get(one)), one) for one in before | after)
        gap, group = next((one for one in gaps if one[0] > limit), (0.0, ""))
    if gap <= limit:
        return None
    uncounted = 0 if name in ("probe_reached", "reached") else None  # a group of which no tensor gets a gradient
    old, new = before.get(group, uncounted), after.get(group, uncounted)
    factor = f"x {new / old:.4g}" if name in BY_GROUP and old and new is not None else f"{_shown(new)}, before {_shown(old)}"
    return {"group": group, "gap": gap, "before": _shown(old), "after": _shown(new), "factor": factor}


class Stage(NamedTuple):
    """A stage of a run, a figure that changes there first, and in which phase of the probe modules tell where, if in any."""

    name: str
    figure: str
    words: str
    phase: str = ""


ALIKE = "arithmetic without dropout is equal"
CACHE = "scores of a search with a cache are off by {after} of the largest logit, they were by {before}"
FLOW = (  # in the order of a run: the first row that finds something is named
    Stage("text", "tokens", "token ids or targets of the training rows are others"),
    Stage("rows", "order", "the same rows in another order, or in other batches"),
    Stage("loading", "types", "weights of {group} are {after}, they were {before}"),
    Stage("loading", "computed", "{group} computes in {after}, it did in {before}"),
    Stage("start", "weights", "weights before training, {group} {factor}", "forward"),
    Stage("forward", "probe_loss", "the loss before training is {after}, it was {before}", "forward"),
    Stage(BACKWARD, "probe_reached", "tensors of {group} that get a gradient: {after}, before {before}", "forward"),
    Stage(BACKWARD, "probe_gradients", "gradients of {group} {factor} before training, forward equal", "forward"),
    Stage("random numbers", "stream", f"the generator gives others from the same seed; {ALIKE}"),
    Stage("random numbers", "drawn", f"the first update draws others; {ALIKE}", "dropout"),
    Stage("forward with dropout", "first loss", "the loss of update 1 is {after}, it was {before}", "dropout"),
    Stage("backward", "reached", "tensors of {group} that get a gradient at update 1: {after}, before {before}"),
    Stage("backward", "gradients", "gradients of {group} {factor} at update 1, forward equal"),
    Stage("optimizer", "moved", "{group} {factor} moved by update 3, first gradients equal"),
    Stage("backward or optimizer", "later", "losses part by {gap:.1e} at update {group}, not at update 1"),
    Stage("generation", "decoded", CACHE, "search"),
    Stage("generation", "generated", "the untrained model generates another text", "search"),
    Stage("prediction", "predicted", "the untrained model predicts others for the same rows"),
    Stage("scoring", "metrics", "{group} of fixed answers is {after}, it was {before}"),
)
STAGES = tuple(dict.fromkeys([*(stage.name for stage in FLOW), "evaluation"]))


class Change(NamedTuple):
    """The first stage that changed, what changed there, and the modules that changed first, each with class and library."""

    stage: str
    words: str
    modules: "Names" = ()


def first_change(pair: Pair) -> Change | None:
    """The first stage that changed; None if all that differs is rounding."""
    # If nothing was rounded otherwise before the optimizer's first step, only the optimizer itself can round.
    norms = [furthest(*pair.figures(name))[0] for name in ("weights", "probe_gradients", "gradients")]
    alone = pair.old.losses[:1] == pair.new.losses[:1] and not any(norms)
    limits = {**pair.tolerance, "probe_loss": pair.tolerance["first"], "first loss": pair.tolerance["first"]}
    limits |= {"metrics": FIXED_ANSWERS} | ({"moved": pair.tolerance["moved_alone"]} if alone else {})
    for stage in FLOW:
        if pair.fine or stage.figure not in EXACT:
            difference = _difference(stage.figure, *pair.figures(stage.figure), limits.get(stage.figure, 0.0))
            if difference is not None:
                return _with_modules(pair, stage, stage.words.format(**difference))
    return None


def _with_modules(pair: Pair, stage: Stage, words: str) -> Change:
    from tunegrid.results.modules import first_modules

    same_probe = pair.figures("probe_gradients") != (None, None)
    try:
        figures = pair.modules() if stage.phase and same_probe else None
    except InputError as error:  # modules only name: a damaged file costs no verdict
        return Change(stage.name, f"{words}; no module is named: {error}")
    backward = stage.name == BACKWARD
    where, names = first_modules(*figures, stage.phase, pair.tolerance, backward=backward) if figures else ("", ())
    return Change(stage.name, f"{where}; {words}" if where else words, names)


# Verdicts


def judged(pairs: Sequence[tuple[Record, Record]], tolerances: Tolerances, runs: Runs | None = None) -> tuple[Judgement, bool]:
    """The gravest verdict on a cell's runs, whose files these are; and whether all that finished are of one training."""
    answers = [compared(before, after, tolerances, runs) for before, after in pairs]
    gravest = min((judgement for judgement, _ in answers), key=lambda one: GRAVEST_FIRST.index(one.verdict))
    finished = [(before, one) for (before, after), (_, one) in zip(pairs, answers, strict=True) if after.finished]
    return gravest, all(before.finished and one for before, one in finished)


def compared(old: Record, new: Record, tolerances: Tolerances, runs: Runs | None = None) -> tuple[Judgement, bool]:
    """The judgement on two records of a cell, and whether they are of one training but for rounding.

    Of one training are records of one seed, recipe, order and data: all losses are equal, and so are the weights that they
    lead to; or no stage changed, and the curves of losses lie no farther apart than those of starts that differ in last digits.
    `runs` are the files of both, beside which figures of modules may lie; without them, no module is named.
    """
    old, new, updates = alike_long(old, new)
    reason = not_comparable(old, new, tolerances)
    if reason or not old.training or not new.training:
        return judgement_of(old, "numerics", Verdict.NOT_COMPARABLE, detail=reason, first_updates=updates), False
    pair, equal = pair_of(old, new, tolerances, runs), losses(old) == losses(new)
    change, parts = first_change(pair), pair.curve > pair.tolerance["curve"]
    if change or equal:
        verdict, words = (Verdict.CHANGED, "") if change else _by_predictions(old, new, runs)
    else:
        verdict, words = Verdict.ROUNDING, _rounding(pair, parts)
    if verdict is Verdict.CHANGED:
        change = change or Change("evaluation", words)
        words = f"{change.stage}: {change.words}"
    libraries = unlike_libraries(old, new)
    judgement = judgement_of(
        old,
        "numerics",
        verdict,
        detail=f"{words}; with {libraries}" if libraries else words,
        first_updates=updates,
        stage=change.stage if change else "",
        modules=change.modules if change else (),
    )
    known = old.seeds.seed is not None and old.data and new.data and pair.old.order and pair.old.order == pair.new.order
    return judgement, bool(known and (equal or not (change or parts)))


def alike_long(old: Record, new: Record) -> tuple[Record, Record, int | None]:
    """Both records as they were after the updates in common, and how many these are, if one made its first updates alone."""
    updates = min(record.training.updates if record.training else 0 for record in (old, new))
    if not updates or (old.first_updates is None and new.first_updates is None):
        return old, new, None
    return _cut(old, updates), _cut(new, updates), updates


def _cut(record: Record, updates: int) -> Record:
    training = record.training
    if training is None:
        return record
    step = replace(training.first_step, moved={}) if training.first_step and updates < MOVED else training.first_step
    begun = replace(training, updates=updates, losses=training.losses[:updates], first_step=step)
    return replace(record, training=begun, scores={}, examples=None, first_updates=updates)


def _rounding(pair: Pair, parts: bool) -> str:
    """How far the first losses lie apart, and whether the curves part later."""
    gaps = [_apart(*losses) for losses in zip(pair.old.losses[:UPDATES], pair.new.losses[:UPDATES], strict=False)]
    limit = pair.tolerance["curve"]
    far = f"losses of the {_first(len(gaps))} differ by at most {max(gaps):.1e}"
    words = far if any(gaps) else f"losses are equal to update {len(gaps)}, then others"
    return f"{words}; curves part by {pair.curve:.2g} of the mean loss, where rounding is up to {limit:.2g}" if parts else words


def _first(updates: int) -> str:
    return "first update" if updates == 1 else f"first {updates} updates"


def _by_predictions(old: Record, new: Record, runs: Runs | None) -> tuple[Verdict, str]:
    """Equal losses mean equal weights: other predictions are then the evaluation's doing.

    BERTScore's points alone may round otherwise, because a model computes them; with other texts, other scores differ, too.
    """
    if new.first_updates:
        return Verdict.EQUAL, f"all losses of the {_first(new.first_updates)} are equal"
    files = [record.examples.file if record.examples else None for record in (old, new)]
    if not all(files) or files[0] == files[1]:
        return Verdict.EQUAL, "all losses are equal"
    before, after = (read(record, run) for record, run in zip((old, new), runs or (None, None), strict=True))
    if before is not None and after is not None and before.equals(after):  # files of other versions have other names
        return Verdict.EQUAL, "all losses, predictions and points are equal"
    apart = {name: points for name in old.scores if (points := _apart(old.scores[name], new.scores.get(name)))}
    if apart and apart.keys() <= set(BERTSCORE) and max(apart.values()) <= BERTSCORE_ROUNDING:
        return Verdict.ROUNDING, f"all losses are equal, BERTScore differs by at most {max(apart.values()):.1e} points"
    return Verdict.CHANGED, "all losses are equal, predictions or their points are not"


def pair_of(old: Record, new: Record, tolerances: Tolerances, runs: Runs | None = None) -> Pair:
    """Two records that can be compared, with the tolerances of their arithmetic and cell."""
    from tunegrid.results.modules import read_both

    kind = arithmetic(old)
    assert old.training, "it has trained"
    assert new.training, "it has trained"
    pair = Pair(old=old.training, new=new.training, tolerance=tolerance_of(old.cell, kind, tolerances), fine=kind == FINE)
    return replace(pair, modules=partial(read_both, old, new, runs)) if runs else pair


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
    kinds = arithmetic(old), arithmetic(new)
    reasons = {
        "no run of the same seed": (old.seeds.seed, old.seeds.split_seed) != (new.seeds.seed, new.seeds.split_seed),
        "other recipes or limits": old.recipe != new.recipe or old.limits != new.limits,
        "other ranks": old.processes != new.processes,  # dropout draws others on every rank
        "other rows": old.data and new.data and old.data.fingerprint != new.data.fingerprint,
        "a run without losses": not losses(old) or not losses(new),
        f"no tolerance was measured for {kinds[1]} after {kinds[0]}": kinds[0] != kinds[1] or kinds[0] not in tolerances,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
