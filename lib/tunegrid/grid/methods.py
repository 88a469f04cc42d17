"""Methods: which weights train, over which base.

A method owns all that sets it apart; builders, trainers and audits ask it. `Method` itself is full fine-tuning, `Adapting` is
any adapter of PEFT, `Lora` is LoRA and its variants. torch and PEFT are imported when a model is at hand.
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
    """Torch's AdamW, its fused implementation."""
    import torch

    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def adamw_bnb_8bit(groups: ParameterGroups, learning_rate: float) -> "torch.optim.Optimizer":
    """Bitsandbytes' AdamW, whose moments take 8 bits."""
    import bitsandbytes as bnb

    optimizer: torch.optim.Optimizer = bnb.optim.AdamW8bit(groups, lr=learning_rate)
    return optimizer


OPTIMIZERS: Mapping[str, OptimizerFactory] = {"adamw_torch": adamw_torch, "adamw_bnb_8bit": adamw_bnb_8bit}
TOKEN_ROWS = "trainable_tokens_delta"  # PEFT's name for the trained rows of an embedding


class Measured(NamedTuple):
    """A value that an audit measured, and the largest one that passes; true if it does."""

    value: float
    limit: float

    def __bool__(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.limit

    @property
    def share(self) -> float:
        """The value in units of the limit; infinite beyond a limit of 0."""
        if self.limit:
            return self.value / self.limit
        return math.inf if self.value else 0.0


def closest_to_limit(values: Iterable[Measured]) -> Measured:
    """The value with the largest share of its limit; one that does not pass, such as NaN, comes first."""
    return max(values, key=lambda measured: (not measured, measured.share))


Answer = tuple[bool | Measured, str] | None  # passed, detail; None if there is nothing to look at


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the frozen base is stored; the fields are `BitsAndBytesConfig`'s."""

    bnb_4bit_quant_type: str
    bnb_4bit_use_double_quant: bool
    bnb_4bit_compute_dtype: str


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a PEFT config must know of the loaded model; the fields are PEFT's.

    Attributes:
        modules_to_save: the head's new modules, which every method trains in full.
        trainable_token_indices: rows of the embedding to train, by the embedding's name; None without a new token.
        fan_in_fan_out: the model's linear layers store their weights transposed, as GPT-2's Conv1D does.
    """

    modules_to_save: list[str] | None
    trainable_token_indices: dict[str, list[int]] | None
    fan_in_fan_out: bool


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to fine-tune: every parameter trains, unless a subclass says otherwise.

    Attributes:
        adapts: the base is frozen; only what the method adds and the head's new modules train.
        quantization: how the frozen base is stored; None keeps it as loaded.
        must_move: parts of the names of its own parameters, all of which training changes.
        rate_factors: by parts of parameters' names, the peak rate in units of the recipe's, if it is another one.
    """

    id: str
    name: str
    quantization: Quantization | None = None
    must_move: tuple[str, ...] = ()
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    adapts: ClassVar[bool] = False
    shows_early: ClassVar[bool] = True  # `check_model` can tell after the first updates
    changes_inputs: ClassVar[bool] = False  # an adapter changes what its base reads, which a packed base rounds

    def check(self, recipe: Recipe) -> None:
        """Raises InputError if a recipe does not fit the method."""
        if recipe.adapter is not None and not self.adapts:
            raise InputError(f"method {self.id!r} trains every parameter, but the recipe has an adapter")

    def unsupported(self, head: Head) -> str | None:
        """Why the method cannot train a model with this head; None if it can."""
        return None

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """What the record says of the adapter; None if there is none."""
        return None

    def targets(self, cell: "Cell") -> tuple[str, ...]:
        """Ends of the names of layers that must carry an adapter."""
        return ()

    def adapt(self, model: "nn.Module", cell: "Cell", base: Base) -> "nn.Module":
        """The model with what the method adds. Only the parameters that train require gradients."""
        return model

    def own_parameters(self, model: "nn.Module") -> frozenset[str]:
        """Names of the parameters that the method added, frozen ones included."""
        return frozenset()

    def declared_names(self, model: "nn.Module", cell: "Cell") -> frozenset[str]:
        """Names of the parameters that train by the method's definition, whatever requires gradients."""
        return frozenset(name for name, _ in model.named_parameters())

    def group_name(self, name: str) -> str:
        """The group of one of the method's own parameters, as "lora_A". Audits want every group to move."""
        return name

    def declared_facts(self, cell: "Cell", layer: str) -> tuple[str, ...]:
        """What `layer_facts` must return for the adapted layer of this name."""
        return ()

    def layer_facts(self, layer: Any) -> tuple[str, ...]:
        """Facts of an adapted layer, as "rank 8" and "scale 2"."""
        return ()

    def contribution(self, layer: Any, cell: "Cell", inputs: "torch.Tensor") -> "torch.Tensor | None":
        """What an adapted layer must add to its base's output, without dropout; None if the method does not say."""
        return None

    def starts_at_zero(self, cell: "Cell") -> bool:
        """Whether an adapter that was never trained adds nothing, by the method's definition."""
        return False

    def rewrites(self, cell: "Cell") -> tuple[str, ...]:
        """Ends of the names of layers whose pretrained weights the method replaces before training, as PiSSA does."""
        return ()

    def parameter_groups(self, model: "nn.Module", cell: "Cell") -> ParameterGroups:
        """The parameters that train, by rate: the recipe's first. Biases and norms do not decay."""
        recipe = cell.recipe
        groups: dict[float | None, list[nn.Parameter]] = {None: []}  # None: the recipe's, which the schedule holds for
        for name, parameter in model.named_parameters():
            factors = [factor for part, factor in self.rate_factors.items() if part in name]
            rate = recipe.learning_rate * factors[0] if factors else None
            if recipe.head_learning_rate is not None and is_part(name, cell.head.new_modules):
                rate = recipe.head_learning_rate
            if parameter.requires_grad:
                groups.setdefault(rate, []).append(parameter)
        return [
            {"params": [p for p in group if (p.ndim > 1) is decays], "weight_decay": weight_decay}
            | ({} if rate is None else {"lr": rate})
            for rate, group in groups.items()
            for decays, weight_decay in ((True, recipe.weight_decay), (False, 0.0))
        ]

    def make_optimizer(self, model: "nn.Module", cell: "Cell") -> "torch.optim.Optimizer":
        """The recipe's optimizer over the method's groups."""
        return cell.optimizer(self.parameter_groups(model, cell), cell.recipe.learning_rate)

    def penalty(self, model: "nn.Module") -> "torch.Tensor | None":
        """A term that each update's loss gets on top, as AdaLoRA's; None for no such term."""
        return None

    def plan(self, model: "nn.Module", updates: int) -> None:
        """Called before the first update with how many are planned."""

    def after_step(self, model: "nn.Module", update: int) -> None:
        """Called after every optimizer step, before gradients are cleared; `update` counts from 0."""

    def state_dict(self, model: "nn.Module") -> dict[str, Any]:
        """What `after_step` keeps between updates and a resumed run needs: plain values and tensors."""
        return {}

    def load_state_dict(self, model: "nn.Module", state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""

    def save(self, model: Any, cell: "Cell", folder: Path) -> None:
        """Write the trained model, or its adapter, as its users would."""
        model.save_pretrained(folder)

    def check_model(self, model: "nn.Module", cell: "Cell") -> Answer:
        """Whether the trained model shows that this method trained it, beside what must move; None: it shows nothing."""
        return None


def head_names(model: "nn.Module", cell: "Cell") -> list[str]:
    """Names of the parameters of the head's new modules, without the originals of PEFT's copies."""
    names = [name for name, _ in model.named_parameters() if ".original_module." not in name]
    return [name for name in names if is_part(name, cell.head.new_modules)]


def exact(tensor: Any) -> "torch.Tensor":
    """A tensor's numbers in fp64 on the host, where definitions are computed: not where the layer computes."""
    numbers: torch.Tensor = tensor.detach().double().cpu()
    return numbers


def base_weight(layer: Any) -> "torch.Tensor":
    """The exact weights (out, in) below an adapted linear layer, unpacked from 4 bits."""
    base = layer.get_base_layer()
    weight = base.weight
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return exact(dequantize_4bit(weight.data, weight.quant_state))
    return exact(weight) if hasattr(base, "in_features") else exact(weight).T  # transformers' Conv1D


def get_adapter(recipe: Recipe) -> Adapter:
    """The adapter of a recipe that `Method.check` accepted for a method that needs one."""
    assert recipe.adapter, "checked by `check`"
    return recipe.adapter


@dataclass(frozen=True, kw_only=True)
class Adapting(Method):
    """A frozen base with an adapter of PEFT, said by these fields or by a `peft_config` of a subclass.

    Attributes:
        config: the name of PEFT's config, as "IA3Config"; `options` are its fields that a record names.
        options_by_backbone: more of its fields, which a backbone's layers decide.
        layers: ends of the names of the layers that are adapted, by backbone.
        on_targets: the recipe's target modules are adapted instead of such layers.
        trains_token_rows: its config takes `trainable_token_indices`, which a head with a new token needs.
        frozen_parts: parts of the names of its own parameters that it never trains.
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
        """Raises InputError if the recipe has no adapter and the method needs one."""
        if self.on_targets and recipe.adapter is None:
            raise InputError(f"method {self.id!r} needs an adapter in the recipe: rank, scale and target modules")

    def unsupported(self, head: Head) -> str | None:
        """A head with a new token needs a method that can train the token's row."""
        if head.new_token and not self.trains_token_rows:
            return f"method {self.id!r} cannot train the embedding row of the new token {head.new_token}"
        return None

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """The options, and the recipe's target modules where it adapts them."""
        return {**self.options, **({"target_modules": get_adapter(recipe).target_modules} if self.on_targets else {})}

    def targets(self, cell: "Cell") -> tuple[str, ...]:
        """The recipe's target modules, or the backbone's layers."""
        return get_adapter(cell.recipe).target_modules if self.on_targets else self.layers.get(cell.backbone.id, ())

    def config_fields(self, cell: "Cell") -> dict[str, Any]:
        """Fields of PEFT's config beside the options and those that every method gives."""
        return dict(self.options_by_backbone.get(cell.backbone.id, {}))

    def peft_config(self, cell: "Cell", base: Base) -> Any:
        """PEFT's config for this cell. Raises InputError if neither a field nor a subclass says which."""
        import peft

        if not hasattr(peft, self.config):
            raise InputError(f"method {self.id!r} does not say what its adapter is: give it a `peft_config` or PEFT's `config`")
        config = getattr(peft, self.config)
        facts = {"target_modules": list(self.targets(cell)), **vars(base)}
        fields = {name: facts[name] for name in facts.keys() & inspect.signature(config).parameters}
        return config(**fields, **self.options, **self.config_fields(cell))

    def adapt(self, model: "nn.Module", cell: "Cell", base: Base) -> "nn.Module":
        """PEFT's model over the frozen base; the adapter is drawn anew from the cell's seed."""
        import peft

        model.requires_grad_(False)
        # The base's revision, by which PEFT's Auto classes load it again.
        pin = {} if cell.profile.random_weights else checkpoint_source(cell.backbone, cell.profile)[1]
        try:
            config = self.peft_config(cell, base)
            if self.rewrites(cell) and any(parameter.is_meta for parameter in model.parameters()):
                config.init_lora_weights = True  # the meta device has no values that PiSSA or its like could start from
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Unsupported layer type")  # of a norm's width, which is not needed
                peft_model: nn.Module = peft.get_peft_model(model, config, **pin)
        except (TypeError, ValueError) as error:  # an option that PEFT does not know, a target that the model does not have
            raise InputError(f"method {self.id!r}: PEFT refuses its config ({first_line(error)})") from None
        return peft_model

    def own_parameters(self, model: "nn.Module") -> frozenset[str]:
        """All that PEFT's layers and models hold beside the modules they wrap; the row of a new token is one of them."""
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

        owners = {name for name, module in model.named_modules() if isinstance(module, PeftModel | BaseTuner | BaseTunerLayer)}
        names = set()
        for name, _ in model.named_parameters():
            parts = name.split(".")
            members = [part for i, part in enumerate(parts) if ".".join(parts[:i]) in owners]  # of each owner around it
            if members and members[-1] not in ("base_model", "model", "base_layer"):  # where PEFT keeps what it wraps
                names.add(name)
        return frozenset(names)

    def declared_names(self, model: "nn.Module", cell: "Cell") -> frozenset[str]:
        """All that it adds but `frozen_parts`, and the head's new modules: PEFT's copy of one that it wraps."""
        names = set(head_names(model, cell))
        for name in self.own_parameters(model):
            if not any(part in name for part in self.frozen_parts):
                names.add(name)
        return frozenset(names)

    def group_name(self, name: str) -> str:
        """The part of the name before the adapter's own: lora_A, ia3_l, trainable_tokens_delta, prompt_encoder."""
        return name.partition(".default")[0].split(".")[-1]


# Parameters that a variant adds to every adapted layer; an option that leaves no such trace is held to PEFT's config only.
TRACES = {"use_dora": "lora_magnitude_vector", "kasa_config": "lora_diag", "monteclora_config": "lora_monteclora_sampler"}
SAME_PRODUCT = {"use_rslora", "init_lora_weights"}  # options that leave what a layer computes as it is
KEEP_ZERO = {"use_rslora", "use_dora"}  # options that leave a fresh adapter without effect
REWRITING = ("pissa", "corda", "olora", "loftq", "lora_ga")  # values of `init_lora_weights`


@dataclass(frozen=True, kw_only=True)
class Lora(Adapting):
    """LoRA (Hu et al. 2021) and its variants, which `options` make, as {"use_dora": True}."""

    on_targets: bool = True
    trains_token_rows: bool = True
    config: str = "LoraConfig"

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """The recipe's adapter, and what makes the variant."""
        rates = {"rate_factors": dict(self.rate_factors)} if self.rate_factors else {}
        return asdict(get_adapter(recipe)) | dict(self.options) | rates

    def config_fields(self, cell: "Cell") -> dict[str, Any]:
        """The recipe's rank, scale and dropout."""
        adapter = get_adapter(cell.recipe)
        return {"r": adapter.r, "lora_alpha": adapter.lora_alpha, "lora_dropout": adapter.lora_dropout}

    def declared_facts(self, cell: "Cell", layer: str) -> tuple[str, ...]:
        """Rank, scale and dropout; `rank_pattern` and `alpha_pattern` may give a layer others, each by its own keys."""

        def by_pattern(option: str, default: int) -> int:
            """Of the first key, a regular expression, that is the layer's name or whole parts at its end, as PEFT has it."""
            patterns = self.options.get(option, {}).items()
            return next((value for key, value in patterns if re.fullmatch(rf"(.*\.)?({key})", layer)), default)

        adapter = get_adapter(cell.recipe)
        rank = by_pattern("rank_pattern", adapter.r)
        scale = self._scale(by_pattern("alpha_pattern", adapter.lora_alpha), rank)
        return f"rank {rank}", f"scale {scale:g}", f"dropout {adapter.lora_dropout:g}"

    def _scale(self, alpha: float, rank: int) -> float:
        """Alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023)."""
        return alpha / (math.sqrt(rank) if self.options.get("use_rslora") else rank)

    def contribution(self, layer: Any, cell: "Cell", inputs: "torch.Tensor") -> "torch.Tensor | None":
        """Scale x B A x of inputs (..., in), equation 3 of LoRA; None for other layers than linear ones, and other variants.

        DoRA, equation 5 of Liu et al. 2024, gives each output of W + scale x B A its learned norm.
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
        """B starts at zero, and DoRA's norms as those of W; other options may start elsewhere."""
        return not set(self.options) - KEEP_ZERO

    def layer_facts(self, layer: Any) -> tuple[str, ...]:
        """Rank, scale and dropout."""
        rate = getattr(layer.lora_dropout["default"], "p", 0.0)
        rank = layer.lora_A["default"].weight.shape[0]
        return f"rank {rank}", f"scale {layer.scaling['default']:g}", f"dropout {rate:g}"

    def rewrites(self, cell: "Cell") -> tuple[str, ...]:
        """The recipe's target modules, where PiSSA or its like subtracts the adapter's start from the pretrained weights."""
        return self.targets(cell) if str(self.options.get("init_lora_weights")).startswith(REWRITING) else ()

    def save(self, model: Any, cell: "Cell", folder: Path) -> None:
        """Write the adapter; without a start that rewrote the base, or PEFT would rewrite it again on loading."""
        config = model.peft_config["default"]
        start = config.init_lora_weights
        config.init_lora_weights = True if self.rewrites(cell) else start
        super().save(model, cell, folder)
        config.init_lora_weights = start

    def check_model(self, model: "nn.Module", cell: "Cell") -> Answer:
        """PEFT has the variant's options and no other variant's parameters; None for plain LoRA that is plain."""
        groups = {self.group_name(name) for name in self.own_parameters(model)}
        faults = [f"{trace} is there" for option, trace in TRACES.items() if option not in self.options and trace in groups]
        if not self.options and not faults:
            return None
        config = getattr(model, "peft_config", {}).get("default")
        for name, value in self.options.items():
            actual = getattr(config, name, None)
            actual = asdict(actual) if is_dataclass(actual) and not isinstance(actual, type) else actual  # PEFT's, of a mapping
            faults += [] if actual == value else [f"{name} is {actual!r}, not {value!r}"]
            faults += [f"no {TRACES[name]}"] if name in TRACES and TRACES[name] not in groups else []
        return not faults, "; ".join(faults) or f"{', '.join(self.options)}; {', '.join(sorted(groups))}"


# NF4 with double quantization is what QLoRA was published with (Dettmers et al. 2023); bitsandbytes' own default is FP4.
NF4 = Quantization(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16")

LORA = Lora(id="lora", name="LoRA")
QLORA = Lora(id="qlora", name="QLoRA", quantization=NF4)
SFT = Method(id="sft", name="SFT")

METHODS = (LORA, QLORA, SFT)
