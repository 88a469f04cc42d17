"""Options, and what becomes of them: a training by formula, in which each option stands where it should act."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from benchmarks.equivalent.bench import Bench, Setting, learned
from benchmarks.equivalent.compare import Fields
from benchmarks.equivalent.training import UPDATES
from tunegrid.grid.backbones import within
from tunegrid.grid.recipes import Recipe
from tunegrid.run.order import chunks
from tunegrid.run.training import Trainer

BETAS, EPS = (0.9, 0.999), 1e-8  # AdamW's own, which no recipe changes


def by_formula(**recipe: Any) -> Setting:
    """AdamW, clipping and the schedule written out, on the gradients that a trainer finds; dropout is off."""
    fields = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": UPDATES} | recipe

    def train(bench: Bench) -> Fields:
        cell = bench.cell_with(**fields)
        trainer = bench.trainer(cell, 10, model=bench.model(cell, dropout=False))
        trainer.model.train()
        start, weights = learned(trainer), {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
        moments: dict[str, tuple[Tensor, Tensor]] = {}
        losses, norms, rates = [], [], []
        for update, rows in enumerate(chunks(trainer.features, cell.recipe.rows_per_update)):
            loss, found = trainer.accumulated([rows], weights)
            norm, gradients = _clipped(dict(zip(weights, found, strict=True)), cell.recipe.max_grad_norm)
            losses, norms = [*losses, float(loss)], norms if norm is None else [*norms, norm]
            rates += _step(trainer, weights, gradients, moments, update)
        return {
            "losses": losses,
            "norms": norms,
            "rates": rates,
            "moves": {name: p.detach() - start[name] for name, p in weights.items()},
        }

    return train


def _clipped(gradients: Mapping[str, Tensor], bound: float | None) -> tuple[float | None, Mapping[str, Tensor]]:
    """The norm before, and gradients whose norm is at most the bound."""
    if bound is None:
        return None, gradients
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))
    share = min(1.0, bound / (norm + 1e-6))
    return norm, {name: gradient * share for name, gradient in gradients.items()}


def _step(
    trainer: Trainer,
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    moments: dict[str, tuple[Tensor, Tensor]],
    update: int,
) -> list[float]:
    """Move weights; return the rates of the groups: decayed and not, of the body and of the head."""
    recipe, factor = trainer.cell.recipe, schedule(trainer.cell.recipe, update, trainer.total)
    own = recipe.head_learning_rate
    with torch.no_grad():
        for name, weight in weights.items():
            of_head = own is not None and within(name, trainer.cell.head.new_modules)
            rate = (own if of_head and own is not None else recipe.learning_rate) * factor
            first, second = moments.get(name, (torch.zeros_like(weight), torch.zeros_like(weight)))
            first = first + (1 - BETAS[0]) * (gradients[name] - first)
            second = BETAS[1] * second + (1 - BETAS[1]) * gradients[name] ** 2
            moments[name] = first, second
            if not gradients[name].any():
                continue  # torch leaves alone what has no gradient
            weight.mul_(1 - rate * (recipe.weight_decay if weight.ndim > 1 else 0.0))
            size = (second / (1 - BETAS[1] ** (update + 1))).sqrt() + EPS
            weight.sub_(rate * first / (1 - BETAS[0] ** (update + 1)) / size)
    return [recipe.learning_rate * factor] * 2 + ([own * factor] * 2 if own is not None else [])


def schedule(recipe: Recipe, update: int, total: int) -> float:
    """The share of the peak rate in an update, counted from 0: warm-up first, then a line or half a cosine down to 0."""
    warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * total)
    if update < warmup:
        return update / warmup
    done = (update - warmup) / max(1, total - warmup)
    return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant_with_warmup": 1.0}[
        recipe.lr_scheduler_type
    ]


# What transformers hands on


SET = {"learning_rate": 3e-4, "weight_decay": 0.25, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-5}
RATE, BOTH_BETAS, EPSILON = {"lr": 3e-4}, {"betas": (0.8, 0.95)}, {"eps": 1e-5}
# What an optimizer has where `TrainingArguments` say the above, by its name there, and with the options in its `optim_args`.
EXPECTED: Mapping[tuple[str, str | None], Mapping[str, Any]] = {
    ("adamw_torch", None): RATE | BOTH_BETAS | EPSILON,
    ("adamw_torch_fused", None): RATE | BOTH_BETAS | EPSILON | {"fused": True},
    ("adamw_bnb_8bit", None): RATE | BOTH_BETAS | EPSILON,
    ("paged_adamw_32bit", None): RATE | BOTH_BETAS | EPSILON,
    ("lion_32bit", None): RATE | BOTH_BETAS,
    ("ademamix", "beta3=0.99,alpha=3.0"): RATE | EPSILON | {"betas": (0.8, 0.95, 0.99), "alpha": 3.0},
    ("sgd", "momentum=0.7,nesterov=true"): RATE | {"momentum": 0.7, "nesterov": True},
    ("adagrad", "lr_decay=0.1,eps=1e-6"): RATE | {"lr_decay": 0.1, "eps": 1e-6},
    ("rmsprop", "alpha=0.8,momentum=0.5,centered=true"): RATE | {"alpha": 0.8, "momentum": 0.5, "centered": True},
    ("adafactor", None): RATE | {"scale_parameter": False, "relative_step": False},
}
IGNORED: Mapping[tuple[str, str | None], Mapping[str, Any]] = {("adamw_torch", "amsgrad=true"): {"amsgrad": True}}
TEXTS: Mapping[tuple[str, str | None], Mapping[str, Any]] = {("rmsprop_bnb", "alpha=0.8"): RATE | {"alpha": 0.8}}


def arguments_by_name(*, of: Mapping[tuple[str, str | None], Mapping[str, Any]] = EXPECTED, asked: bool) -> Setting:
    """What optimizers that `Trainer` makes have of what was set; `asked`: what should arrive there."""

    def ask(bench: Bench) -> Fields:
        made = {key: values if asked else _made(bench, *key, values) for key, values in of.items()}
        return {"arguments": {f"{name} {options or ''}".strip(): values for (name, options), values in made.items()}}

    return ask


def _made(bench: Bench, name: str, options: str | None, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    folder = str(bench.new_folder("arguments"))
    arguments = hf.TrainingArguments(output_dir=folder, optim=name, optim_args=options, use_cpu=True, report_to=[], **SET)
    kind, values = hf.Trainer.get_optimizer_cls_and_kwargs(arguments)
    group = kind([torch.nn.Parameter(torch.zeros(4, 4))], **values).param_groups[0]
    return {key: tuple(value) if isinstance(value := group.get(key), list) else value for key in wanted}
