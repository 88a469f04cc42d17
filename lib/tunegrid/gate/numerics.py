"""Judges whether the arithmetic of training changed between two records of one cell and seed, and at which stage.

The first updates show a change before any score does, without statistics: later ones amplify rounding, the first ten hardly.
What comes later shows in the curve of losses, smoothed, and in how many test rows have other predictions than rounding changes.
Tolerances are measured. Figures of modules (`tunegrid.gate.modules`) name the module that changed, and never decide: they
hold what the model computes of padding, which may change without harm.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from tunegrid.errors import InputError
from tunegrid.gate.judgements import GRAVEST_FIRST, Judgement, Verdict, make_judgement
from tunegrid.gate.modules import Modules, Names, first_modules, read_both
from tunegrid.gate.quality import OTHER_RECIPE, Rows, has_other_recipe
from tunegrid.gate.thresholds import BERTSCORE_ROUNDING, CHANCE, FIXED_ANSWERS, SMALL_NORM, Tolerances, cell_tolerance
from tunegrid.record import Record
from tunegrid.record.checks import BERTSCORE
from tunegrid.record.record import TrainingRecord
from tunegrid.runs.examples import Runs, read
from tunegrid.words import count

UPDATES = 10
MOVED = 3  # updates after which `moved` is taken
WINDOW = 5  # updates: the losses of so many make a point of the curve; rounding moves single ones by more
PROBES = ("probe_loss", "probe_gradients", "probe_reached", "tokens_read", "decoded", "generated")
OPTIONAL = ("computed", "probe_reached", "reached", "tokens_read", "decoded", "generated", "predicted", "test_tokens")
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
    modules: Callable[[], tuple[Modules, Modules] | None] = lambda: None  # reads the figures of modules of both

    def figures(self, name: str) -> tuple[Any, Any]:
        """A figure of both; twice None unless both have it, of the same probe if it is one's."""
        if name == "order":
            return self.old.order, self.new.order
        if name == "first":
            return self.old.losses[0], self.new.losses[0]
        if name == "later":  # by update
            later = dict(enumerate(self.gaps[1:UPDATES], 2))
            return dict.fromkeys(later, 0.0), later
        if name in ("parting", "curve"):
            return {self.split_update: 0.0}, {self.split_update: self.curve if name == "curve" else self.jump}
        old, new = self.old.first_step, self.new.first_step
        if not old or not new or (name in PROBES and old.probe != new.probe) or (name == "moved" and len(self.gaps) < MOVED):
            return None, None
        before, after = getattr(old, name), getattr(new, name)
        if name == "metrics":  # a score that one of them lacks is no change of a score
            shared = before.keys() & after.keys()
            return {key: before[key] for key in shared}, {key: after[key] for key in shared}
        return (None, None) if name in OPTIONAL and None in (before, after) else (before, after)

    @property
    def curve(self) -> float:
        """How far the smoothed curves of losses lie apart at most, as a share of the old mean loss."""
        before, after = (np.array(one.losses, float) for one in (self.old, self.new))
        if len(before) != len(after):
            return math.inf
        window = min(WINDOW, len(before))
        gap = np.abs(np.convolve(before - after, np.full(window, 1 / window), "valid")).max()
        return float(gap / before.mean()) if before.any() else math.inf if gap else 0.0

    @property
    def split_update(self) -> int:
        """The first update with another loss; if rounding already differs before, with one beyond what is rounding."""
        before, after = self.old.losses, self.new.losses
        rounds = before[:UPDATES] != after[:UPDATES]
        limit = self.tolerance["curve"] * float(np.array(before, float).mean()) if rounds else 0.0
        return next((update for update, gap in enumerate(self.gaps, 1) if gap > limit), len(self.gaps) + 1)

    @property
    def jump(self) -> float:
        """How far the first two losses lie apart that differ, if all of the first updates are equal: rounding grows slowly."""
        first = next((update for update, gap in enumerate(self.gaps) if gap), 0)
        return self.gaps[first] if first >= UPDATES else 0.0

    @cached_property
    def gaps(self) -> list[float]:
        """How far the losses of each update lie apart, of those that both made."""
        return [_gap(*pair) for pair in zip(self.old.losses, self.new.losses, strict=False)]


