"""Defines fine-tuning methods: which weights train, and on top of which base.

Code that builds, trains or audits a model asks the method for everything specific to it. `Method`
itself is full fine-tuning, `Adapting` is any PEFT adapter, and `Lora` is LoRA with its variants.
torch and PEFT are imported only when a model is built.
"""

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tunegrid.errors import InputError, first_line
from tunegrid.grid.backbones import Head, checkpoint_source, is_part
from tunegrid.grid.recipes import Adapter, Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tunegrid.grid.cells import Cell


ParameterGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParameterGroups, float], "torch.optim.Optimizer"]


def adamw_torch(groups: ParameterGroups, learning_rate: float) -> "torch.optim.Optimizer":
    """Creates torch's fused AdamW."""
    import torch

    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def adamw_bnb_8bit(groups: ParameterGroups, learning_rate: float) -> "torch.optim.Optimizer":
    """Creates bitsandbytes' AdamW with 8-bit moments."""
    import bitsandbytes as bnb

    optimizer: torch.optim.Optimizer = bnb.optim.AdamW8bit(groups, lr=learning_rate)
    return optimizer


OPTIMIZERS: Mapping[str, OptimizerFactory] = {
    "adamw_torch": adamw_torch,
    "adamw_bnb_8bit": adamw_bnb_8bit,
}
TOKEN_ROWS = "trainable_tokens_delta"  # PEFT's name for the trained rows of an embedding


class Measured(NamedTuple):
    """A value that an audit measured and its upper limit; truthy if the value is within it."""

    value: float
    limit: float

    def __bool__(self) -> bool:
        """Checks whether the value is within the limit."""
        return self.value <= self.limit

    @property
    def share(self) -> float:
        """The value as a multiple of the limit; infinite if it exceeds a limit of 0."""
        if self.limit:
            return self.value / self.limit
        return math.inf if self.value else 0.0


def closest_to_limit(values: Iterable[Measured]) -> Measured:
    """The value that is largest relative to its limit; failing values, such as NaN, come first."""
    return max(values, key=lambda measured: (not measured, measured.share))


