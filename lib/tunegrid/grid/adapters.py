"""Methods beside LoRA: its variants, as DoRA, PiSSA and AdaLoRA; vectors, rotations, norms, biases, virtual tokens."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from tunegrid.grid.backbones import Head, Layout, within
from tunegrid.grid.methods import Adapting, Answer, Base, Lora, Method, ParameterGroups, grouped
from tunegrid.grid.recipes import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tunegrid.grid.cells import Cell


@dataclass(frozen=True, kw_only=True)
class Dora(Lora):
    """DoRA (Liu et al. 2024): the magnitude of each output's weights is learned apart from their direction."""

    must_move: ClassVar[tuple[str, ...]] = ("lora_magnitude_vector",)


@dataclass(frozen=True, kw_only=True)
class Pissa(Lora):
    """PiSSA (Meng et al. 2024): the adapter starts as the largest singular directions, which the base loses."""

    def adapted(self, model: "nn.Module", cell: "Cell", base: Base) -> "nn.Module":
        """PEFT's model. Weights on the meta device have no directions: there it has its shape alone."""
        shape = any(parameter.is_meta for parameter in model.parameters())
        return super(Pissa, replace(self, options={}) if shape else self).adapted(model, cell, base)


@dataclass(frozen=True, kw_only=True)
class LoraPlus(Lora):
    """LoRA+ (Hayou et al. 2024): B learns `ratio` times as fast as all else."""

    ratio: float = 16.0

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """The recipe's adapter, and the ratio of rates."""
        return {**(super().settings(recipe) or {}), "loraplus_lr_ratio": self.ratio}

    def parameter_groups(self, model: "nn.Module", cell: "Cell") -> ParameterGroups:
        """All but the matrices B at the recipe's rate, and these at `ratio` times it."""
        fast = {name: p for name, p in model.named_parameters() if "lora_B" in name}
        rest = {name: p for name, p in model.named_parameters() if name not in fast}
        return [*grouped(rest, cell), *grouped(fast, cell, lr=cell.recipe.learning_rate * self.ratio)]

    def rate_factors(self) -> Mapping[str, float]:
        """That of the matrices B."""
        return {"lora_B": self.ratio}


@dataclass(frozen=True, kw_only=True)
class LoraFA(Lora):
    """LoRA-FA (Zhang et al. 2023): A stays as it was drawn, and B's gradient is corrected for it."""

    must_move: ClassVar[tuple[str, ...]] = ("lora_B",)
    must_stay: ClassVar[tuple[str, ...]] = ("lora_A",)

    def make_optimizer(self, model: "nn.Module", cell: "Cell") -> "torch.optim.Optimizer":
        """PEFT's own AdamW, which freezes A. The correction is its own, so no other optimizer will do."""
        from peft.optimizers import create_lorafa_optimizer

        adapter, recipe = cell.recipe.adapter, cell.recipe
        assert adapter, "checked by `check`"
        optimizer: torch.optim.Optimizer = create_lorafa_optimizer(
            model, adapter.r, adapter.lora_alpha, recipe.learning_rate, recipe.weight_decay
        )
        if recipe.head_learning_rate is not None:
            self._part_the_head(optimizer, cell, recipe.head_learning_rate)
        return optimizer

    @staticmethod
    def _part_the_head(optimizer: "torch.optim.Optimizer", cell: "Cell", rate: float) -> None:
        """PEFT puts all parameters into one group, with lists of their own beside them; the head gets a group with its rate."""
        (group,) = optimizer.param_groups
        optimizer.param_groups.clear()
        lists = [key for key in ("params", "names", "scaling_factors") if key in group]
        for settings, of_head in (({}, False), ({"lr": rate}, True)):
            chosen = [i for i, name in enumerate(group["names"]) if within(name, cell.head.new_modules) == of_head]
            optimizer.add_param_group({**group, **settings, **{key: [group[key][i] for i in chosen] for key in lists}})


