"""The stages at which both sides are compared, in the order of the flow. The first that differs is named, and ends it.

A sentence reads as "windows: the tokenizer returned 0 overflow windows, ours has 3 (row 17)".
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunegrid.codecs.base import IGNORED
from tunegrid.record.stock import STOCK_STAGES, StockRecord, StockStage
from tunegrid.run.first_updates import digest, digest_of
from tunegrid.run.stock.both import ACCUMULATED, CHECKPOINT, Both
from tunegrid.run.stock.course import collator_of
from tunegrid.run.stock.known import (
    GRADIENT,
    KNOWN,
    LATER,
    LOSS,
    MOVED,
    RATE,
    RESUMED,
    SCORED,
    Apart,
    Tolerance,
    apart,
)
from tunegrid.run.stock.scored import Scored, has_pipeline, pipeline_name

SHOWN = 6  # digits of a figure in a sentence


@dataclass(kw_only=True)
class Found:
    """What a stage found: a sentence where both sides differ, and the figures that the record keeps."""

    difference: str = ""
    digest: str | None = None
    figures: Sequence[float] = ()
    apart: Apart | None = None


def compare(both: Both, last: str = STOCK_STAGES[-1]) -> StockRecord:
    """Compare stage by stage, up to the first that differs, or to a last one."""
    compared, scored = StockRecord(stages={}, differs=None), Scored(both)
    for name in STOCK_STAGES[: STOCK_STAGES.index(last) + 1]:
        if name == "generation" and not scored.generates:
            continue
        found = _look(name, both, scored)
        compared.stages[name] = _kept(name, found, both)
        if found.difference:
            compared.differs = f"{name}: {found.difference}"
            break
    return compared


def _look(name: str, both: Both, scored: Scored) -> Found:
    """What a stage finds; an error of the libraries is a difference, too."""
    try:
        return STAGES[name](both, scored)
    except Exception as error:
        if type(error).__module__.startswith("tunegrid"):
            raise
        return Found(difference=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")


def _kept(name: str, found: Found, both: Both) -> StockStage:
    finite = found.apart if found.apart and found.apart.largest < float("inf") else None
    return StockStage(
        digest=found.digest,
        figures=[_figure(value) for value in found.figures],
        largest=float(f"{finite.largest:.3g}") if finite else None,
        mean=float(f"{finite.mean:.3g}") if finite else None,
        known=sorted(entry.id for entry in KNOWN if entry.stage == name and entry.id in both.known),
    )


def _figure(value: float) -> float | None:
    return float(f"{value:.9g}") if abs(value) < float("inf") else None


def windows(both: Both, scored: Scored) -> Found:
    """Token ids of each row, and the windows of a long one."""
    theirs = _by_row(both.table["example"], both.table["input_ids"])
    ours = _by_row([feature.example for feature in both.features], [both.inputs(feature) for feature in both.features])
    for row in range(len(both.rows)):
        mine, other = ours.get(row, []), theirs.get(row, [])
        if len(mine) != len(other):
            sentence = f"the tokenizer returned {_overflow(other)}, ours has {_overflow(mine)} (row {row})"
            return Found(difference=sentence)
        for number, (one, two) in enumerate(zip(other, mine, strict=True)):
            if one != two:
                return Found(difference=f"{_first_other(one, two)} (row {row}, window {number + 1} of {len(mine)})")
    return Found(digest=digest_of(tuple(ids) for row in sorted(theirs) for ids in theirs[row]))


def _by_row(examples: Sequence[int], ids: Sequence[Sequence[int]]) -> dict[int, list[list[int]]]:
    windows_of: dict[int, list[list[int]]] = {}
    for example, tokens in zip(examples, ids, strict=True):
        windows_of.setdefault(example, []).append(list(tokens))
    return windows_of


def _overflow(some: Sequence[Any]) -> str:
    return "no window" if not some else f"{len(some) - 1} overflow window{'' if len(some) == 2 else 's'}"


def _first_other(theirs: Sequence[int], ours: Sequence[int]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} tokens, ours has {len(ours)}"
    place = next(i for i, (one, two) in enumerate(zip(theirs, ours, strict=True)) if one != two)
    return f"token {place + 1} is {theirs[place]}, ours is {ours[place]}"


def start(both: Both, scored: Scored) -> Found:
    """Which weights train, how all are stored, and what the frozen ones hold."""
    theirs, ours = both.theirs(), both.ours()
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    if lacking := sorted(mine.keys() ^ other.keys()):
        return Found(difference=f"{lacking[0]} is a weight of {'theirs' if lacking[0] in other else 'ours'} alone")
    for name, parameter in other.items():
        if parameter.requires_grad != mine[name].requires_grad:
            return Found(difference=f"{name} {'trains' if parameter.requires_grad else 'is frozen'}, not so in ours")
        # ours rounds a packed layer's bias before training, bitsandbytes in its first forward pass
        rounded_late = "biases_rounded_late" in both.known and name.endswith("bias")
        if (sentence := _stored(parameter, mine[name])) and not rounded_late:
            return Found(difference=f"{name} is {sentence}")
        if not _equal(parameter, mine[name]):
            return Found(difference=f"{name} holds other numbers than ours")
    return Found(digest=digest(sorted((name, str(p.dtype), tuple(p.shape), p.requires_grad) for name, p in other.items())))


def _stored(theirs: Tensor, ours: Tensor) -> str:
    types = [f"{p.dtype} {tuple(p.shape)}".removeprefix("torch.") for p in (theirs, ours)]
    return "" if types[0] == types[1] else f"{types[0]}, ours is {types[1]}"


def _equal(theirs: Tensor, ours: Tensor) -> bool:
    return torch.equal(theirs.detach().to(ours.dtype), ours.detach())


def labels(both: Both, scored: Scored) -> Found:
    """The labels of each row as collated, and which of them are counted."""
    hashes = []
    for number, (theirs, ours) in enumerate(_batches(both)):
        if sentence := _other_labels(theirs.get("labels"), ours["labels"]):
            return Found(difference=f"{sentence} (batch {number + 1})")
        hashes.append(theirs["labels"].tolist())
    return Found(digest=digest(hashes))


def _batches(both: Both) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
    return both.collated(collator_of(both.cell, both.tokenizer, both.theirs()))


def _other_labels(theirs: Tensor | None, ours: Tensor) -> str:
    if theirs is None:
        return "the collator gives no labels"
    counted = [int((some != IGNORED).sum()) for some in (theirs, ours)]
    if counted[0] != counted[1]:
        return f"the collator counts {counted[0]} labels, ours {counted[1]}"
    return _other_tensor("labels", theirs, ours)


def batch(both: Both, scored: Scored) -> Found:
    """Everything else that the collator gives: ids, masks, kinds of token, the decoder's inputs."""
    hashes = []
    for number, (theirs, ours) in enumerate(_batches(both)):
        for name in sorted({*theirs, *ours} - {"labels"}):
            if sentence := _other_tensor(name, *(_read(name, some) for some in (theirs, ours))):
                return Found(difference=f"{sentence} (batch {number + 1})")
        hashes.append({name: tensor.tolist() for name, tensor in sorted(theirs.items())})
    return Found(digest=digest(hashes))


