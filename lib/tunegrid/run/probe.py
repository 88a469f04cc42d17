"""Takes figures before training that show a change without statistics: fields of the record's `FirstStep`.

The same seed, rows and arithmetic give the same figures, but for rounding; `tunegrid.results.numerics` compares two records by
them. Taking them leaves modes, gradients and random numbers as they were. `Trainer` adds the figures of the first update.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor

from tunegrid.codecs.base import Feature
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.data.columns import answer_texts
from tunegrid.data.sources import Row
from tunegrid.grid.tasks import Problem, Task
from tunegrid.run.audits.probing import computing, searched, short_to_long, undisturbed
from tunegrid.run.device import free_memory
from tunegrid.run.fitting import DoesNotFit, fitting
from tunegrid.run.groups import Figures, digest, digest_of, figure, grouped, norms, reached
from tunegrid.run.metrics import METRICS, Metrics
from tunegrid.run.order import chunks
from tunegrid.run.training import Trainer

PROBED = 4  # rows whose loss and gradients are taken before training, from the shortest to the longest
SEARCH = {"num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 2.0, "min_length": 0}
NOT_DIFFERENTIATED: Mapping[str, Any] = {  # without a probe's digest, figures of two probes are not compared
    **dict.fromkeys(("computed", "probe_loss", "probe_reached", "probe")),
    "probe_gradients": {},
}
NOT_GENERATED: Mapping[str, Any] = {"generated": None, "decoded": None}
Probe = Callable[[Trainer, Sequence[Feature]], Mapping[str, Any]]
FIXED = 16  # rows whose references are spoiled and scored
DRAWS = 64


def probed(trainer: Trainer, metrics: Metrics, rows: Sequence[Row]) -> dict[str, Any]:
    """What can be said before the first update: of tokens, weights, random numbers, the untrained model, and metrics.

    Args:
        trainer: before it runs.
        metrics: implementations at hand.
        rows: that the model is scored on; their references are spoiled and scored.
    """
    rows_read = short_to_long(trainer.features, PROBED)
    with undisturbed(trainer):
        differentiated = _where_it_fits(trainer, _differentiated, rows_read) or NOT_DIFFERENTIATED
        generated = _where_it_fits(trainer, _generated, [rows_read[0], rows_read[-1]]) or NOT_GENERATED
        groups = grouped(trainer.cell, trainer.model, trainer.parameters)
        return {
            "tokens": digest_of((feature.input_ids, feature.target) for feature in trainer.features),
            "types": types(groups, trainer.parameters),
            "weights": norms(groups, lambda name: _numbers(trainer.parameters[name])),
            "stream": _stream(trainer.meter.device),
            "probe": digest(([(row.input_ids, row.target) for row in rows_read], SEARCH)),
            **differentiated,
            **generated,
            "metrics": fixed_answers(trainer.cell.task, metrics, rows[:FIXED]),
        }


def types(groups: Mapping[str, Sequence[str]], parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """How each group's weights are stored, as "float32" or "nf4 in blocks of 64"."""
    return {group: ", ".join(sorted({_type(parameters[name]) for name in names})) for group, names in groups.items()}


def _type(parameter: Tensor) -> str:
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return str(parameter.dtype).removeprefix("torch.")
    return f"{state.quant_type} in blocks of {state.blocksize}{', scales packed' if state.nested else ''}"


def _numbers(parameter: Tensor) -> Tensor:
    """A weight as numbers, if it is packed, too."""
    state = getattr(parameter, "quant_state", None)
    return parameter.detach() if state is None else bnb.functional.dequantize_4bit(parameter.data, state)


def _stream(device: torch.device) -> str:
    """What the generator gives from a fixed seed: uniform and normal numbers, and a dropout mask."""
    torch.manual_seed(0)
    numbers = [*torch.rand(DRAWS, device=device).tolist(), *torch.randn(DRAWS, device=device).tolist()]
    mask = torch.dropout(torch.ones(DRAWS, device=device), 0.5, True).tolist()
    return digest(([round(number, 5) for number in numbers], mask))


def _where_it_fits(trainer: Trainer, figures: Probe, rows: Sequence[Feature]) -> Mapping[str, Any] | None:
    """Figures of some rows; None where memory runs out: a probe keeps all activations, training perhaps does not."""
    with suppress(DoesNotFit), fitting():
        return figures(trainer, rows)
    free_memory(trainer.meter.device)
    return None


def _differentiated(trainer: Trainer, rows: Sequence[Feature]) -> dict[str, Any]:
    """The loss of a few rows without dropout, in nats a target, its gradients, and how packed layers compute it.

    No more rows at once than training takes: their losses and gradients add up.
    """
    codec, device, at_once = trainer.codec, trainer.meter.device, trainer.cell.recipe.per_device_train_batch_size
    batches = [codec.collate(some) for some in chunks(rows, at_once)]
    targets = sum(map(codec.targets, batches))
    trained = {name: p for name, p in trainer.parameters.items() if p.requires_grad}
    total, known = torch.zeros((), device=device), dict[str, Tensor]()
    for batch in batches:
        with torch.enable_grad(), trainer.accelerator.autocast(), computing(trainer.model) as computed:
            loss = codec.loss(trainer.model, codec.placed(batch, device)) / targets
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        total += loss.detach()
        for name, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                known[name] = known[name] + gradient if name in known else gradient
    groups = grouped(trainer.cell, trainer.model, trained)
    return {
        "computed": computed_types(trainer, computed),
        "probe_loss": figure(total),
        "probe_gradients": norms(groups, known.get),
        "probe_reached": reached(groups, known),
    }


def computed_types(trainer: Trainer, computed: Mapping[str, str]) -> dict[str, str]:
    """By group, the types in which layers packed to 4 bits compute."""
    groups = grouped(trainer.cell, trainer.model, (f"{layer}.weight" for layer in computed))
    return {group: ", ".join(sorted({computed[name.rpartition(".")[0]] for name in names})) for group, names in groups.items()}


def _generated(trainer: Trainer, rows: Sequence[Feature]) -> Mapping[str, Any]:
    """Token ids that the untrained model generates for a short and a long row, up to the recipe's cap, and how far it is off.

    No text ends before the cap: a cache may go wrong late. Nor is one longer than a target, for which a model has positions in
    training. None for a codec that does not generate.
    """
    codec = trainer.codec
    if not isinstance(codec, GenerateCodec):
        return NOT_GENERATED
    cap = min(codec.generation.max_new_tokens, codec.max_target_length)
    texts, apart = searched(trainer, rows, **SEARCH, max_new_tokens=cap, min_new_tokens=cap)
    return {"generated": digest(texts), "decoded": figure(apart)}


def fixed_answers(task: Task, metrics: Metrics, rows: Sequence[Row]) -> Figures:
    """The scores of answers that no model gave: every row's reference, spoiled."""
    answers = [spoiled(task, row, place) for place, row in enumerate(rows)]
    scores = METRICS[task.problem](metrics, task, rows, answers).scores
    return {name: figure(score) for name, score in scores.items()}


def spoiled(task: Task, row: Row, place: int) -> int | str:
    """An answer that depends on the row's place: a label, or the reference without every third word."""
    if task.problem is Problem.CLASSIFY:
        return place % len(task.labels)
    reference = answer_texts(task, row)[0] if task.problem is Problem.EXTRACT else row[task.target]
    return " ".join(["the", *(word for i, word in enumerate(reference.split()) if (i + place) % 3)])
