"""Variants of LoRA, each with what sets it apart.

Each says in `holds_after` by what it is told from plain LoRA in the trained model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tunegrid.grid.backbones import within
from tunegrid.grid.methods import Answer, Base, Lora, ParameterGroups, grouped
from tunegrid.grid.recipes import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tunegrid.grid.cells import Cell
    from tunegrid.run.audits.evidence import Evidence


@dataclass(frozen=True, kw_only=True)
class Dora(Lora):
    """DoRA (Liu et al. 2024): the magnitude of each output's weights is learned apart from their direction."""

    def holds_after(self, evidence: "Evidence") -> Answer:
        """PEFT's option is set, and the magnitudes of all layers moved."""
        names = {name for name in evidence.own if "lora_magnitude_vector" in name}
        if not names <= evidence.moved:
            return False, f"{len(names - evidence.moved)} of {len(names)} magnitudes stayed where they started"
        return super().holds_after(evidence)


@dataclass(frozen=True, kw_only=True)
class Pissa(Lora):
    """PiSSA (Meng et al. 2024): the adapter starts as the largest singular directions, which the base loses."""

    def adapted(self, model: "nn.Module", cell: "Cell", base: Base) -> "nn.Module":
        """PEFT's model. Weights on the meta device have no directions: there it has its shape alone."""
        shape = any(parameter.is_meta for parameter in model.parameters())
        return super(Pissa, replace(self, options={}) if shape else self).adapted(model, cell, base)

    def holds_after(self, evidence: "Evidence") -> Answer:
        """PEFT's option is set, and the target layers' weights are no longer the checkpoint's."""
        targets = [name for name in evidence.trainer.before if self._is_base_of_target(name, evidence.cell)]
        kept = [name for name in targets if name not in evidence.not_from_checkpoint]
        if kept or not targets:
            return False, f"{len(kept)} of {len(targets)} target weights are still the checkpoint's, {kept[:1]} among them"
        return super().holds_after(evidence)

    def _is_base_of_target(self, name: str, cell: "Cell") -> bool:
        return name.endswith("base_layer.weight") and any(f".{target}." in name for target in self.targets(cell))


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

    def holds_after(self, evidence: "Evidence") -> Answer:
        """B's peak rate is `ratio` times A's."""
        rates = {id(p): group["initial_lr"] for group in evidence.trainer.optimizer.param_groups for p in group["params"]}
        matrices = {letter: {rates.get(id(p)) for name, p in evidence.trainer.stepped.items() if f"lora_{letter}" in name}
                    for letter in "AB"}  # fmt: skip
        right = {rate * self.ratio for rate in matrices["A"] if rate is not None}
        same = bool(right) and matrices["B"] == right
        return same, f"rates of A {_shown(matrices['A'])}, of B {_shown(matrices['B'])}"


def _shown(rates: set[Any]) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted(rate for rate in rates if rate is not None)) or "none"


@dataclass(frozen=True, kw_only=True)
class LoraFA(Lora):
    """LoRA-FA (Zhang et al. 2023): A stays as it was drawn, and B's gradient is corrected for it."""

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

    def holds_after(self, evidence: "Evidence") -> Answer:
        """No A moved, and every B did."""
        stray = {name for name in evidence.own if "lora_A" in name} & evidence.moved
        still = {name for name in evidence.own if "lora_B" in name} - evidence.moved
        return not stray and not still, f"{len(stray)} matrices A moved, {len(still)} matrices B did not"


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

    def holds_after(self, evidence: "Evidence") -> Answer:
        """Ranks were cut to the target, on average over the layers."""
        kept = [int(p.count_nonzero()) for name, p in evidence.trainer.parameters.items() if "lora_E" in name]
        room, goal = (rank * len(kept) for rank in self._ranks(evidence.cell.recipe).values())
        return bool(kept) and sum(kept) <= goal, f"{sum(kept)} of {room} ranks are left, where {goal} are the goal"
