"""Methods: what of a model trains, and over which base. In: a cell and its model. Out: the model with what the method adds.

A method owns all that sets it apart; builders, trainers and audits ask it. `Method` itself is full fine-tuning, `Adapting` is
any adapter of PEFT, `Lora` is LoRA and its variants. torch and PEFT are imported when a model is at hand.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lib.errors import InputError
from lib.grid.backbones import Backbone, Head
from lib.grid.optimizers import OptimizerFactory, ParameterGroups
from lib.grid.recipes import Recipe
from lib.grid.tasks import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

TOKEN_ROWS = "trainable_tokens_delta"  # PEFT's name for the trained rows of an embedding
PROMPTS = "prompt_encoder"  # and for learned prompts, which have no tuner with a prefix
Answer = tuple[bool, str] | None  # passed, detail; None where there is nothing to look at


class Setting(Protocol):
    """What a method may ask of the cell that it trains; a `Cell` is one."""

    @property
    def backbone(self) -> Backbone:
        """The pretrained model."""

    @property
    def task(self) -> Task:
        """What is learned."""

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""

    @property
    def head(self) -> Head:
        """What stands on the backbone."""

    @property
    def optimizer(self) -> OptimizerFactory:
        """Makes the recipe's optimizer."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the frozen base is stored; the fields are `BitsAndBytesConfig`'s."""

    bnb_4bit_quant_type: str
    bnb_4bit_use_double_quant: bool
    bnb_4bit_compute_dtype: str


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a PEFT config must be told about the loaded model; the fields are PEFT's.

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
        adapts: the base is frozen; only what the method adds trains, and the head's new modules.
        quantization: how the frozen base is stored; None keeps it as loaded.
    """

    id: str
    name: str
    quantization: Quantization | None = None
    adapts: ClassVar[bool] = False

    def check(self, recipe: Recipe) -> None:
        """Raises InputError where a recipe does not fit the method."""
        if recipe.adapter is not None:
            raise InputError(f"method {self.id!r} trains every parameter, but the recipe has an adapter")

    def unsupported(self, head: Head) -> str | None:
        """Why the method cannot train a model with this head; None where it can."""
        return None

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """What the record says of the adapter; None where there is none."""
        return None

    def targets(self, cell: Setting) -> tuple[str, ...]:
        """Ends of the names of layers that must carry an adapter."""
        return ()

    def adapted(self, model: "nn.Module", cell: Setting, base: Base) -> "nn.Module":
        """The model with what the method adds; only what shall train requires gradients."""
        return model

    def own_parameters(self, model: "nn.Module") -> frozenset[str]:
        """Names of the parameters that the method added."""
        return frozenset()

    def group_of(self, name: str) -> str:
        """Which group one of the method's own parameters belongs to, as "lora_A": each group must move."""
        return name

    def declared_facts(self, cell: Setting) -> tuple[Any, ...]:
        """What every adapted layer must show, in the terms of `layer_facts`."""
        return ()

    def layer_facts(self, layer: Any) -> tuple[Any, ...]:
        """What an adapted layer shows, as rank and scale."""
        return ()

    def parameter_groups(self, model: "nn.Module", cell: Setting) -> ParameterGroups:
        """What trains, in groups for the optimizer. Biases and norms do not decay. The first group has the recipe's rate."""
        trained = [p for p in model.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": cell.recipe.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def make_optimizer(self, model: "nn.Module", cell: Setting) -> "torch.optim.Optimizer":
        """The recipe's optimizer over the method's groups."""
        return cell.optimizer(self.parameter_groups(model, cell), cell.recipe.learning_rate)

    def after_step(self, model: "nn.Module", update: int) -> None:
        """Called after every optimizer step, gradients still in place; `update` counts from 0."""

    def holds_after(self, evidence: Any) -> Answer:
        """Whether the trained model shows that it was this method and no other; `evidence` is what audits see."""
        return None


@dataclass(frozen=True, kw_only=True)
class Adapting(Method):
    """A frozen base with an adapter of PEFT; a subclass gives `peft_config` and `targets`.

    Attributes:
        trains_token_rows: its PEFT config takes `trainable_token_indices`, which a head with a new token needs.
    """

    adapts: ClassVar[bool] = True
    trains_token_rows: ClassVar[bool] = False

    def check(self, recipe: Recipe) -> None:
        """Any recipe will do: the adapter is the method's own."""

    def unsupported(self, head: Head) -> str | None:
        """A head with a new token needs a method that can train the token's row."""
        if head.new_token and not self.trains_token_rows:
            return f"method {self.id!r} cannot train the embedding row of the new token {head.new_token}"
        return None

    def peft_config(self, cell: Setting, base: Base) -> Any:
        """PEFT's config for this cell."""
        raise InputError(f"method {self.id!r} does not say what its adapter is: give it a `peft_config`")

    def adapted(self, model: "nn.Module", cell: Setting, base: Base) -> "nn.Module":
        """PEFT's model over the frozen base; the adapter is drawn anew from the cell's seed."""
        import peft

        model.requires_grad_(False)
        adapted: nn.Module = peft.get_peft_model(model, self.peft_config(cell, base))
        return adapted

    def own_parameters(self, model: "nn.Module") -> frozenset[str]:
        """PEFT names them by the tuner's prefix; a new token's row is one of them, too."""
        prefixes = (getattr(model.base_model, "prefix", PROMPTS), TOKEN_ROWS)
        return frozenset(name for name, _ in model.named_parameters() if any(prefix in name for prefix in prefixes))

    def group_of(self, name: str) -> str:
        """The part of the name behind the adapted layer: lora_A, ia3_l, trainable_tokens_delta."""
        return name.removesuffix(".weight").split(".")[-2]


@dataclass(frozen=True, kw_only=True)
class Lora(Adapting):
    """LoRA (Hu et al. 2021); `options` are the `LoraConfig` fields that make a variant of it, as {"use_dora": True}."""

    trains_token_rows: ClassVar[bool] = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def check(self, recipe: Recipe) -> None:
        """Raises InputError where the recipe has no adapter."""
        if recipe.adapter is None:
            raise InputError(f"method {self.id!r} needs an adapter in the recipe: rank, scale and target modules")

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """The recipe's adapter, and what makes the variant."""
        assert recipe.adapter, "checked by `check`"
        return asdict(recipe.adapter) | dict(self.options)

    def targets(self, cell: Setting) -> tuple[str, ...]:
        """The recipe's."""
        assert cell.recipe.adapter, "checked by `check`"
        return cell.recipe.adapter.target_modules

    def peft_config(self, cell: Setting, base: Base) -> Any:
        """The recipe's adapter with the variant's options."""
        import peft

        assert cell.recipe.adapter, "checked by `check`"
        adapter = asdict(cell.recipe.adapter) | {"target_modules": list(cell.recipe.adapter.target_modules)}
        return peft.LoraConfig(**adapter, **self.options, **vars(base))

    def declared_facts(self, cell: Setting) -> tuple[Any, ...]:
        """Rank, and scale: alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023)."""
        assert cell.recipe.adapter, "checked by `check`"
        rank, alpha = cell.recipe.adapter.r, cell.recipe.adapter.lora_alpha
        return rank, alpha / (math.sqrt(rank) if self.options.get("use_rslora") else rank)

    def layer_facts(self, layer: Any) -> tuple[Any, ...]:
        """Rank and scale."""
        return int(layer.lora_A["default"].weight.shape[0]), layer.scaling["default"]


# NF4 with double quantization is what QLoRA was published with (Dettmers et al. 2023); bitsandbytes' own default is FP4.
NF4 = Quantization(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16")

LORA = Lora(id="lora", name="LoRA")
QLORA = Lora(id="qlora", name="QLoRA", quantization=NF4)
SFT = Method(id="sft", name="SFT")

METHODS = (LORA, QLORA, SFT)
