"""Settings that merge: layer by layer, one by one and together, with weights, and what is left after unmerging."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from benchmarks.equivalent.bench import Bench, Setting
from benchmarks.equivalent.compare import Fields
from benchmarks.equivalent.saved import FIRST, disturbed, logits_of, two_adapters

SECOND = "second"


def layers_of(model: Any) -> dict[str, Any]:
    """The adapted layers that can be merged, by name."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    return {name: m for name, m in found.items() if hasattr(m, "merge") and not isinstance(m.get_base_layer(), nn.Embedding)}


def answers_of_layers(*, merged: bool) -> Setting:
    """What each adapted layer makes of the same numbers, and the model of a batch, before merging or after."""

    def ask(bench: Bench) -> Fields:
        model = disturbed(bench.model())
        if merged:
            model.merge_adapter()
        with torch.no_grad():
            outputs = {name: layer(_inputs(layer)) for name, layer in layers_of(model).items()}
        return {"layers": outputs, "logits": logits_of(bench, model)}

    return ask


def _inputs(layer: Any) -> Tensor:
    base = layer.get_base_layer()
    width = next((size for name in ("in_features", "nx") if (size := getattr(base, name, None))), None) or base.weight.shape[0]
    return torch.randn(3, 5, width, generator=torch.Generator().manual_seed(width))


def base_weights(*, after: str | None = None, exact: bool = False) -> Setting:
    """The weights below the adapters, as they are, or after merging and unmerging.

    `exact` puts weights and adapters on a grid on which sums and products of a few numbers are exact in fp32.
    """

    def ask(bench: Bench) -> Fields:
        model = disturbed(bench.model())
        if exact:
            _to_grid(model)
        if after == "merged and unmerged":
            model.merge_adapter()
            model.unmerge_adapter()
        return {"weights": _bases(model)}

    return ask


def _bases(model: Any) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": p.detach().clone()
        for name, layer in layers_of(model).items()
        for part, p in layer.get_base_layer().named_parameters()
    }


def _to_grid(model: Any) -> None:
    """Weights to multiples of 2^-10, adapters to multiples of 2^-5, of which products are multiples of 2^-10, too."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_((parameter * 32).round() / 32)
            elif parameter.is_floating_point():
                parameter.copy_((parameter * 1024).round() / 1024)


# Merged for good


def merged_for_good(**options: Any) -> Setting:
    """The base's weights with the adapter in them, as `merge_and_unload` leaves them."""

    def ask(bench: Bench) -> Fields:
        model = disturbed(bench.model()).merge_and_unload(**options)
        return {
            "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
            "logits": logits_of(bench, model),
        }

    return ask


def broken_adapter(*, merged: bool) -> Setting:
    """The base's weights where an adapter holds a number that is none, and is to be merged with `safe_merge`."""

    def ask(bench: Bench) -> Fields:
        model = disturbed(bench.model())
        layer = next(iter(layers_of(model).values()))
        own = next(p for name, p in layer.named_parameters() if p.requires_grad)
        with torch.no_grad():
            own.view(-1)[0] = math.nan
        refused = True
        if merged:
            try:
                model.merge_adapter(safe_merge=True)
                refused = False
            except ValueError:
                pass
        return {"refused": refused, "weights": _bases(model)}

    return ask


def two_merged(*groups: Sequence[str]) -> Setting:
    """The base's weights with two adapters in them, merged in these groups."""

    def ask(bench: Bench) -> Fields:
        model = two_adapters(bench, SECOND)
        for group in groups:
            model.base_model.merge_adapter(adapter_names=list(group))
        return {"weights": _bases(model)}

    return ask


# Several adapters in one batch


def each_adapter_alone() -> Setting:
    """What each adapter, and the base without one, answers to its own row; each asked in a pass of its own."""

    def ask(bench: Bench) -> Fields:
        model, rows = two_adapters(bench, SECOND), bench.features(12)[:3]
        answers = []
        for name, row in zip((FIRST, SECOND), rows[:2], strict=True):
            model.set_adapter(name)
            answers.append(_of_row(bench, logits_of(bench, model, rows), row, rows))
        return {"logits": answers}

    return ask