@dataclass(frozen=True, kw_only=True)
class AdaLora(Lora):
    """AdaLoRA (Zhang et al. 2023): ranks are shared out anew between updates, and singular vectors kept orthogonal.

    Attributes:
        start: ranks at the start, in units of the recipe's rank, which is the mean at the end.
        first, last: the shares of updates before ranks are cut, and after it.
    """

    start: float = 1.5
    first: float = 0.1
    last: float = 0.4
    scale_can_be_reset: ClassVar[bool] = False  # PEFT 0.21.2 resets it to alpha / r, where AdaLoRA's is alpha
    STATE: ClassVar = ("ipt", "exp_avg_ipt", "exp_avg_unc")

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """The recipe's adapter, and PEFT's two ranks."""
        return {**(super().settings(recipe) or {}), **self._ranks(recipe)}

    def _ranks(self, recipe: Recipe) -> dict[str, int]:
        assert recipe.adapter, "checked by `check`"
        return {"init_r": round(recipe.adapter.r * self.start), "target_r": recipe.adapter.r}

    def peft_config(self, cell: "Cell", base: Base) -> Any:
        """PEFT's config; `plan` says when ranks are cut."""
        import peft

        adapter = cell.recipe.adapter
        assert adapter, "checked by `check`"
        return peft.AdaLoraConfig(
            target_modules=list(adapter.target_modules), lora_alpha=adapter.lora_alpha, lora_dropout=adapter.lora_dropout,
            total_step=1, **self._ranks(cell.recipe), **vars(base),
        )  # fmt: skip

    def plan(self, model: "nn.Module", updates: int) -> None:
        """Cut ranks between the first and the last share of the updates, after each one."""
        config: Any = model.peft_config["default"]  # type: ignore[index]
        config.tinit, config.tfinal, config.total_step = round(updates * self.first), round(updates * self.last), updates

    def declared_facts(self, cell: "Cell") -> tuple[str, ...]:
        """The rank that every layer has room for."""
        return (f"rank {self._ranks(cell.recipe)['init_r']}",)

    def layer_facts(self, layer: Any) -> tuple[str, ...]:
        """The rank that a layer has room for."""
        return (f"rank {len(layer.lora_E['default'])}",)

    def contribution(self, layer: Any, cell: "Cell", inputs: "torch.Tensor") -> "torch.Tensor | None":
        """Scale x B E A x of inputs (..., in), divided by the layer's number of ranks, equation 3 of AdaLoRA."""
        a, b, e = (getattr(layer, name)["default"].float() for name in ("lora_A", "lora_B", "lora_E"))
        scale: float = layer.scaling["default"] / (float(layer.ranknum["default"]) + 1e-5)
        product: torch.Tensor = inputs.float() @ (a * e).T @ b.T * scale
        return product

    def penalty(self, model: "nn.Module") -> "torch.Tensor | None":
        """PEFT's weight times the mean distance of A's rows and B's columns from orthonormal ones, equation 4 of AdaLoRA."""
        import torch

        weight = model.peft_config["default"].orth_reg_weight  # type: ignore[index,union-attr]
        products = [
            p @ p.T if "lora_A" in name else p.T @ p
            for name, p in model.named_parameters()
            if p.requires_grad and ("lora_A" in name or "lora_B" in name)
        ]
        gaps = [(product - torch.eye(len(product), device=product.device)).norm() for product in products]
        penalty: torch.Tensor = weight * torch.stack(gaps).mean()
        return penalty

    def after_step(self, model: "nn.Module", update: int) -> None:
        """Let PEFT weigh the ranks and cut them. It counts updates from 0, too."""
        model.base_model.update_and_allocate(update)  # type: ignore[union-attr,operator]

    def state_dict(self, model: "nn.Module") -> dict[str, Any]:
        """How important each rank has been so far."""
        return {name: dict(getattr(model.base_model.rankallocator, name)) for name in self.STATE}  # type: ignore[union-attr]

    def load_state_dict(self, model: "nn.Module", state: Mapping[str, Any]) -> None:
        """Take over what was measured."""
        for name, value in state.items():
            setattr(model.base_model.rankallocator, name, value)  # type: ignore[union-attr]

    def holds_after(self, model: "nn.Module", cell: "Cell") -> Answer:
        """Ranks were cut to the target, on average over the layers."""
        left = [int(p.count_nonzero()) for name, p in model.named_parameters() if "lora_E" in name]
        room, goal = (rank * len(left) for rank in self._ranks(cell.recipe).values())
        return bool(left) and sum(left) <= goal, f"{sum(left)} of {room} ranks are left, where {goal} are the goal"


ORTHOGONAL = 1e-4  # of a block times its transpose, from the unit matrix


@dataclass(frozen=True, kw_only=True)
class OnTargets(Adapting):
    """An adapter on the recipe's target modules."""

    def targets(self, cell: "Cell") -> tuple[str, ...]:
        """The recipe's target modules."""
        assert cell.recipe.adapter, "the zoo's recipes have one"
        return cell.recipe.adapter.target_modules


def _targets(recipe: Recipe) -> dict[str, Any]:
    return {"target_modules": recipe.adapter.target_modules} if recipe.adapter else {}


@dataclass(frozen=True, kw_only=True)
class OnLayers(Adapting):
    """An adapter on layers of its own, without rank and scale.

    Attributes:
        layers: ends of their names, by backbone.
    """

    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """Nothing that a recipe could change."""
        return {}

    def targets(self, cell: "Cell") -> tuple[str, ...]:
        """The backbone's layers."""
        return self.layers[cell.backbone.id]


