"""Judges whether the arithmetic of training changed between two records of one cell and seed.

The first updates show a change before any score does, and without statistics, because they amplify
rounding far less than later updates. A later change shows in the smoothed loss curve, or in more
changed test predictions than rounding explains. Tolerances are measured. The figures of modules
(`tunegrid.gate.modules`) name the module that changed but never affect the verdict, since they
include the model's values for padding, which may change without harm.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from tunegrid.errors import InputError
from tunegrid.gate.judgements import GRAVEST_FIRST, SINCE, Judgement, Verdict, make_judgement
from tunegrid.gate.modules import Modules, Names, first_modules, read_both
from tunegrid.gate.quality import Rows, other_recipe
from tunegrid.gate.thresholds import (
    BERTSCORE_ROUNDING,
    CHANCE,
    FIXED_ANSWERS,
    SMALL_NORM,
    Tolerances,
    cell_tolerance,
)
from tunegrid.record import Record
from tunegrid.record.checks import BERTSCORE
from tunegrid.record.record import KernelRecord, TrainingRecord
from tunegrid.runs.examples import Runs, read
from tunegrid.words import count

UPDATES = 10
MOVED_AFTER = 3  # `moved` is measured after this many updates
# Updates averaged in each point of the curve, since rounding moves single losses by more.
WINDOW = 5
PROBES = (
    "probe_loss",
    "probe_gradients",
    "probe_reached",
    "tokens_read",
    "decoded",
    "generated",
)
OPTIONAL = (
    "digits",
    "computed",
    "probe_reached",
    "reached",
    "tokens_read",
    "decoded",
    "generated",
    "predicted",
    "test_tokens",
)
BY_GROUP = ("weights", "probe_gradients", "gradients", "moved")
FINE_TYPE = "fp32"  # the arithmetic in which the `EXACT` figures do not depend on rounding
EXACT = ("generated", "predicted")
BACKWARD = "backward without dropout"
NO_FIGURES = (None, None)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two training runs that can be compared."""

    old: TrainingRecord
    new: TrainingRecord
    tolerance: Mapping[str, float]  # for the runs' arithmetic and cell
    fine: bool  # True if the arithmetic is exact enough to compare generated ids
    # Reads the figures of modules in both records.
    modules: Callable[[], tuple[Modules, Modules] | None] = lambda: None

    def figures(self, name: str) -> tuple[Any, Any]:
        """A figure of the old run and of the new run; `NO_FIGURES` unless both have it.

        The probe's figures are returned only if both runs used the same probe. For losses after the
        first, the old figure is 0 and the new one is the gap between the runs.
        """
        if name == "order":
            return self.old.order, self.new.order
        if name == "first":
            return self.old.losses[0], self.new.losses[0]
        if name == "later":  # gaps by update
            later = dict(enumerate(self.gaps[1:UPDATES], 2))
            return dict.fromkeys(later, 0.0), later
        if name == "parting":
            return {self.split_update: 0.0}, {self.split_update: self.jump}
        if name == "curve":
            return {self.split_update: 0.0}, {self.split_update: self.curve}
        old = self.old.first_step
        new = self.new.first_step
        if not old or not new:
            return NO_FIGURES
        if name in PROBES and old.probe != new.probe:
            return NO_FIGURES
        if name == "moved" and len(self.gaps) < MOVED_AFTER:
            return NO_FIGURES
        before = getattr(old, name)
        after = getattr(new, name)
        if name == "metrics":  # a score that only one record has is no change
            shared = before.keys() & after.keys()
            return {key: before[key] for key in shared}, {key: after[key] for key in shared}
        if name in OPTIONAL and None in (before, after):
            return NO_FIGURES
        return before, after

    @property
    def curve(self) -> float:
        """The largest gap between the smoothed losses, as a share of the old mean loss.

        Infinite if the runs made different numbers of updates.
        """
        before = np.array(self.old.losses, float)
        after = np.array(self.new.losses, float)
        if len(before) != len(after):
            return math.inf
        window = min(WINDOW, len(before))
        gap = np.abs(np.convolve(before - after, np.full(window, 1 / window), "valid")).max()
        if before.any():
            return float(gap / before.mean())
        return math.inf if gap else 0.0

    @property
    def split_update(self) -> int:
        """The first update at which losses differ, or one past the last update.

        If the first `UPDATES` losses already differ, only a gap larger than rounding counts.
        """
        before = self.old.losses
        limit = 0.0
        if before[:UPDATES] != self.new.losses[:UPDATES]:
            limit = self.tolerance["curve"] * float(np.array(before, float).mean())
        for update, gap in enumerate(self.gaps, 1):
            if gap > limit:
                return update
        return len(self.gaps) + 1

    @property
    def jump(self) -> float:
        """The first gap between losses, if the first `UPDATES` losses are equal; else 0.

        A gap caused by rounding would grow slowly instead.
        """
        for index, gap in enumerate(self.gaps):
            if gap:
                return gap if index >= UPDATES else 0.0
        return 0.0

    @cached_property
    def gaps(self) -> list[float]:
        """The gaps between the losses of all updates that both runs made."""
        return list(map(_gap, self.old.losses, self.new.losses))