def adapters_in_a_batch() -> Setting:
    """The same rows in one batch that names an adapter for each."""

    def ask(bench: Bench) -> Fields:
        model, rows = two_adapters(bench, SECOND), bench.features(12)[:3]
        logits = logits_of(bench, model, rows, adapter_names=[FIRST, SECOND, "__base__"])
        return {"logits": [_of_row(bench, logits, row, rows) for row in rows[:2]]}

    return ask


def _of_row(bench: Bench, logits: list[Tensor], row: Any, rows: list[Any]) -> list[Tensor]:
    return [one[rows.index(row)] for one in logits]


# Adapters with weights


def answers_of(adapter: str) -> Setting:
    """What a model of two adapters answers through one of them."""

    def ask(bench: Bench) -> Fields:
        model = two_adapters(bench, SECOND)
        model.set_adapter(adapter)
        return {"logits": logits_of(bench, model)}

    return ask


def answers_of_first_alone() -> Setting:
    """What it answers through an adapter that was made of both, of the first whole and of the second nothing."""

    def ask(bench: Bench) -> Fields:
        model = two_adapters(bench, SECOND)
        model.add_weighted_adapter([FIRST, SECOND], [1.0, 0.0], "both", combination_type="cat")
        model.set_adapter("both")
        return {"logits": logits_of(bench, model.eval())}

    return ask


def combined(weights: Sequence[float], **options: Any) -> Setting:
    """The first adapter's part in each layer's weights, and what `add_weighted_adapter` makes of two.

    Nothing is then a number to compare with, too.
    """

    def ask(bench: Bench) -> Fields:
        torch.manual_seed(0)
        model = _pair(bench, weights)
        ranks = sum(model.peft_config[name].r for name in (FIRST, SECOND))
        more = {"svd_rank": ranks} if options.get("combination_type", "svd").endswith("svd") else {}
        model.add_weighted_adapter([FIRST, SECOND], list(weights), "both", **more, **options)
        return {
            "weights": {n: one.get_delta_weight(FIRST) + one.get_delta_weight("both") for n, one in layers_of(model).items()}
        }

    return ask


def by_formula(weights: Sequence[float], formula: str) -> Setting:
    """The same by definition, of each layer's A, B and scale.

    "sum": the weighted sum of both products. "linear": the product of the weighted sums of A and of B, each by the root of
    weight and scale, A with the weight's sign. "nothing": zero.
    """

    def ask(bench: Bench) -> Fields:
        model = _pair(bench, weights)
        layers = layers_of(model).items()
        return {"weights": {name: layer.get_delta_weight(FIRST) + _formula(layer, weights, formula) for name, layer in layers}}

    return ask


def _pair(bench: Bench, weights: Sequence[float]) -> Any:
    """Two adapters; where one is taken off the other, they are equal."""
    model = two_adapters(bench, SECOND)
    if sum(weights) == 0:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                if f".{SECOND}." in name:
                    parameter.copy_(parameters[name.replace(f".{SECOND}.", f".{FIRST}.")])
    return model


def _formula(layer: Any, weights: Sequence[float], formula: str) -> Tensor:
    a, b = ([part[name].weight.detach().double() for name in (FIRST, SECOND)] for part in (layer.lora_A, layer.lora_B))
    scales = [layer.scaling[name] for name in (FIRST, SECOND)]
    if formula == "nothing":
        total = torch.zeros_like(b[0] @ a[0])
    elif formula == "sum":
        total = sum(w * s * (bi @ ai) for w, s, ai, bi in zip(weights, scales, a, b, strict=True))
    else:
        roots = [math.sqrt(abs(w * s)) for w, s in zip(weights, scales, strict=True)]
        signs = [math.copysign(1.0, w) for w in weights]
        left = sum(root * bi for root, bi in zip(roots, b, strict=True))
        total = left @ sum(sign * root * ai for sign, root, ai in zip(signs, roots, a, strict=True))
    return (total.T if getattr(layer, "fan_in_fan_out", False) else total).float()