@dataclass(frozen=True, kw_only=True)
class IA3(OnLayers):
    """IA3 (Liu et al. 2022): one learned vector a layer multiplies keys, values and what the feed-forward layer reads.

    Attributes:
        feedforward: those of `layers` of which the input is multiplied.
    """

    must_move: ClassVar[tuple[str, ...]] = ("ia3_l",)
    feedforward: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def peft_config(self, cell: "Cell", base: Base) -> Any:
        """PEFT's config."""
        import peft

        return peft.IA3Config(
            target_modules=list(self.targets(cell)), feedforward_modules=list(self.feedforward[cell.backbone.id]),
            modules_to_save=base.modules_to_save, fan_in_fan_out=base.fan_in_fan_out,
        )  # fmt: skip

    def contribution(self, layer: Any, cell: "Cell", inputs: "torch.Tensor") -> "torch.Tensor | None":
        """What the vector l makes of inputs (..., in): base(l x) - base(x), or (l - 1) base(x)."""
        vector, base = layer.ia3_l["default"].flatten(), layer.get_base_layer()
        plain: torch.Tensor = base(inputs).float()
        product: torch.Tensor = base(inputs * vector).float() if layer.is_feedforward else plain * vector
        return product - plain

    def unmergeable(self, cell: "Cell") -> str | None:
        """PEFT multiplies no packed weight."""
        return None if self.quantization is None else "PEFT merges no vectors into packed layers"


@dataclass(frozen=True, kw_only=True)
class Vera(OnTargets):
    """VeRA (Kopiczko et al. 2024): all layers share two random matrices, and learn how to scale their ranks and outputs.

    Attributes:
        rank: of the shared matrices.
    """

    must_move: ClassVar[tuple[str, ...]] = ("vera_lambda",)
    rank: int = 64

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """Its rank, and the recipe's target modules."""
        return {"r": self.rank, **_targets(recipe)}

    def peft_config(self, cell: "Cell", base: Base) -> Any:
        """PEFT's config; the shared matrices are drawn from a key of their own, which PEFT saves with the adapter."""
        import peft

        return peft.VeraConfig(
            r=self.rank, target_modules=list(self.targets(cell)), save_projection=True,
            modules_to_save=base.modules_to_save, fan_in_fan_out=base.fan_in_fan_out,
        )  # fmt: skip

    def layer_facts(self, layer: Any) -> tuple[str, ...]:
        """Its rank."""
        return (f"rank {len(layer.vera_lambda_d['default'])}",)

    def declared_facts(self, cell: "Cell") -> tuple[str, ...]:
        """Its rank."""
        return (f"rank {self.rank}",)

    def contribution(self, layer: Any, cell: "Cell", inputs: "torch.Tensor") -> "torch.Tensor | None":
        """Lambda_b B lambda_d A x of inputs (..., in), equation 2 of VeRA."""
        a, b = layer.vera_A["default"][:, : layer.in_features].float(), layer.vera_B["default"][: layer.out_features].float()
        inner = inputs.float() @ a.T * layer.vera_lambda_d["default"]
        product: torch.Tensor = inner @ b.T * layer.vera_lambda_b["default"]
        return product

    def holds_after(self, model: "nn.Module", cell: "Cell") -> Answer:
        """All layers share one pair of matrices, which does not train."""
        layers: list[Any] = [module for module in model.modules() if hasattr(module, "vera_lambda_b")]
        pairs = [(layer.vera_A["default"], layer.vera_B["default"]) for layer in layers]
        shared = {(a.data_ptr(), b.data_ptr()) for a, b in pairs}
        trains = any(a.requires_grad or b.requires_grad for a, b in pairs)
        return len(shared) == 1 and not trains, f"{len(layers)} layers share {len(shared)} pairs of matrices"


