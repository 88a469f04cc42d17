"""Asks a model for figures before its first update, and leaves no trace.

They fill the record's `FirstStep`: the same seed, rows and arithmetic give the same figures, but for rounding, and
`tunegrid.gate.numerics` compares two records by them. `Trainer` adds those of the first updates.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from tunegrid.codecs.base import Feature
from tunegrid.codecs.features import chunks, get_features
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.data.sources import Row, answer_texts
from tunegrid.errors import InputError
from tunegrid.grid.tasks import Problem, Task
from tunegrid.run.build import base_type, dtype_name, unpack_weight
from tunegrid.run.device import DoesNotFit, check_memory, free_memory
from tunegrid.run.evaluate import evaluate
from tunegrid.run.first_updates import Figures, digest, figure, gradient_figures, names_by_group, norms
from tunegrid.run.metrics import TELLING, Metrics, score_rows
from tunegrid.run.module_figures import Columns, ModuleFigures
from tunegrid.run.probe import attach, compute_types, has_fp32_base, keep_state, run_search, spread_features, type_of_digits
from tunegrid.run.train import Trainer

PROBED = 4  # rows whose loss and gradients are taken before training, from the shortest to the longest
SEARCH: dict[str, Any] = {"num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 2.0, "min_length": 0}
# Without a probe's digest, figures of two probes are not compared.
UNPROBED = dict.fromkeys(("computed", "probe_loss", "probe_reached", "probe", "generated", "decoded", "tokens_read"))
UNPROBED |= {"probe_gradients": {}}
SEARCHED = 4  # passes of a search whose modules are noted: an encoder's or a prompt's, and those of the first tokens
FIXED = 16  # rows whose references are spoiled and scored
DRAWS = 64
UNTRAINED, PREDICTED = 32, 4  # test rows that the untrained model is scored on; of which a digest holds its predictions


def before_training(
    trainer: Trainer, metrics: Metrics, rows: Sequence[Row], keep: Callable[[Columns], str | None] = lambda columns: None
) -> dict[str, Any]:
    """What can be said before the first update: of tokens, weights, random numbers, the untrained model, and metrics.

    The model will be scored on `rows`. `keep` stores the figures of single modules, and returns the name for the record.
    """
    features, modules = spread_features(trainer.features, PROBED), ModuleFigures(trainer.model)
    device, codec, figures = trainer.meter.device, trainer.codec, {**UNPROBED}
    measures = (_gradients, _search) if isinstance(codec, GenerateCodec) else (_gradients,)
    with keep_state(trainer):
        for measure in measures:  # a probe keeps all activations, training perhaps does not
            fits = False
            with suppress(DoesNotFit), check_memory():
                figures |= measure(trainer, features, modules)
                fits = True
            if not fits:
                free_memory(device)  # out here, where the error no longer keeps the failed pass alive
        groups = names_by_group(trainer.cell, trainer.model, trainer.parameters)
        types = {name: dtype_name(p.dtype) for name, p in trainer.parameters.items()}
        for name, p in trainer.parameters.items():
            if state := getattr(p, "quant_state", None):
                types[name] = f"{state.quant_type} in blocks of {state.blocksize}{', scales packed' if state.nested else ''}"
        # Over an fp32 base PEFT draws LoRA's A in fp32; over others in the base's type, which it casts.
        drawn_names = [name for name in types if ".lora_A." in name and has_fp32_base(trainer)]
        for name in drawn_names:
            digits = type_of_digits(trainer.parameters[name].detach())
            if types[name] == "float32" != digits:
                types[name] = f"float32 rounded to {digits}"
        # One by one: unpacked all at once, the weights of a packed base would take several times its memory.
        sizes = {name: float(unpack_weight(p).norm(dtype=torch.float32)) for name, p in trainer.parameters.items()}
        # What the generator gives from a fixed seed: uniform and normal numbers, and a dropout mask.
        torch.manual_seed(0)
        numbers = [*torch.rand(DRAWS, device=device).tolist(), *torch.randn(DRAWS, device=device).tolist()]
        mask = torch.dropout(torch.ones(DRAWS, device=device), 0.5, True).tolist()
        return {
            "tokens": digest((feature.input_ids, feature.target) for feature in trainer.features),
            "test_tokens": digest(feature.input_ids for feature in get_features(codec, rows, training=False)),
            "types": {group: ", ".join(sorted({types[name] for name in names})) for group, names in groups.items()},
            "weights": norms(groups, sizes),
            "stream": digest(([round(number, 5) for number in numbers], mask)),
            **figures,
            **untrained_scores(trainer, metrics, rows[:UNTRAINED]),
            "modules": keep(modules.columns()),
            "metrics": fixed_answers(trainer.cell.task, metrics, rows[:FIXED]),
        }


def _gradients(trainer: Trainer, rows: Sequence[Feature], modules: ModuleFigures) -> dict[str, Any]:
    """The loss of a few rows without dropout, in nats a target, its gradients, and how packed layers compute it."""
    # No more rows at once than training takes: their losses and gradients add up.
    codec, device, size = trainer.codec, trainer.meter.device, trainer.cell.recipe.per_device_train_batch_size
    batches = [codec.collate(some) for some in chunks(rows, size)]
    targets = sum(map(codec.targets, batches))
    trained = {name: p for name, p in trainer.parameters.items() if p.requires_grad}
    # Over a base in fp32 the probe is in fp32 whatever training is in: it rounds less, so that smaller changes show.
    is_fp32 = base_type(trainer.cell) is torch.float32 and not trainer.cell.quantization and trainer.log.precision != "fp32"
    autocast = nullcontext if is_fp32 else trainer.accelerator.autocast
    total, sums = torch.zeros((), device=device), dict[str, Tensor]()
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
    # As many once more with dropout, of which only what modules give is noted.
    with keep_state(trainer, training=True), torch.no_grad(), autocast(), modules.watch("dropout"):
        torch.manual_seed(0)
        codec.loss(trainer.model, codec.to_device(batches[0], device))
    sizes, counts, _ = gradient_figures(names_by_group(trainer.cell, trainer.model, trained), sums)
    layers = names_by_group(trainer.cell, trainer.model, (f"{layer}.weight" for layer in types))
    return {
        "probe": digest(([(row.input_ids, row.target) for row in rows], SEARCH, *(["fp32"] if is_fp32 else []))),
        "computed": {
            group: ", ".join(sorted({types[name.rpartition(".")[0]] for name in names})) for group, names in layers.items()
        },
        "probe_loss": figure(total),
        "probe_gradients": sizes,
        "probe_reached": counts,
    }


def _search(trainer: Trainer, rows: Sequence[Feature], modules: ModuleFigures) -> dict[str, Any]:
    """What the untrained model generates for a short and a long row up to the recipe's cap, how far off, of how many tokens."""
    codec = trainer.codec
    assert isinstance(codec, GenerateCodec), "only these generate"
    # No text ends before the cap: a cache may go wrong late. Nor is one longer than a target, for which there are positions.
    cap = min(codec.generation.max_new_tokens, codec.max_target_length)
    base: Any = trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model
    embeddings, counts = base.get_decoder().get_input_embeddings(), list[int]()
    with modules.watch("search", SEARCHED), attach([embeddings], lambda module, inputs, _: counts.append(inputs[0].numel())):
        found = run_search(trainer, [rows[0], rows[-1]], **SEARCH, max_new_tokens=cap, min_new_tokens=cap)
    gap = max(found.gap, found.total_gap)
    return {"generated": digest(found.texts), "decoded": figure(gap), "tokens_read": sum(counts)}