def _read(name: str, some: Mapping[str, Tensor]) -> Tensor | None:
    """A tensor as far as it counts: behind the end of a target, it does not matter what a decoder reads."""
    tensor = some.get(name)
    return tensor.masked_fill(some["labels"] == IGNORED, 0) if name == "decoder_input_ids" and tensor is not None else tensor


def _other_tensor(name: str, theirs: Tensor | None, ours: Tensor | None) -> str:
    """What of a tensor differs. One that is not given is what a model takes in its place: zeros, or no mask."""
    if theirs is None or ours is None:
        given = ours if theirs is None else theirs
        implied = name == "decoder_attention_mask" or given is None or not bool(given.any())
        return "" if implied else f"{name} is given by {'ours' if theirs is None else 'the collator'} alone"
    if theirs.shape != ours.shape:
        return f"{name} is {tuple(theirs.shape)}, ours is {tuple(ours.shape)}"
    if torch.equal(theirs, ours):
        return ""
    place = (theirs != ours).nonzero()[0].tolist()
    return f"{name} {place} is {int(theirs[tuple(place)])}, ours is {int(ours[tuple(place)])}"


def order(both: Both, scored: Scored) -> Found:
    """Every row comes once in an epoch, in batches of the recipe's size, but for the last."""
    size, course = both.cell.recipe.per_device_train_batch_size, both.plain[1]
    sizes = [min(size, len(both.features) - first) for first in range(0, len(both.features), size)]
    rows = both.order(course)
    for number, batch_rows in enumerate(rows):
        if None in batch_rows:
            return Found(difference=f"batch {number + 1} holds a row that is none of the data set's")
        if len(batch_rows) != sizes[number % len(sizes)]:
            wanted = sizes[number % len(sizes)]
            return Found(difference=f"batch {number + 1} holds {len(batch_rows)} rows, an epoch's has {wanted}")
    seen = Counter(index for batch_rows in rows[: len(sizes)] for index in batch_rows)
    missing = [index for index in range(len(both.features)) if seen[index] != 1]
    if missing:
        return Found(difference=f"row {missing[0]} comes {seen[missing[0]]} times in the first epoch")
    return Found(digest=digest(rows))


