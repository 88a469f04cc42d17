"""Computes figures of a model before its first update, without changing the model's state.

The figures fill the record's `FirstStep`; `Trainer` adds the figures of the first updates. In runs
with the same seed, rows and arithmetic, figures differ only by rounding, so
`tunegrid.gate.numerics` uses them to compare two records.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from tunegrid.codecs.base import Feature
from tunegrid.codecs.features import chunks, get_features
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.data.sources import Row, answer_texts
from tunegrid.errors import InputError
from tunegrid.grid.tasks import Problem, Task
from tunegrid.run.build import dtype_name, unpack_weight
from tunegrid.run.device import DoesNotFit, check_memory, free_memory
from tunegrid.run.evaluate import evaluate
from tunegrid.run.first_updates import (
    Figures,
    digest,
    figure,
    gradient_figures,
    names_by_group,
    norms,
    sampled_values,
)
from tunegrid.run.metrics import TELLING, Metrics, score_rows
from tunegrid.run.module_figures import Columns, ModuleFigures
from tunegrid.run.probe import (
    attach,
    compute_types,
    has_fp32_base,
    keep_state,
    run_search,
    spread_features,
    type_of_digits,
)
from tunegrid.run.train import Trainer

PROBED = 4  # rows, from the shortest to the longest, whose loss and gradients are computed
SEARCH: dict[str, Any] = {
    "num_beams": 3,
    "no_repeat_ngram_size": 2,
    "length_penalty": 2.0,
    "min_length": 0,
}
# Without a digest in `probe`, the probes of two records are not compared.
UNPROBED: dict[str, Any] = {
    "computed": None,
    "probe_loss": None,
    "probe_reached": None,
    "probe": None,
    "generated": None,
    "decoded": None,
    "tokens_read": None,
    "probe_gradients": {},
}
# Passes of a search whose modules are recorded: the encoder's or the prompt's pass, then the first
# tokens' passes.
SEARCHED = 4
FIXED = 16  # rows for which made-up answers are scored
DRAWS = 64
UNTRAINED = 32  # test rows on which the untrained model is scored
PREDICTED = 4  # the number of these rows whose predictions are hashed


def before_training(
    trainer: Trainer,
    metrics: Metrics,
    rows: Sequence[Row],
    keep: Callable[[Columns], str | None] = lambda columns: None,
) -> dict[str, Any]:
    """Figures of the tokens, weights, random numbers, untrained model and metrics, by name.

    `rows` are the test rows. `keep` stores the figures of each module; the record gets the file
    name that it returns, or None.
    """
    features = spread_features(trainer.features, PROBED)
    modules = ModuleFigures(trainer.model)
    device = trainer.meter.device
    codec = trainer.codec
    figures = {**UNPROBED}
    measures = (_gradients, _search) if isinstance(codec, GenerateCodec) else (_gradients,)
    with keep_state(trainer):
        for measure in measures:  # a probe keeps all activations, even if training does not
            fits = False
            with suppress(DoesNotFit), check_memory():
                figures |= measure(trainer, features, modules)
                fits = True
            if not fits:
                # Outside the context, so that the error no longer keeps the failed pass alive.
                free_memory(device)
        groups = names_by_group(trainer.cell, trainer.model, trainer.parameters)
        # Weights are unpacked one by one, since a whole unpacked base takes several times the
        # memory.
        sizes = {}
        for name, p in trainer.parameters.items():
            sizes[name] = float(unpack_weight(p).norm(dtype=torch.float32))
        # Draws from a fixed seed: uniform and normal numbers, and a dropout mask.
        torch.manual_seed(0)
        numbers = torch.rand(DRAWS, device=device).tolist()
        numbers += torch.randn(DRAWS, device=device).tolist()
        mask = torch.dropout(torch.ones(DRAWS, device=device), 0.5, True).tolist()
        test_features = get_features(codec, rows, training=False)
        return {
            "tokens": digest((feature.input_ids, feature.target) for feature in trainer.features),
            "test_tokens": digest(feature.input_ids for feature in test_features),
            "types": join_types(groups, weight_types(trainer)),
            "digits": _digits(trainer),
            "weights": norms(groups, sizes),
            "stream": digest(([round(number, 5) for number in numbers], mask)),
            **figures,
            **untrained_scores(trainer, rows[:UNTRAINED]),
            "modules": keep(modules.columns()),
            "metrics": fixed_answers(trainer.cell.task, metrics, rows[:FIXED]),
        }


def weight_types(trainer: Trainer) -> dict[str, str]:
    """Each parameter's dtype or 4-bit format, by name.

    Over an fp32 base, a LoRA A whose values fit a 16-bit type is described as rounded.
    """
    has_drawn_fp32 = has_fp32_base(trainer)  # otherwise PEFT draws LoRA's A in the base's type
    types = {}
    for name, p in trainer.parameters.items():
        types[name] = dtype_name(p.dtype)
        state = getattr(p, "quant_state", None)
        if state:
            scales = ", scales packed" if state.nested else ""
            types[name] = f"{state.quant_type} in blocks of {state.blocksize}{scales}"
        elif has_drawn_fp32 and ".lora_A." in name and types[name] == "float32":
            digits = type_of_digits(p.detach())
            if digits != "float32":
                types[name] = f"float32 rounded to {digits}"
    return types


def join_types(groups: Mapping[str, Sequence[str]], types: Mapping[str, str]) -> dict[str, str]:
    """The distinct types of each group's members, joined by commas."""
    joined = {}
    for group, names in groups.items():
        joined[group] = ", ".join(sorted({types[name] for name in names}))
    return joined