Answer = tuple[bool | Measured, str] | None  # passed, detail; None if there is nothing to check


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The storage format of the frozen base; the fields are those of `BitsAndBytesConfig`."""

    bnb_4bit_quant_type: str
    bnb_4bit_use_double_quant: bool
    bnb_4bit_compute_dtype: str


@dataclass(frozen=True, kw_only=True)
class Base:
    """Facts about the loaded model that PEFT's config needs, named as in PEFT.

    Attributes:
        modules_to_save: the head's new modules, which every method trains in full.
        trainable_token_indices: the embedding rows to train, by the name of the embedding; None if
            the head adds no token.
        fan_in_fan_out: whether linear layers store weights transposed, as GPT-2's Conv1D does.
    """

    modules_to_save: list[str] | None
    trainable_token_indices: dict[str, list[int]] | None
    fan_in_fan_out: bool


class UpdateHooks:
    """Hooks around updates, for methods such as AdaLoRA; they do nothing unless overridden."""

    shows_early: ClassVar[bool] = True  # `Method.check_model` can pass after the first updates

    def penalty(self, model: "nn.Module") -> "torch.Tensor | None":
        """A term to add to each update's loss; None if there is none."""
        return None

    def plan(self, model: "nn.Module", updates: int) -> None:
        """Called before the first update, with the number of planned updates."""

    def after_step(self, model: "nn.Module", update: int) -> None:
        """Called after each optimizer step, before gradients are cleared; `update` starts at 0."""

    def state_dict(self, model: "nn.Module") -> dict[str, Any]:
        """The state that a resumed run needs for `after_step`, as plain values and tensors."""
        return {}

    def load_state_dict(self, model: "nn.Module", state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""


@dataclass(frozen=True, kw_only=True)
class Method(UpdateHooks):
    """A fine-tuning method; every parameter trains unless a subclass says otherwise.

    Attributes:
        adapts: whether the base is frozen, so that only the method's own parameters and the head's
            new modules train.
        changes_inputs: whether the adapter changes the inputs of its base layer; audits then allow
            for rounding.
        quantization: how the frozen base is quantized; None leaves it as loaded.
        must_move: substrings of parameter names; the method's own parameters whose names contain
            one must change in training.
        rate_factors: factors by which to multiply the recipe's learning rate, by substrings of
            parameter names.
    """

    id: str
    name: str
    quantization: Quantization | None = None
    must_move: tuple[str, ...] = ()
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    adapts: ClassVar[bool] = False
    changes_inputs: ClassVar[bool] = False

    def check(self, recipe: Recipe) -> None:
        """Raises InputError if a recipe does not fit the method."""
        if recipe.adapter is not None and not self.adapts:
            fault = "trains every parameter, but the recipe has an adapter"
            raise InputError(f"method {self.id!r} {fault}")

    def unsupported(self, head: Head) -> str | None:
        """Returns the reason why the method cannot train a model with `head`; None if it can."""
        return None

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """The adapter's settings for the record; None without an adapter."""
        return None

    def targets(self, cell: "Cell") -> tuple[str, ...]:
        """Name suffixes of the layers that must have an adapter."""
        return ()

    def adapt(self, model: "nn.Module", cell: "Cell", base: Base) -> "nn.Module":
        """Adds the adapter; afterwards, only the parameters that train require gradients."""
        return model

    def own_parameters(self, model: "nn.Module") -> frozenset[str]:
        """Names of the method's own parameters, such as an adapter's, including frozen ones."""
        return frozenset()

    def declared_names(self, model: "nn.Module", cell: "Cell") -> frozenset[str]:
        """Names of the parameters that, by the method's definition, must train."""
        return frozenset(name for name, _ in model.named_parameters())

    def group_name(self, name: str) -> str:
        """Maps the name of one of the method's own parameters to its group, such as "lora_A"."""
        return name

    def declared_facts(self, cell: "Cell", layer: str) -> tuple[str, ...]:
        """The facts that `layer_facts` must return for the adapted layer named `layer`."""
        return ()

    def layer_facts(self, layer: Any) -> tuple[str, ...]:
        """Facts about an adapted layer, such as "rank 8" and "scale 2"."""
        return ()

    def contribution(
        self,
        layer: Any,
        cell: "Cell",
        inputs: "torch.Tensor",
    ) -> "torch.Tensor | None":
        """The term that an adapted layer adds to its base's output, without dropout.

        Returns None if the method does not define such a term.
        """
        return None

    def starts_at_zero(self, cell: "Cell") -> bool:
        """True if, by the method's definition, an untrained adapter adds nothing."""
        return False

    def rewrites(self, cell: "Cell") -> tuple[str, ...]:
        """Name suffixes of layers whose pretrained weights the method replaces, as PiSSA does."""
        return ()

    def parameter_groups(self, model: "nn.Module", cell: "Cell") -> ParameterGroups:
        """Groups trainable parameters by learning rate, starting with the recipe's rate.

        Biases and norms have no weight decay.
        """
        recipe = cell.recipe
        groups: dict[float | None, list[nn.Parameter]] = {None: []}  # None: the recipe's rate
        for name, parameter in model.named_parameters():
            factors = [factor for part, factor in self.rate_factors.items() if part in name]
            rate = recipe.learning_rate * factors[0] if factors else None
            if recipe.head_learning_rate is not None and is_part(name, cell.head.new_modules):
                rate = recipe.head_learning_rate
            if parameter.requires_grad:
                groups.setdefault(rate, []).append(parameter)
        parameter_groups: ParameterGroups = []
        for rate, parameters in groups.items():
            own_rate = {} if rate is None else {"lr": rate}
            matrices = [parameter for parameter in parameters if parameter.ndim > 1]
            vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
            decayed = {"params": matrices, "weight_decay": recipe.weight_decay}
            parameter_groups += [
                decayed | own_rate,
                {"params": vectors, "weight_decay": 0.0} | own_rate,
            ]
        return parameter_groups

    def make_optimizer(self, model: "nn.Module", cell: "Cell") -> "torch.optim.Optimizer":
        """Creates the recipe's optimizer for the method's parameter groups."""
        return cell.optimizer(self.parameter_groups(model, cell), cell.recipe.learning_rate)

    def save(self, model: Any, cell: "Cell", folder: Path) -> None:
        """Saves the trained model or its adapter as users of the libraries would."""
        model.save_pretrained(folder)

    def check_model(self, model: "nn.Module", cell: "Cell") -> Answer:
        """Checks, beyond `must_move`, whether this method trained the model.

        Returns None if the method has no such check.
        """
        return None


def head_names(model: "nn.Module", cell: "Cell") -> list[str]:
    """Names of the parameters in the head's new modules, without the originals of PEFT's copies."""
    names = [name for name, _ in model.named_parameters() if ".original_module." not in name]
    return [name for name in names if is_part(name, cell.head.new_modules)]


def exact(tensor: Any) -> "torch.Tensor":
    """A tensor in fp64 on the CPU, so that formulas do not depend on the device."""
    numbers: torch.Tensor = tensor.detach().double().cpu()
    return numbers


def base_weight(layer: Any) -> "torch.Tensor":
    """The fp64 weights (out, in) under an adapted linear layer; 4-bit weights are dequantized."""
    base = layer.get_base_layer()
    weight = base.weight
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return exact(dequantize_4bit(weight.data, weight.quant_state))
    # A layer without `in_features` is transformers' Conv1D.
    return exact(weight) if hasattr(base, "in_features") else exact(weight).T


def get_adapter(recipe: Recipe) -> Adapter:
    """The recipe's adapter; the method's `check` ensures that there is one."""
    assert recipe.adapter, "checked by `check`"
    return recipe.adapter


@dataclass(frozen=True, kw_only=True)
class Adapting(Method):
    """A frozen base with a PEFT adapter, configured by these fields or a subclass's `peft_config`.

    Attributes:
        config: the name of PEFT's config class, such as "IA3Config".
        options: fields of the config that the record lists.
        options_by_backbone: further fields of the config, by backbone.
        layers: suffixes of the names of the layers to adapt, by backbone.
        on_targets: whether to adapt the recipe's target modules instead of `layers`.
        trains_token_rows: whether the config has `trainable_token_indices`, which new tokens need.
        frozen_parts: substrings of the names of the method's own parameters that never train.
    """

    adapts: ClassVar[bool] = True
    on_targets: bool = False
    trains_token_rows: bool = False
    config: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    options_by_backbone: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    frozen_parts: tuple[str, ...] = ()

    def check(self, recipe: Recipe) -> None:
        """Raises InputError if the method needs an adapter and the recipe has none."""
        if self.on_targets and recipe.adapter is None:
            need = "needs an adapter in the recipe: rank, scale and target modules"
            raise InputError(f"method {self.id!r} {need}")

    def unsupported(self, head: Head) -> str | None:
        """Returns the reason why the method cannot train a head's new token; None if it can."""
        if head.new_token and not self.trains_token_rows:
            row = f"the embedding row of the new token {head.new_token}"
            return f"method {self.id!r} cannot train {row}"
        return None

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """The options, and the recipe's target modules if the method adapts them."""
        settings = dict(self.options)
        if self.on_targets:
            settings["target_modules"] = get_adapter(recipe).target_modules
        return settings

    def targets(self, cell: "Cell") -> tuple[str, ...]:
        """The recipe's target modules if `on_targets` is set, otherwise the backbone's `layers`."""
        if self.on_targets:
            return get_adapter(cell.recipe).target_modules
        return self.layers.get(cell.backbone.id, ())

    def config_fields(self, cell: "Cell") -> dict[str, Any]:
        """Fields of PEFT's config besides `options` and those that `peft_config` sets itself."""
        return dict(self.options_by_backbone.get(cell.backbone.id, {}))

    def peft_config(self, cell: "Cell", base: Base) -> Any:
        """PEFT's config for this cell.

        Raises InputError if `config` does not name one of PEFT's config classes.
        """
        import peft

        if not hasattr(peft, self.config):
            hint = "give it a `peft_config` or PEFT's `config`"
            raise InputError(f"method {self.id!r} does not say what its adapter is: {hint}")
        config = getattr(peft, self.config)
        facts = {"target_modules": list(self.targets(cell)), **vars(base)}
        fields = {name: facts[name] for name in facts.keys() & inspect.signature(config).parameters}
        return config(**fields, **self.options, **self.config_fields(cell))

    def adapt(self, model: "nn.Module", cell: "Cell", base: Base) -> "nn.Module":
        """Freezes the base and wraps it in a `PeftModel`; raises InputError if PEFT cannot."""
        import peft

        model.requires_grad_(False)
        pin: dict[str, Any] = {}
        if not cell.profile.random_weights:  # PEFT's Auto classes then load this revision
            pin = checkpoint_source(cell.backbone, cell.profile)[1]
        try:
            config = self.peft_config(cell, base)
            if self.rewrites(cell) and any(parameter.is_meta for parameter in model.parameters()):
                config.init_lora_weights = True  # PiSSA cannot start from meta weights
            with warnings.catch_warnings():
                # The warning concerns the width of norms, which LN tuning does not need.
                warnings.filterwarnings("ignore", "Unsupported layer type")
                peft_model: nn.Module = peft.get_peft_model(model, config, **pin)
        except (TypeError, ValueError) as error:  # an option unknown to PEFT, or a missing target
            fault = f"PEFT refuses its config ({first_line(error)})"
            raise InputError(f"method {self.id!r}: {fault}") from None
        return peft_model

    def own_parameters(self, model: "nn.Module") -> frozenset[str]:
        """Names of the parameters in PEFT's own layers and models, such as rows of new tokens.

        Parameters of the modules that PEFT wraps do not count.
        """
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

        owners = set()
        for name, module in model.named_modules():
            if isinstance(module, PeftModel | BaseTuner | BaseTunerLayer):
                owners.add(name)
        names = set()
        for name, _ in model.named_parameters():
            parts = name.split(".")
            members = [part for i, part in enumerate(parts) if ".".join(parts[:i]) in owners]
            # The member of the innermost owner; PEFT keeps wrapped modules under these names.
            if members and members[-1] not in ("base_model", "model", "base_layer"):
                names.add(name)
        return frozenset(names)

    def declared_names(self, model: "nn.Module", cell: "Cell") -> frozenset[str]:
        """Names of the head's new parameters and of the method's own, except `frozen_parts`."""
        names = set(head_names(model, cell))
        for name in self.own_parameters(model):
            if not any(part in name for part in self.frozen_parts):
                names.add(name)
        return frozenset(names)

    def group_name(self, name: str) -> str:
        """The part before the adapter's name "default": lora_A, trainable_tokens_delta, ..."""
        return name.partition(".default")[0].split(".")[-1]


# Parameters that options add to adapted layers. Options not listed are only compared with PEFT's
# config.
TRACES = {
    "use_dora": "lora_magnitude_vector",
    "kasa_config": "lora_diag",
    "monteclora_config": "lora_monteclora_sampler",
}
SAME_PRODUCT = {"use_rslora", "init_lora_weights"}  # options that keep the layer's formula
KEEP_ZERO = {"use_rslora", "use_dora"}  # options with which a fresh adapter has no effect
REWRITING = ("pissa", "corda", "olora", "loftq", "lora_ga")  # values of `init_lora_weights`


@dataclass(frozen=True, kw_only=True)
class Lora(Adapting):
    """LoRA (Hu et al. 2021), and its variants through `options`, such as {"use_dora": True}."""

    on_targets: bool = True
    trains_token_rows: bool = True
    config: str = "LoraConfig"

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """The recipe's adapter, the options and the rate factors."""
        settings = asdict(get_adapter(recipe)) | dict(self.options)
        if self.rate_factors:
            settings["rate_factors"] = dict(self.rate_factors)
        return settings

    def config_fields(self, cell: "Cell") -> dict[str, Any]:
        """The recipe's rank, scale and dropout."""
        adapter = get_adapter(cell.recipe)
        return {
            "r": adapter.r,
            "lora_alpha": adapter.lora_alpha,
            "lora_dropout": adapter.lora_dropout,
        }

    def declared_facts(self, cell: "Cell", layer: str) -> tuple[str, ...]:
        """Rank, scale and dropout; the options `rank_pattern` and `alpha_pattern` apply."""

        def by_pattern(option: str, default: int) -> Any:
            """Looks up the first pattern that matches the layer's name or a suffix, as in PEFT."""
            for pattern, value in self.options.get(option, {}).items():
                if re.fullmatch(rf"(.*\.)?({pattern})", layer):
                    return value
            return default

        adapter = get_adapter(cell.recipe)
        rank = by_pattern("rank_pattern", adapter.r)
        scale = self._scale(by_pattern("alpha_pattern", adapter.lora_alpha), rank)
        return f"rank {rank}", f"scale {scale:g}", f"dropout {adapter.lora_dropout:g}"

    def _scale(self, alpha: float, rank: int) -> float:
        """The scale: alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023)."""
        return alpha / (math.sqrt(rank) if self.options.get("use_rslora") else rank)

    def contribution(
        self,
        layer: Any,
        cell: "Cell",
        inputs: "torch.Tensor",
    ) -> "torch.Tensor | None":
        """The product scale * B A x for inputs x of shape (..., in), as in equation 3 of LoRA.

        For DoRA (equation 5 of Liu et al. 2024), it is V x - W x, where V is W + scale * B A with
        rows rescaled to learned norms. Returns None for other variants and for layers that are not
        linear.
        """
        from torch import nn

        linear = "default" in layer.lora_A and isinstance(layer.lora_A["default"], nn.Linear)
        if not linear or set(self.options) - SAME_PRODUCT - {"use_dora"}:
            return None
        a = exact(layer.lora_A["default"].weight)
        b = exact(layer.lora_B["default"].weight)
        adapter = get_adapter(cell.recipe)
        scale = self._scale(adapter.lora_alpha, adapter.r)
        product = scale * (exact(inputs) @ a.T @ b.T)
        if self.options.get("use_dora"):
            base = layer.get_base_layer()
            output = exact(base(inputs))
            if base.bias is not None:
                output -= exact(base.bias)
            norms = (base_weight(layer) + scale * (b @ a)).square().sum(1).sqrt()
            magnitudes = exact(layer.lora_magnitude_vector["default"].weight)
            product = magnitudes / norms * (output + product) - output
        return product.float().to(inputs.device)

    def starts_at_zero(self, cell: "Cell") -> bool:
        """True for LoRA, rsLoRA and DoRA, whose B starts at zero; other options may change that."""
        return not set(self.options) - KEEP_ZERO

    def layer_facts(self, layer: Any) -> tuple[str, ...]:
        """Rank, scale and dropout."""
        rate = getattr(layer.lora_dropout["default"], "p", 0.0)
        rank = layer.lora_A["default"].weight.shape[0]
        return f"rank {rank}", f"scale {layer.scaling['default']:g}", f"dropout {rate:g}"

    def rewrites(self, cell: "Cell") -> tuple[str, ...]:
        """The target modules if an initialization such as PiSSA's changes them; otherwise empty."""
        start = str(self.options.get("init_lora_weights"))
        return self.targets(cell) if start.startswith(REWRITING) else ()

    def save(self, model: Any, cell: "Cell", folder: Path) -> None:
        """Saves the adapter so that loading does not repeat an initialization such as PiSSA's."""
        config = model.peft_config["default"]
        start = config.init_lora_weights
        if self.rewrites(cell):
            config.init_lora_weights = True
        super().save(model, cell, folder)
        config.init_lora_weights = start

    def check_model(self, model: "nn.Module", cell: "Cell") -> Answer:
        """Checks whether the model has this variant's options and parameters, and no other's.

        Returns None for plain LoRA if no variant's parameters are found.
        """
        groups = {self.group_name(name) for name in self.own_parameters(model)}
        faults = []
        for option, trace in TRACES.items():
            if option not in self.options and trace in groups:
                faults.append(f"{trace} is there")
        if not self.options and not faults:
            return None
        config = getattr(model, "peft_config", {}).get("default")
        for name, value in self.options.items():
            actual = getattr(config, name, None)
            if is_dataclass(actual) and not isinstance(actual, type):
                actual = asdict(actual)  # PEFT makes it from a mapping
            if actual != value:
                faults.append(f"{name} is {actual!r}, not {value!r}")
            if name in TRACES and TRACES[name] not in groups:
                faults.append(f"no {TRACES[name]}")
        if faults:
            return False, "; ".join(faults)
        return True, f"{', '.join(self.options)}; {', '.join(sorted(groups))}"


# QLoRA was published with NF4 and double quantization (Dettmers et al. 2023); bitsandbytes' own
# default is FP4.
NF4 = Quantization(
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype="bfloat16",
)

LORA = Lora(id="lora", name="LoRA")
QLORA = Lora(id="qlora", name="QLoRA", quantization=NF4)
SFT = Method(id="sft", name="SFT")

METHODS = (LORA, QLORA, SFT)