def untrained_scores(trainer: Trainer, metrics: Metrics, rows: Sequence[Row]) -> dict[str, Any]:
    """The points of each row before training, and a digest of the first predictions; null if memory runs out."""
    codec, facts, cheap = trainer.codec, dict[str, Any].fromkeys(("predicted", "untrained")), Metrics()
    with suppress(InputError):
        evaluation = evaluate(trainer.model, codec, rows, cheap, trainer.meter.device, progress=lambda *state: None)
        facts["untrained"] = evaluation.examples[TELLING[codec.task.problem]]
        if not codec.generates:
            facts["predicted"] = digest([str(prediction.value) for prediction in evaluation.predictions[:PREDICTED]])
    return facts


def fixed_answers(task: Task, metrics: Metrics, rows: Sequence[Row]) -> Figures:
    """The scores of answers that no model gave: labels by the row's index, or references without every third word."""
    answers: list[int | str] = [index % len(task.labels) for index in range(len(rows))] if task.labels else []
    for index, row in enumerate(() if task.labels else rows):
        reference = answer_texts(task, row)[0] if task.problem is Problem.EXTRACT else row[task.target]
        answers.append(" ".join(["the", *(word for i, word in enumerate(reference.split()) if (i + index) % 3)]))
    scores = score_rows(metrics, task, rows, answers).scores
    return {name: figure(points) for name, points in scores.items()}