@dataclass(frozen=True, kw_only=True)
class OFT(OnTargets):
    """OFT (Qiu et al. 2023): a rotation, in blocks, of what a layer reads.

    Attributes:
        block_size: of the rotations; it divides the width of every target's input.
    """

    must_move: ClassVar[tuple[str, ...]] = ("oft_R",)
    block_size: int = 32

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """Its block size, and the recipe's target modules."""
        return {"oft_block_size": self.block_size, **_targets(recipe)}

    def peft_config(self, cell: "Cell", base: Base) -> Any:
        """PEFT's config. Its default inverts by a series, which at the rates of small models is not a rotation any more."""
        import peft

        return peft.OFTConfig(
            oft_block_size=self.block_size, use_cayley_neumann=False, module_dropout=0.0,
            target_modules=list(self.targets(cell)), modules_to_save=base.modules_to_save, fan_in_fan_out=base.fan_in_fan_out,
        )  # fmt: skip

    def holds_after(self, model: "nn.Module", cell: "Cell") -> Answer:
        """The rotations' blocks are orthogonal."""
        import torch

        rotations: list[Any] = [cast(Any, module).oft_R["default"] for module in model.modules() if hasattr(module, "oft_R")]
        gaps = [1.0] * (not rotations)
        with torch.no_grad():
            for r in rotations:  # (blocks, block, block)
                blocks = r._cayley_batch(r.weight, r.block_size, r.use_cayley_neumann, r.num_cayley_neumann_terms).float()
                gaps.append(float((blocks @ blocks.mT - torch.eye(blocks.shape[-1], device=blocks.device)).abs().max()))
        return max(gaps) <= ORTHOGONAL, f"{len(rotations)} layers, {max(gaps):.0e} from orthogonal"


@dataclass(frozen=True, kw_only=True)
class Norms(OnLayers):
    """LN tuning (Zhao et al. 2023): the norms train, and nothing else."""

    must_move: ClassVar[tuple[str, ...]] = ("ln_tuning_layers",)

    def peft_config(self, cell: "Cell", base: Base) -> Any:
        """PEFT's config."""
        import peft

        return peft.LNTuningConfig(target_modules=list(self.targets(cell)), modules_to_save=base.modules_to_save)

    def adapted(self, model: "nn.Module", cell: "Cell", base: Base) -> "nn.Module":
        """PEFT's model. It warns of layers whose width it does not know, which it does not need here."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type")
            return super().adapted(model, cell, base)


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """BitFit (Ben Zaken et al. 2022): the biases and the new head train."""

    adapts: ClassVar[bool] = True
    must_move: ClassVar[tuple[str, ...]] = ("bias",)

    def check(self, recipe: Recipe) -> None:
        """Any recipe will do: it adds nothing."""

    def adapted(self, model: "nn.Module", cell: "Cell", base: Base) -> "nn.Module":
        """The model itself, in which the biases and the head's new modules train."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(within(name, cell.head.new_modules) or name.endswith("bias"))
        return model

    def own_parameters(self, model: "nn.Module") -> frozenset[str]:
        """The biases."""
        return frozenset(name for name, _ in model.named_parameters() if name.endswith("bias"))

    def group_of(self, name: str) -> str:
        """All biases are one group."""
        return "bias"


@dataclass(frozen=True, kw_only=True)
class VirtualTokens(Adapting):
    """Learned tokens in front of the text, for models that generate.

    Attributes:
        tokens: how many.
    """

    must_move: ClassVar[tuple[str, ...]] = ("",)
    tokens: int = 16

    def unsupported(self, head: Head) -> str | None:
        """A head that does not generate reads the tokens' own states: BERT's classifier then learns nothing."""
        if head.layout is None:
            return "virtual tokens are for models that generate: a classifier or a span head would read them as text"
        return super().unsupported(head)

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """How many tokens."""
        return {"num_virtual_tokens": self.tokens}

    def task_type(self, cell: "Cell") -> str:
        """PEFT's name for how the model generates."""
        return "SEQ_2_SEQ_LM" if cell.head.layout is Layout.ENCODER_DECODER else "CAUSAL_LM"

    def holds_after(self, model: "nn.Module", cell: "Cell") -> Answer:
        """There are as many learned rows as declared, and nothing else trains."""
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        rows = {len(p) for p in trained.values()}
        right = rows == {self.tokens} and set(trained) <= self.own_parameters(model)
        return right, f"{len(trained)} tensors of {', '.join(map(str, sorted(rows)))} rows train"


@dataclass(frozen=True, kw_only=True)
class PromptTuning(VirtualTokens):
    """Prompt tuning (Lester et al. 2021): the tokens are rows of the input embedding."""

    def peft_config(self, cell: "Cell", base: Base) -> Any:
        """PEFT's config. Of an encoder-decoder the encoder alone reads the tokens, as in the paper."""
        import peft

        return peft.PromptTuningConfig(
            task_type=self.task_type(cell), num_virtual_tokens=self.tokens, num_transformer_submodules=1
        )


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(VirtualTokens):
    """Prefix tuning (Li and Liang 2021): the tokens are keys and values of every layer."""

    def peft_config(self, cell: "Cell", base: Base) -> Any:
        """PEFT's config, without the network that the paper trains them through."""
        import peft

        return peft.PrefixTuningConfig(task_type=self.task_type(cell), num_virtual_tokens=self.tokens)