def loss(both: Both, scored: Scored) -> Found:
    """The loss of the first update."""
    return _numbers([both.plain[1].losses[0]], [both.ours_plain.loss], LOSS, "the loss of update {}")


def gradient(both: Both, scored: Scored) -> Found:
    """The norm of its gradients, before they are clipped."""
    theirs, ours = both.plain[1].norms[0], both.ours_plain.norm
    return _numbers([theirs / ours], [1.0], GRADIENT, "the gradient norm of update {} over ours", figures=[theirs])


def rates(both: Both, scored: Scored) -> Found:
    """The rate of each update, as a share of the highest."""
    highest = both.cell.recipe.learning_rate
    theirs, ours = ([rate / highest for rate in some] for some in (both.plain[1].rates, both.ours_plain.rates))
    return _numbers(theirs, ours, RATE, "the rate of update {} over the highest", figures=both.plain[1].rates)


def losses(both: Both, scored: Scored) -> Found:
    """The losses of all updates."""
    return _numbers(both.plain[1].losses, both.ours_plain.losses, LATER, "the loss of update {}")


def weights(both: Both, scored: Scored) -> Found:
    """What training changed: by tensor, as a share of how far ours moved."""
    return _moved(both, both.plain[1].weights, both.ours_plain.weights)


def _moved(both: Both, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> Found:
    shares, norms = [], []
    for name, start_weight in both.start_weights.items():
        moved = float((ours[name] - start_weight).norm())
        gap = float((theirs[name] - ours[name]).norm())
        norms.append(float((theirs[name] - start_weight).norm()))
        shares.append(gap / moved if moved else (float("inf") if gap else 0.0))
    found = _numbers(shares, [0.0] * len(shares), MOVED, "weight {}", figures=norms)
    if found.difference and found.apart:
        name = [*both.start_weights][found.apart.at]
        found.difference = f"{name} ends {found.apart.largest:.2g} of its way from ours"
    return found


def accumulation(both: Both, scored: Scored) -> Found:
    """Losses of updates of several batches, the last of an epoch of fewer, and the weights after them."""
    theirs, ours = both.accumulating[1], both.ours_accumulating
    found = _numbers(theirs.losses, ours.losses, LATER, f"the loss of {ACCUMULATED} batches in update {{}}")
    if found.difference:
        return found
    moved = _moved(both, theirs.weights, ours.weights)
    return found if not moved.difference else moved


def resume(both: Both, scored: Scored) -> Found:
    """A training taken up in its middle ends as the one that was not interrupted, which is ours."""
    whole, rest = both.accumulating[1], both.resumed
    found = _numbers(rest.losses, whole.losses, RESUMED, "the loss of update {}")
    if found.difference:
        found.difference = f"resumed after update {CHECKPOINT}, {found.difference}"
        return found
    moved = _moved(both, rest.weights, whole.weights)
    if moved.difference:
        return Found(difference=f"resumed after update {CHECKPOINT}, {moved.difference}", figures=found.figures)
    return found


def scores(both: Both, scored: Scored) -> Found:
    """`evaluate()` and answers of `predict()` on the same weights."""
    model = both.plain[0].model
    found = _numbers([scored.loss(model)], [scored.our_loss()], SCORED, "eval_loss")
    if found.difference or scored.generates:
        return found
    theirs, ours = scored.answers(model), scored.our_answers()
    return Found(
        difference=_other_answers(theirs, ours),
        figures=[*found.figures, scored.points(theirs)],
        apart=found.apart,
    )


def _other_answers(theirs: Sequence[Any], ours: Sequence[Any]) -> str:
    other = [row for row, (one, two) in enumerate(zip(theirs, ours, strict=True)) if one != two]
    if not other:
        return ""
    return f"{len(other)} of {len(ours)} answers are others; row {other[0]}: {theirs[other[0]]!r}, ours {ours[other[0]]!r}"


def generation(both: Both, scored: Scored) -> Found:
    """Ids that `predict_with_generate` gives on the same weights."""
    theirs, ours = scored.texts(both.plain[0].model), scored.our_texts()
    other = [row for row, (one, two) in enumerate(zip(theirs, ours, strict=True)) if one != two]
    if not other:
        return Found(digest=digest(theirs))
    sentence = _first_other(theirs[other[0]], ours[other[0]])
    return Found(difference=f"{len(other)} of {len(ours)} texts are others; row {other[0]}: {sentence}")


def pipeline(both: Both, scored: Scored) -> Found:
    """Answers from what `save_model` wrote, by the pipeline of the problem; by AutoModel where there is known to be none."""
    there, known = has_pipeline(both.cell), "no_pipeline" in both.known
    if there == known:
        return Found(difference=f"transformers has {'a' if there else 'no'} pipeline {pipeline_name(both.cell)!r}")
    theirs = scored.saved_answers()
    return Found(difference=_other_answers(theirs, scored.our_served_answers()), digest=digest(theirs))


def _numbers(
    theirs: Sequence[float], ours: Sequence[float], tolerance: Tolerance, what: str, figures: Sequence[float] | None = None
) -> Found:
    """How far numbers lie apart, with a sentence where it is more than rounding."""
    scales = [max(1.0, abs(value)) for value in ours]
    gap = apart(*([value / scale for value, scale in zip(some, scales, strict=False)] for some in (theirs, ours)))
    found = Found(figures=theirs if figures is None else figures, apart=gap)
    if len(theirs) != len(ours):
        found.apart = None
        found.difference = f"{len(theirs)} updates, ours has {len(ours)}"
    elif gap.exceeds(tolerance):
        one, two = theirs[gap.at], ours[gap.at]
        found.difference = f"{what.format(gap.at + 1)} is {one:.{SHOWN}g}, ours is {two:.{SHOWN}g}"
        if gap.largest <= tolerance.largest:
            found.difference += f"; all differ by {gap.mean:+.1e} in the mean, which chance would not"
    return found


STAGES: Mapping[str, Callable[[Both, Scored], Found]] = {
    "windows": windows,
    "start": start,
    "labels": labels,
    "batch": batch,
    "order": order,
    "loss": loss,
    "gradient": gradient,
    "rates": rates,
    "losses": losses,
    "weights": weights,
    "accumulation": accumulation,
    "resume": resume,
    "scores": scores,
    "generation": generation,
    "pipeline": pipeline,
}