def furthest(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> tuple[float, str]:
    """The largest relative gap between the old and new norm of a group, and that group's name.

    A gap is relative to the larger of the two norms, or to `SMALL_NORM` times the largest norm of
    any group if that is greater.
    """
    old = old or {}
    new = new or {}
    norms = {group: max(old.get(group) or 0.0, new.get(group) or 0.0) for group in {**old, **new}}
    floor = SMALL_NORM * max(norms.values(), default=0.0)
    shares = []
    for group, norm in norms.items():
        gap = _gap(old.get(group), new.get(group))
        shares.append((gap / (max(floor, norm) or 1.0), group))
    return max(shares, key=lambda share: share[0], default=(0.0, ""))


def _gap(before: Any, after: Any) -> float:
    """The gap between two figures; infinite if they differ and either is not a number."""
    if before is None or after is None or isinstance(before, str):
        return 0.0 if before == after else math.inf
    return float(abs(before - after))


def _difference(name: str, before: Any, after: Any, limit: float) -> dict[str, Any] | None:
    """Describes how far a figure moved: a norm's largest gap, or else the first above the limit.

    Returns None if no gap exceeds the limit.
    """
    before = before if isinstance(before, dict) else {"": before}
    after = after if isinstance(after, dict) else {"": after}
    is_norm = name in BY_GROUP
    gap, group = furthest(before, after) if is_norm else _first_gap(before, after, limit)
    if gap <= limit:
        return None
    old = _value_text(name, before, group)
    new = _value_text(name, after, group)
    factor = f"{new}, before {old}"
    if is_norm and before.get(group) and after.get(group) is not None:
        factor = _factor_text(after[group] / before[group])
    return {"group": group, "gap": gap, "before": old, "after": new, "factor": factor}


def _first_gap(before: dict[Any, Any], after: dict[Any, Any], limit: float) -> tuple[float, Any]:
    """The first gap that exceeds the limit, and its group; 0 and "" if none does."""
    for group in before | after:
        gap = _gap(before.get(group), after.get(group))
        if gap > limit:
            return gap, group
    return 0.0, ""


def _value_text(name: str, values: Mapping[str, Any], group: str) -> str:
    """Formats a group's value; distinguishes missing gradients from gradients that are zero."""
    value = values.get(group)
    if name in ("probe_reached", "reached") and not value:
        return "none" if value is None else "0 (all are zeros)"
    if value is None:
        return "no number" if group in values else "none"
    return f"{value:.6g}" if isinstance(value, float) else f"{value}"


def _factor_text(factor: float) -> str:
    """Formats a factor as "x 1.1", or as a percentage if it rounds to 1 at four digits."""
    text = f"{factor:.4g}"
    return f"{100 * (factor - 1):+.1g} %" if text == "1" else f"x {text}"


class FlowRow(NamedTuple):
    """A figure to compare, and the stage of a run that changed if this figure differs."""

    stage: str
    figure: str
    words: str
    phase: str = ""  # the phase of the probe whose modules locate the change, if any


EQUAL_BEFORE = "arithmetic without dropout is equal"
FLOW = (  # in the order of a run; the first row that finds a difference is reported
    FlowRow("text", "tokens", "token ids or targets of the training rows differ"),
    FlowRow("text", "test_tokens", "token ids of the test rows differ"),
    FlowRow("rows", "order", "the same rows in another order, or in other batches"),
    FlowRow("loading", "types", "weights of {group} are {after}, they were {before}"),
    FlowRow("loading", "computed", "{group} computes in {after}, before in {before}"),
    FlowRow(
        "start",
        "digits",
        "weights of {group} start with {after} precision, before with {before}",
        "forward",
    ),
    FlowRow("start", "weights", "weights before training, {group} {factor}", "forward"),
    FlowRow(
        "forward", "probe_loss", "the loss before training is {after}, it was {before}", "forward"
    ),
    FlowRow(
        BACKWARD,
        "probe_reached",
        "tensors of {group} that get a gradient: {after}, before {before}",
        "forward",
    ),
    FlowRow(
        BACKWARD,
        "probe_gradients",
        "gradients of {group} {factor} before training, the loss equal",
        "forward",
    ),
    FlowRow(
        "random numbers",
        "stream",
        f"the generator gives other numbers from the same seed; {EQUAL_BEFORE}",
    ),
    FlowRow(
        "random numbers",
        "drawn",
        f"the first update draws other random numbers; {EQUAL_BEFORE}",
        "dropout",
    ),
    FlowRow(
        "forward with dropout",
        "first",
        "the loss of update 1 is {after}, it was {before}",
        "dropout",
    ),
    FlowRow(
        "backward",
        "reached",
        "tensors of {group} that get a gradient at update 1: {after}, before {before}",
    ),
    FlowRow("backward", "gradients", "gradients of {group} {factor} at update 1, the loss equal"),
    FlowRow(
        "optimizer", "moved", "movement of {group} {factor} by update 3, first gradients equal"
    ),
    FlowRow(
        "backward or optimizer",
        "later",
        "losses differ by {gap:.1e} at update {group}, not at update 1",
    ),
    FlowRow(
        "curve",
        "parting",
        "losses are equal before update {group}, and differ by {gap:.1e} there: not by rounding",
    ),
    FlowRow(
        "curve",
        "curve",
        "losses diverge from update {group}: "
        "curves differ by {gap:.2g} of the mean loss, not by rounding",
    ),
    FlowRow(
        "generation",
        "tokens_read",
        "a search reads {after} tokens, before {before}: a cache is used differently",
        "search",
    ),
    FlowRow(
        "generation",
        "decoded",
        "with a cache, a search's scores are off by {after} of the largest logit, "
        "before by {before}",
        "search",
    ),
    FlowRow("generation", "generated", "the untrained model generates another text", "search"),
    FlowRow(
        "prediction", "predicted", "the untrained model's predictions for the same rows differ"
    ),
    FlowRow("scoring", "metrics", "{group} of fixed answers is {after}, it was {before}"),
)
STAGES = tuple(dict.fromkeys([*(row.stage for row in FLOW), "evaluation"]))


class Change(NamedTuple):
    """The first stage that changed, what changed there, and the modules that changed first."""

    stage: str
    words: str
    modules: Names = ()


def first_change(pair: Pair) -> Change | None:
    """The first stage that changed; None if all differences are due to rounding."""
    # If losses and norms are equal before the optimizer's first step, only the optimizer rounds.
    early_figures = ("weights", "probe_gradients", "gradients")
    norms = [furthest(*pair.figures(name))[0] for name in early_figures]
    limits = {"probe_loss": pair.tolerance["first"], **pair.tolerance}
    limits["metrics"] = FIXED_ANSWERS
    limits["parting"] = pair.tolerance["later"]
    if pair.old.losses[:1] == pair.new.losses[:1] and not any(norms):
        limits["moved"] = pair.tolerance["moved_alone"]
    for row in FLOW:
        if row.figure in EXACT and not pair.fine:
            continue
        before, after = pair.figures(row.figure)
        difference = _difference(row.figure, before, after, limits.get(row.figure, 0.0))
        if difference:
            change = Change(row.stage, row.words.format(**difference))
            return _with_modules(change, pair, row.phase)
    return None


def _with_modules(change: Change, pair: Pair, phase: str) -> Change:
    """Returns `change` with the names of the first modules that differ, if these are known.

    A backward change becomes a forward change if a module's input or output differs. If a file of
    modules is damaged, only a note is added.
    """
    if not phase or pair.figures("probe_gradients") == NO_FIGURES:
        return change
    is_backward = change.stage == BACKWARD
    try:
        modules = pair.modules()
        if not modules:
            return change
        first = first_modules(*modules, phase, pair.tolerance, backward=is_backward)
    except InputError as error:  # modules only add names, so the verdict survives a damaged file
        return change._replace(words=f"{change.words}; no module is named: {error}")
    if not first.names:
        return change
    stage = "forward" if is_backward and not first.is_backward else change.stage
    return Change(stage, f"{first.words}; {change.words}", first.names)


def judge_numerics(rows: Rows, tolerances: Tolerances) -> tuple[Judgement, bool]:
    """The most severe judgement on a cell, and whether each finished new run repeats its old run.

    A new run does if both finished and are the same training run up to rounding.
    """
    judgements = []
    same_trainings = []
    runs = rows.old_path, rows.new_path
    for before, after in rows.records:
        judgement, one_training = compare_pair(before, after, tolerances, runs)
        judgements.append(judgement)
        same_trainings.append((one_training and before.finished) or not after.finished)
    gravest = min(judgements, key=lambda judgement: GRAVEST_FIRST.index(judgement.verdict))
    return gravest, all(same_trainings)


def compare_pair(
    old: Record,
    new: Record,
    tolerances: Tolerances,
    runs: Runs = (None, None),
) -> tuple[Judgement, bool]:
    """Judges two records of a cell and says whether they are the same training up to rounding.

    Records with the same seed, recipe, order and data are the same training run if all losses are
    equal, or if no stage before the evaluation changed by more than rounding. If one record made
    only its first updates, the other is cut to the same number of updates. `runs` are the files of
    both records.
    """
    reason = not_comparable(old, new, tolerances)
    updates = None
    if old.first_updates or new.first_updates:
        updates = min(record.training.updates if record.training else 0 for record in (old, new))
    judge = partial(make_judgement, old, "numerics", first_updates=updates)
    if reason or not old.training or not new.training:
        return judge(Verdict.NOT_COMPARABLE, detail=reason), False
    before = replace(old.training, losses=old.training.losses[:updates])
    after = replace(new.training, losses=new.training.losses[:updates])
    kind = arithmetic(old)
    pair = Pair(
        old=before,
        new=after,
        tolerance=cell_tolerance(old.cell, kind, tolerances),
        fine=kind == FINE_TYPE,
        modules=partial(read_both, old, new, runs),
    )
    first = first_change(pair)
    has_equal_losses = before.losses == after.losses
    has_order = old.seeds.seed is not None and old.data and new.data and before.order
    is_alike = has_equal_losses or first is None
    one_training = bool(has_order and before.order == after.order and is_alike)
    verdict = Verdict.CHANGED
    if first is None:
        if has_equal_losses:
            verdict, words = _evaluate(old, new, updates, runs)
        else:
            verdict, words = _rounding(pair, old, new, runs)
        if verdict is Verdict.CHANGED:
            first = Change("evaluation", words)
    if first:
        judge = partial(judge, stage=first.stage, modules=first.modules)
        words = f"{first.stage}: {first.words}"
    libraries = unlike_libraries(old, new)
    return judge(verdict, detail=f"{words}{SINCE}{libraries}" if libraries else words), one_training


def _rounding(pair: Pair, old: Record, new: Record, runs: Runs) -> tuple[Verdict, str]:
    """The verdict on losses that differ by rounding, with its reason.

    It is *changed* if more predictions differ than rounding explains.
    """
    gaps = pair.gaps[:UPDATES]
    words = f"losses are equal up to update {len(gaps)}, then differ"
    if any(gaps):
        words = (
            f"losses of the first {count(len(gaps), 'update')} differ by at most {max(gaps):.1e}"
        )
    share = pair.tolerance.get("rows")
    rows = changed_rows(old, new, runs)
    if share is None or rows is None:
        return Verdict.ROUNDING, words
    changed, total = rows
    expected = share * total
    if changed and special.pdtrc(changed - 1, expected) < CHANCE:
        predictions = f"{changed} of {total} test rows have other predictions"
        return Verdict.CHANGED, f"{predictions}, rounding explains {expected:.2g}; {words}"
    return Verdict.ROUNDING, words


def changed_rows(old: Record, new: Record, runs: Runs) -> tuple[int, int] | None:
    """The number of test rows whose predictions differ, and the number of all test rows.

    None if predictions are unknown or the rows differ.
    """
    before = read(old, runs[0])
    after = read(new, runs[1])
    if before is None or after is None or not before.id.equals(after.id):
        return None
    return int((before.prediction != after.prediction).sum()), len(before)


def _evaluate(old: Record, new: Record, updates: int | None, runs: Runs) -> tuple[Verdict, str]:
    """The verdict on losses that are equal, with its reason.

    It is *changed* if predictions or their points differ, except that BERTScore may differ by
    rounding.
    """
    files = [record.examples and record.examples.file for record in (old, new)]
    if updates or None in files or files[0] == files[1]:
        early = f" of the first {count(updates, 'update')}" if updates else ""
        return Verdict.EQUAL, f"all losses{early} are equal"
    before = read(old, runs[0])
    after = read(new, runs[1])
    # Files that differ in version or scores also differ in name.
    if before is not None and after is not None:
        columns = before.columns.intersection(after.columns)
        if before[columns].equals(after[columns]):
            return Verdict.EQUAL, "all losses, predictions and points are equal"
    gaps = {name: _gap(score, new.scores.get(name)) for name, score in old.scores.items()}
    changed_scores = {name for name, gap in gaps.items() if gap}
    largest = max(gaps.values(), default=0.0)
    # If the texts differed, scores other than BERTScore would differ, too.
    if changed_scores and changed_scores <= set(BERTSCORE) and largest <= BERTSCORE_ROUNDING:
        words = f"all losses are equal, BERTScore differs by at most {largest:.1e} points"
        return Verdict.ROUNDING, words
    return Verdict.CHANGED, "all losses are equal, predictions or their points are not"


def finite_losses(record: Record) -> list[float]:
    """The losses of all updates; empty if any of them is not a number."""
    values = record.training.losses if record.training else []
    losses = [value for value in values if value is not None]
    return losses if len(losses) == len(values) else []


def arithmetic(record: Record) -> str:
    """The arithmetic that determines rounding: the precision, preceded by "nf4" if quantized."""
    precision = record.training.precision if record.training else "none"
    return f"nf4 {precision}" if record.recipe.quantization else precision


def not_comparable(old: Record, new: Record, tolerances: Tolerances) -> str:
    """The reason why the numerics of two records cannot be compared; empty if they can."""
    seeds = old.seeds
    if (seeds.seed, seeds.split_seed) != (new.seeds.seed, new.seeds.split_seed):
        return "no run of the same seed"
    recipe_clause = other_recipe(old, new)
    if recipe_clause:
        return recipe_clause
    if old.processes != new.processes:  # each rank draws its own dropout
        return "other ranks"
    if old.data and new.data and old.data.fingerprint != new.data.fingerprint:
        return "other rows"
    if not finite_losses(old) or not finite_losses(new):
        return "a run without losses"
    before = arithmetic(old)
    after = arithmetic(new)
    if before != after or before not in tolerances:
        return f"no tolerance was measured from {before} to {after}"
    return ""


def unlike_libraries(before: Record, after: Record) -> str:
    """Names the libraries whose version or code is known to differ between two records."""
    olds = before.versions
    news = after.versions
    changes = []
    for name, new in news.items():
        if olds.get(name) != new:
            changes.append(f"{name} {new}, it was {olds.get(name)}")
    for name, digest in after.libraries.items():
        if before.libraries.get(name, digest) != digest and olds.get(name) == news.get(name):
            changes.append(f"{name} {news.get(name)} with other code")
    changes += unlike_kernels(before.kernels, after.kernels)
    return "; ".join(changes)


def unlike_kernels(
    before: Mapping[str, KernelRecord], after: Mapping[str, KernelRecord]
) -> list[str]:
    """Names the compiled code from the hub that only one side ran, or in another form."""
    changes = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None:
            changes.append(f"kernel {name}, which the other run lacks")
        elif new is None:
            changes.append(f"no kernel {name}, which the other run has")
        elif old != new:
            changes.append(f"kernel {name} at {_form(new)}, it was {_form(old)}")
    return changes


def _form(kernel: KernelRecord) -> str:
    return (kernel.commit or kernel.digest)[:12]