def furthest(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> tuple[float, str]:
    """How far the norms of groups lie apart at most, as a share of them or of `SMALL_NORM`, and of which group."""
    norms = {group: [(side or {}).get(group) for side in (old, new)] for group in {**(old or {}), **(new or {})}}
    floor = SMALL_NORM * max((norm or 0.0 for pair in norms.values() for norm in pair), default=0.0)
    gaps = [(_gap(*pair) / (max(floor, *(norm or 0.0 for norm in pair)) or 1.0), group) for group, pair in norms.items()]
    return max(gaps, key=lambda gap: gap[0], default=(0.0, ""))


def _gap(before: Any, after: Any) -> float:
    """How far two figures lie apart; infinitely far if one of two others is no number."""
    if before is None or after is None or isinstance(before, str):
        return 0.0 if before == after else math.inf
    return float(abs(before - after))


def _difference(name: str, before: Any, after: Any, limit: float) -> dict[str, Any] | None:
    """What a stage's words are made of if its figure is another; of groups, the first, and of norms the one farthest apart."""
    before, after = (one if isinstance(one, dict) else {"": one} for one in (before, after))
    if name in BY_GROUP:
        gap, group = furthest(before, after)
    else:
        gaps = ((_gap(before.get(one), after.get(one)), one) for one in before | after)
        gap, group = next((one for one in gaps if one[0] > limit), (0.0, ""))
    if gap <= limit:
        return None
    old = _value_text(name, before, group)
    new = _value_text(name, after, group)
    factor = f"{new}, before {old}"
    if name in BY_GROUP and before.get(group) and after.get(group) is not None:
        factor = _factor_text(after[group] / before[group])
    return {"group": group, "gap": gap, "before": old, "after": new, "factor": factor}


def _value_text(name: str, values: Mapping[str, Any], group: str) -> str:
    """A group's value in words: gradients that are zeros are others than none."""
    value = values.get(group)
    if name in ("probe_reached", "reached") and not value:
        return "none" if value is None else "0 (all are zeros)"
    if value is None:
        return "no number" if group in values else "none"
    return f"{value:.6g}" if isinstance(value, float) else f"{value}"


def _factor_text(factor: float) -> str:
    """As "x 1.1"; of one that four digits round to 1, the percent between."""
    text = f"{factor:.4g}"
    return f"{100 * (factor - 1):+.1g} %" if text == "1" else f"x {text}"


class Stage(NamedTuple):
    """A stage of a run, a figure that changes there first, and in which phase of the probe modules tell where, if in any."""

    name: str
    figure: str
    words: str
    phase: str = ""


ALIKE = "arithmetic without dropout is equal"
CACHE = "with a cache, a search's scores are off by {after} of the largest logit, before by {before}"
FLOW = (  # in the order of a run: the first row that finds something is named
    Stage("text", "tokens", "token ids or targets of the training rows differ"),
    Stage("text", "test_tokens", "token ids of the test rows differ"),
    Stage("rows", "order", "the same rows in another order, or in other batches"),
    Stage("loading", "types", "weights of {group} are {after}, they were {before}"),
    Stage("loading", "computed", "{group} computes in {after}, before in {before}"),
    Stage("start", "weights", "weights before training, {group} {factor}", "forward"),
    Stage("forward", "probe_loss", "the loss before training is {after}, it was {before}", "forward"),
    Stage(BACKWARD, "probe_reached", "tensors of {group} that get a gradient: {after}, before {before}", "forward"),
    Stage(BACKWARD, "probe_gradients", "gradients of {group} {factor} before training, the loss equal", "forward"),
    Stage("random numbers", "stream", f"the generator gives other numbers from the same seed; {ALIKE}"),
    Stage("random numbers", "drawn", f"the first update draws other random numbers; {ALIKE}", "dropout"),
    Stage("forward with dropout", "first", "the loss of update 1 is {after}, it was {before}", "dropout"),
    Stage("backward", "reached", "tensors of {group} that get a gradient at update 1: {after}, before {before}"),
    Stage("backward", "gradients", "gradients of {group} {factor} at update 1, the loss equal"),
    Stage("optimizer", "moved", "movement of {group} {factor} by update 3, first gradients equal"),
    Stage("backward or optimizer", "later", "losses differ by {gap:.1e} at update {group}, not at update 1"),
    Stage("curve", "parting", "losses are equal before update {group}, and differ by {gap:.1e} there: not by rounding"),
    Stage("curve", "curve", "losses diverge from update {group}: curves differ by {gap:.2g} of the mean loss, not by rounding"),
    Stage("generation", "tokens_read", "a search reads {after} tokens, before {before}: a cache is used differently", "search"),
    Stage("generation", "decoded", CACHE, "search"),
    Stage("generation", "generated", "the untrained model generates another text", "search"),
    Stage("prediction", "predicted", "the untrained model's predictions for the same rows differ"),
    Stage("scoring", "metrics", "{group} of fixed answers is {after}, it was {before}"),
)
STAGES = tuple(dict.fromkeys([*(stage.name for stage in FLOW), "evaluation"]))


class Change(NamedTuple):
    """The first stage that changed, what changed there, and the modules that changed first, each with class and library."""

    stage: str
    words: str
    modules: Names = ()


def first_change(pair: Pair) -> Change | None:
    """The first stage that changed; None if all that differs is rounding."""
    # If nothing was rounded otherwise before the optimizer's first step, only the optimizer itself can round.
    norms = [furthest(*pair.figures(name))[0] for name in ("weights", "probe_gradients", "gradients")]
    starts_equal = pair.old.losses[:1] == pair.new.losses[:1] and not any(norms)
    limits = {"probe_loss": pair.tolerance["first"], **pair.tolerance, "metrics": FIXED_ANSWERS}
    limits |= {"parting": pair.tolerance["later"]}
    limits |= {"moved": pair.tolerance["moved_alone"]} if starts_equal else {}
    for stage in FLOW:
        difference = _difference(stage.figure, *pair.figures(stage.figure), limits.get(stage.figure, 0.0))
        if difference is None or (stage.figure in EXACT and not pair.fine):
            continue
        change = Change(stage.name, stage.words.format(**difference))
        try:
            if stage.phase and pair.figures("probe_gradients") != (None, None) and (modules := pair.modules()):
                return _with_modules(change, modules, stage.phase, pair.tolerance)
        except InputError as error:  # modules only name: a damaged file costs no verdict
            return Change(stage.name, f"{change.words}; no module is named: {error}")
        return change
    return None


def _with_modules(change: Change, modules: tuple[Modules, Modules], phase: str, tolerance: Mapping[str, float]) -> Change:
    """The change with its first modules; if an output moved before a gradient did, its stage is the forward pass."""
    place = first_modules(*modules, phase, tolerance, backward=change.stage == BACKWARD)
    if not place.names:
        return change
    stage = "forward" if change.stage == BACKWARD and not place.is_backward else change.stage
    return Change(stage, f"{place.words}; {change.words}", place.names)


def judge_numerics(rows: Rows, tolerances: Tolerances) -> tuple[Judgement, bool]:
    """The gravest verdict on a cell's runs; and whether all that finished are of one training."""
    judgements, same_trainings = [], []
    for before, after in rows.records:
        judgement, one_training = compare_pair(before, after, tolerances, (rows.old_path, rows.new_path))
        judgements.append(judgement)
        same_trainings.append((one_training and before.finished) or not after.finished)
    return min(judgements, key=lambda one: GRAVEST_FIRST.index(one.verdict)), all(same_trainings)


def compare_pair(old: Record, new: Record, tolerances: Tolerances, runs: Runs = (None, None)) -> tuple[Judgement, bool]:
    """The judgement on two records of a cell, and whether they are of one training but for rounding.

    Of one training are records of one seed, recipe, order and data if all losses are equal, or no stage changed but the
    evaluation. If one made its first updates alone, the other is held to it by as many. `runs` are the files of both.
    """
    reason, kind, updates = not_comparable(old, new, tolerances), arithmetic(old), None
    if old.first_updates or new.first_updates:
        updates = min(record.training.updates if record.training else 0 for record in (old, new))
    judge = partial(make_judgement, old, "numerics", first_updates=updates)
    if reason or not old.training or not new.training:
        return judge(Verdict.NOT_COMPARABLE, detail=reason), False
    before, after = (replace(training, losses=training.losses[:updates]) for training in (old.training, new.training))
    tolerance, modules = cell_tolerance(old.cell, kind, tolerances), partial(read_both, old, new, runs)
    pair = Pair(old=before, new=after, tolerance=tolerance, fine=kind == FINE, modules=modules)
    change, equal = first_change(pair), before.losses == after.losses
    verdict, words = (
        (Verdict.CHANGED, "") if change else _evaluate(old, new, updates, runs) if equal else _rounding(pair, old, new, runs)
    )
    if verdict is Verdict.CHANGED:
        first = change or Change("evaluation", words)
        judge, words = partial(judge, stage=first.stage, modules=first.modules), f"{first.stage}: {first.words}"
    judgement = judge(verdict, detail="; with ".join(filter(None, (words, unlike_libraries(old, new)))))
    is_comparable = old.seeds.seed is not None and old.data and new.data and before.order and before.order == after.order
    return judgement, bool(is_comparable and (equal or not change))


def _rounding(pair: Pair, old: Record, new: Record, runs: Runs) -> tuple[Verdict, str]:
    """How far the first losses lie apart; changed, if more test rows have other predictions than rounding changes."""
    gaps = pair.gaps[:UPDATES]
    far = f"losses of the first {count(len(gaps), 'update')} differ by at most {max(gaps):.1e}"
    words = far if any(gaps) else f"losses are equal up to update {len(gaps)}, then differ"
    share, rows = pair.tolerance.get("rows"), changed_rows(old, new, runs)
    if share is not None and rows and rows[0] and special.pdtrc(rows[0] - 1, share * rows[1]) < CHANCE:
        others = f"{rows[0]} of {rows[1]} test rows have other predictions, rounding explains {share * rows[1]:.2g}"
        return Verdict.CHANGED, f"{others}; {words}"
    return Verdict.ROUNDING, words


def changed_rows(old: Record, new: Record, runs: Runs) -> tuple[int, int] | None:
    """How many test rows have other predictions, and of how many; None if they are not at hand, or other rows."""
    before, after = (read(record, run) for record, run in zip((old, new), runs, strict=True))
    if before is None or after is None or not before.id.equals(after.id):
        return None
    return int((before.prediction != after.prediction).sum()), len(before)


def _evaluate(old: Record, new: Record, updates: int | None, runs: Runs) -> tuple[Verdict, str]:
    """Equal losses mean equal weights: other predictions are the evaluation's doing, but BERTScore's own model may round."""
    files = [record.examples and record.examples.file for record in (old, new)]
    if updates or None in files or files[0] == files[1]:
        early = f" of the first {count(updates, 'update')}" if updates else ""
        return Verdict.EQUAL, f"all losses{early} are equal"
    before, after = (read(record, run) for record, run in zip((old, new), runs, strict=True))
    if before is not None and after is not None:  # files of other versions or scores have other names
        columns = before.columns.intersection(after.columns)
        if before[columns].equals(after[columns]):
            return Verdict.EQUAL, "all losses, predictions and points are equal"
    # With other texts, other scores differ, too.
    gaps = {name: points for name in old.scores if (points := _gap(old.scores[name], new.scores.get(name)))}
    if gaps and gaps.keys() <= set(BERTSCORE) and max(gaps.values()) <= BERTSCORE_ROUNDING:
        return Verdict.ROUNDING, f"all losses are equal, BERTScore differs by at most {max(gaps.values()):.1e} points"
    return Verdict.CHANGED, "all losses are equal, predictions or their points are not"


def losses(record: Record) -> list[float]:
    """The losses of all updates; empty if one is not a number."""
    values = record.training.losses if record.training else []
    return [] if None in values else [value for value in values if value is not None]


def arithmetic(record: Record) -> str:
    """What rounding depends on: "nf4" over a quantized base, else the precision of training."""
    precision = record.training.precision if record.training else "none"
    return f"nf4 {precision}" if record.recipe.quantization else precision


def not_comparable(old: Record, new: Record, tolerances: Tolerances) -> str:
    """Why the figures of two records cannot be held to each other; empty if they can."""
    kinds = arithmetic(old), arithmetic(new)
    reasons = {
        "no run of the same seed": (old.seeds.seed, old.seeds.split_seed) != (new.seeds.seed, new.seeds.split_seed),
        OTHER_RECIPE: has_other_recipe(old, new),
        "other ranks": old.processes != new.processes,  # dropout draws others on every rank
        "other rows": old.data and new.data and old.data.fingerprint != new.data.fingerprint,
        "a run without losses": not losses(old) or not losses(new),
        f"no tolerance was measured from {kinds[0]} to {kinds[1]}": kinds[0] != kinds[1] or kinds[0] not in tolerances,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def unlike_libraries(before: Record, after: Record) -> str:
    """Which libraries two records do not have in common, by version or by code; empty if none is known to differ."""
    olds, news = before.versions, after.versions
    other = [f"{name} {new}, it was {olds.get(name)}" for name, new in news.items() if olds.get(name) != new]
    for name, digest in after.libraries.items():
        if before.libraries.get(name, digest) != digest and olds.get(name) == news.get(name):
            other.append(f"{name} {news.get(name)} with other code")
    return "; ".join(other)