def _digits(trainer: Trainer) -> dict[str, str]:
    """For each group of trained weights, the 16-bit types that hold its sampled values exactly.

    For a tensor that fits no 16-bit type, float32 is listed.
    """
    trained = {name: p for name, p in trainer.parameters.items() if p.requires_grad}
    types = {name: type_of_digits(values) for name, values in sampled_values(trained).items()}
    return join_types(names_by_group(trainer.cell, trainer.model, trained), types)


def _gradients(trainer: Trainer, rows: Sequence[Feature], modules: ModuleFigures) -> dict[str, Any]:
    """The loss on `rows` without dropout, in nats per target, and the norms of its gradients.

    Also returns the types in which 4-bit layers compute, and records figures of all modules.
    """
    codec = trainer.codec
    device = trainer.meter.device
    # Batches have at most as many rows as in training; their losses and gradients add up.
    size = trainer.cell.recipe.per_device_train_batch_size
    batches = [codec.collate(features) for features in chunks(rows, size)]
    targets = sum(map(codec.targets, batches))
    trained = {name: p for name, p in trainer.parameters.items() if p.requires_grad}
    # Over an fp32 base the probe always runs in fp32, which exposes smaller changes.
    is_fp32 = has_fp32_base(trainer) and trainer.log.precision != "fp32"
    autocast = nullcontext if is_fp32 else trainer.accelerator.autocast
    total = torch.zeros((), device=device)
    sums: dict[str, Tensor] = {}
    with modules.watch("forward"):
        for batch in batches:
            with torch.enable_grad(), autocast(), compute_types(trainer.model) as types:
                loss = codec.loss(trainer.model, codec.to_device(batch, device)) / targets
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            total += loss.detach()
            for name, gradient in zip(trained, gradients, strict=True):
                if gradient is not None:
                    sums[name] = sums[name] + gradient if name in sums else gradient
    modules.note_weights("forward", sums)
    # Runs the first batch again, with dropout, to record the outputs of modules.
    with keep_state(trainer, training=True), torch.no_grad(), autocast(), modules.watch("dropout"):
        torch.manual_seed(0)
        codec.loss(trainer.model, codec.to_device(batches[0], device))
    sizes, counts, _ = gradient_figures(names_by_group(trainer.cell, trainer.model, trained), sums)
    layer_types = {f"{layer}.weight": kind for layer, kind in types.items()}
    question: list[Any] = [[(row.input_ids, row.target) for row in rows], SEARCH]
    if is_fp32:
        question.append("fp32")
    layers = names_by_group(trainer.cell, trainer.model, layer_types)
    return {
        "probe": digest(tuple(question)),
        "computed": join_types(layers, layer_types),
        "probe_loss": figure(total),
        "probe_gradients": sizes,
        "probe_reached": counts,
    }


def _search(trainer: Trainer, rows: Sequence[Feature], modules: ModuleFigures) -> dict[str, Any]:
    """Generates texts for the shortest and the longest of `rows` with the untrained model.

    Returns a digest of the texts, the largest error in their scores, and the number of tokens
    embedded.
    """
    codec = trainer.codec
    assert isinstance(codec, GenerateCodec), "only these generate"
    # Every text runs to the cap, since a cache may go wrong late. No text is longer than a target,
    # for which the model has positions.
    cap = min(codec.generation.max_new_tokens, codec.max_target_length)
    base: Any = trainer.model
    if isinstance(base, PeftModel):
        base = base.get_base_model()
    counts: list[int] = []

    def count_tokens(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        counts.append(inputs[0].numel())

    embeddings = base.get_decoder().get_input_embeddings()
    ends = [rows[0], rows[-1]]
    with modules.watch("search", SEARCHED), attach([embeddings], count_tokens):
        found = run_search(trainer, ends, **SEARCH, max_new_tokens=cap, min_new_tokens=cap)
    return {
        "generated": digest(found.texts),
        "decoded": figure(max(found.gap, found.total_gap)),
        "tokens_read": sum(counts),
    }


def untrained_scores(trainer: Trainer, rows: Sequence[Row]) -> dict[str, Any]:
    """The untrained model's points per row, and a digest of its predictions unless they are text.

    Both are None if memory runs out.
    """
    codec = trainer.codec
    facts: dict[str, Any] = {"predicted": None, "untrained": None}
    with suppress(InputError):
        evaluation = evaluate(
            trainer.model,
            codec,
            rows,
            Metrics(),
            trainer.meter.device,
            progress=lambda *state: None,
        )
        facts["untrained"] = evaluation.examples[TELLING[codec.task.problem]]
        if not codec.generates:
            predictions = evaluation.predictions[:PREDICTED]
            facts["predicted"] = digest([str(prediction.value) for prediction in predictions])
    return facts


def fixed_answers(task: Task, metrics: Metrics, rows: Sequence[Row]) -> Figures:
    """Scores made-up answers: labels in rotation, or references with every third word left out."""
    answers: list[int | str] = []
    for index, row in enumerate(rows):
        if task.labels:
            answers.append(index % len(task.labels))
            continue
        reference = row[task.target]
        if task.problem is Problem.EXTRACT:
            reference = answer_texts(task, row)[0]
        words = [word for i, word in enumerate(reference.split()) if (i + index) % 3]
        answers.append(" ".join(["the", *words]))
    scores = score_rows(metrics, task, rows, answers).scores
    return {name: figure(points) for name, points in scores.items()}
