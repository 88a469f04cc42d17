"""The zoo (`-m zoo`): LoRA, QLoRA, SFT and more PEFT methods, on every micro backbone and task.

The cells of a backbone and task differ only in their rates and the method's own settings. `REFUSED`
says why some cells are left out: libraries cannot train them, or they learn too little.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tunegrid.grid.backbones import Head, Layout, is_part
from tunegrid.grid.cells import Cell, Grid, study
from tunegrid.grid.methods import (
    LORA,
    NF4,
    QLORA,
    SFT,
    Adapting,
    Answer,
    Base,
    Lora,
    Method,
    exact,
    get_adapter,
    head_names,
)
from tunegrid.grid.recipes import GREEDY, RECIPES, Adapter, Recipe, quick_changes

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class AdaLora(Adapting):
    """AdaLoRA (Zhang et al. 2023): cuts the least important ranks during training."""

    config: str = "AdaLoraConfig"
    on_targets: bool = True
    trains_token_rows: bool = True
    frozen_parts: tuple[str, ...] = ("ranknum",)  # the number of remaining ranks
    shows_early: ClassVar[bool] = False  # ranks are cut later
    start: ClassVar[float] = 1.5  # initial rank / the recipe's rank, which is the final mean
    first: ClassVar[float] = 0.1  # share of the updates before the first cut
    last: ClassVar[float] = 0.4  # share of the updates after the last cut

    def _ranks(self, recipe: Recipe) -> dict[str, int]:
        rank = get_adapter(recipe).r
        return {"init_r": round(rank * self.start), "target_r": rank}

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """The recipe's adapter, and the initial and target rank."""
        return asdict(get_adapter(recipe)) | self._ranks(recipe)

    def config_fields(self, cell: Cell) -> dict[str, Any]:
        """The recipe's scale and dropout, and the ranks; `plan` decides when ranks are cut."""
        adapter = get_adapter(cell.recipe)
        scale = {"lora_alpha": adapter.lora_alpha, "lora_dropout": adapter.lora_dropout}
        return {**scale, **self._ranks(cell.recipe), "total_step": 1}

    def plan(self, model: Any, updates: int) -> None:
        """Has PEFT cut ranks after each update, except in the first and last part of training."""
        config = model.peft_config["default"]
        config.tinit = round(updates * self.first)
        config.tfinal = round(updates * self.last)
        config.total_step = updates

    def penalty(self, model: Any) -> "torch.Tensor | None":
        """PEFT's weight times the mean deviation of A's rows and B's columns from orthonormality.

        This is PEFT's form of equation 4 of AdaLoRA.
        """
        import torch

        gaps = []
        for name, parameter in model.named_parameters():
            matrix = name.partition("lora_")[2][:1]
            if not parameter.requires_grad or matrix not in ("A", "B"):
                continue
            product = parameter @ parameter.T if matrix == "A" else parameter.T @ parameter
            gaps.append((product - torch.eye(len(product), device=product.device)).norm())
        weight = model.peft_config["default"].orth_reg_weight
        penalty: torch.Tensor = weight * torch.stack(gaps).mean()
        return penalty

    def after_step(self, model: Any, update: int) -> None:
        """Lets PEFT update importance scores and cut ranks; `update` starts at 0, as in PEFT."""
        model.base_model.update_and_allocate(update)

    def state_dict(self, model: Any) -> dict[str, Any]:
        """The importance scores so far, by which PEFT chooses the ranks to cut."""
        state = vars(model.base_model.rankallocator)
        return {name: dict(state[name]) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}

    def load_state_dict(self, model: Any, state: Mapping[str, Any]) -> None:
        """Restores the importance scores."""
        vars(model.base_model.rankallocator).update(state)

    def contribution(self, layer: Any, cell: Cell, inputs: "torch.Tensor") -> "torch.Tensor":
        """P Lambda Q x (equation 3 of AdaLoRA), scaled by alpha / initial rank."""
        q = exact(layer.lora_A["default"])
        p = exact(layer.lora_B["default"])
        singular_values = exact(layer.lora_E["default"]).flatten()
        scale = get_adapter(cell.recipe).lora_alpha / self._ranks(cell.recipe)["init_r"]
        product = (exact(inputs) @ q.T * singular_values) @ p.T
        return (scale * product).float().to(inputs.device)

    def starts_at_zero(self, cell: Cell) -> bool:
        """True, because all singular values start at zero."""
        return True

    def check_model(self, model: "nn.Module", cell: Cell) -> Answer:
        """Checks whether the layers' mean rank was cut to the target."""
        ranks = []
        for name, parameter in model.named_parameters():
            if "lora_E" in name:
                ranks.append(int(parameter.count_nonzero()))
        left = sum(ranks)
        layer_ranks = self._ranks(cell.recipe)
        initial = layer_ranks["init_r"] * len(ranks)
        goal = layer_ranks["target_r"] * len(ranks)
        detail = f"{left} of {initial} ranks are left; the goal is {goal}"
        return bool(ranks) and left <= goal, detail


@dataclass(frozen=True, kw_only=True)
class Ia3(Adapting):
    """IA3 (Liu et al. 2022): learned vectors scale outputs, or a feed-forward layer's input."""

    config: str = "IA3Config"
    changes_inputs: ClassVar[bool] = True

    def declared_facts(self, cell: Cell, layer: str) -> tuple[str, ...]:
        """A fact that says whether the layer's vector scales its input or its output."""
        fields = self.config_fields(cell)
        return (SIDES[is_part(layer, fields["feedforward_modules"])],)

    def layer_facts(self, layer: Any) -> tuple[str, ...]:
        """Whether the layer's vector scales its input or its output, as its shape shows."""
        return (SIDES[layer.ia3_l["default"].shape[0] == 1],)

    def contribution(self, layer: Any, cell: Cell, inputs: "torch.Tensor") -> "torch.Tensor":
        """The vector's effect: (l - 1) W x, or W (l x) - W x (section 3.3 of the paper)."""
        vector = layer.ia3_l["default"]
        base = layer.get_base_layer()
        output = exact(base(inputs))
        if vector.shape[0] == 1:
            scaled = exact(inputs) * exact(vector).flatten()
            product = exact(base(scaled.to(inputs))) - output
        else:
            product = (exact(vector).flatten() - 1) * output
        return product.float().to(inputs.device)

    def starts_at_zero(self, cell: Cell) -> bool:
        """True, because all vectors start at one, which changes nothing."""
        return True


SIDES = {True: "scales its input", False: "scales its output"}


@dataclass(frozen=True, kw_only=True)
class Vera(Adapting):
    """VeRA (Kopiczko et al. 2024): layers share two random matrices and learn to scale them."""

    config: str = "VeraConfig"
    on_targets: bool = True

    def contribution(self, layer: Any, cell: Cell, inputs: "torch.Tensor") -> "torch.Tensor":
        """Lambda_b B Lambda_d A x (equation 2 of VeRA), with the layer's slices of A and B."""
        a = exact(layer.vera_A["default"])
        b = exact(layer.vera_B["default"])
        by_rank = exact(layer.vera_lambda_d["default"])
        by_output = exact(layer.vera_lambda_b["default"])
        ranks = exact(inputs) @ a[:, : inputs.shape[-1]].T * by_rank
        product = ranks @ b[: len(by_output)].T * by_output
        return product.float().to(inputs.device)

    def starts_at_zero(self, cell: Cell) -> bool:
        """True, because the scales of all outputs start at zero."""
        return True


@dataclass(frozen=True, kw_only=True)
class Oft(Adapting):
    """OFT (Qiu et al. 2023): learns a block-diagonal rotation of each layer's input."""

    config: str = "OFTConfig"
    changes_inputs: ClassVar[bool] = True
    on_targets: bool = True

    def contribution(self, layer: Any, cell: Cell, inputs: "torch.Tensor") -> "torch.Tensor":
        """W R x - W x, where R has blocks (I + Q) (I - Q)^-1 with learned skew-symmetric Q."""
        import torch

        weights = exact(layer.oft_R["default"].weight)  # (blocks, values above the diagonal)
        size: int = self.options["oft_block_size"]
        above = torch.triu_indices(size, size, 1)
        skew = torch.zeros(len(weights), size, size, dtype=weights.dtype)
        skew[:, above[0], above[1]] = weights
        skew = skew - skew.mT
        unit = torch.eye(size, dtype=weights.dtype)
        blocks = (unit + skew) @ torch.linalg.inv(unit - skew)
        columns = exact(inputs).reshape(*inputs.shape[:-1], len(blocks), size, 1)
        rotated = (blocks @ columns).reshape(inputs.shape)
        base = layer.get_base_layer()
        product = exact(base(rotated.to(inputs))) - exact(base(inputs))
        return product.float().to(inputs.device)

    def starts_at_zero(self, cell: Cell) -> bool:
        """True, because all rotations start as the identity."""
        return True


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """BitFit (Ben Zaken et al. 2022): only the biases and the head's new modules train."""

    adapts: ClassVar[bool] = True
    must_move: tuple[str, ...] = ("bias",)

    def adapt(self, model: "nn.Module", cell: Cell, base: Base) -> "nn.Module":
        """Lets only the biases and the head's new modules train."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_part(name, cell.head.new_modules) or name.endswith("bias"))
        return model

    def own_parameters(self, model: "nn.Module") -> frozenset[str]:
        """The biases."""
        return frozenset(name for name, _ in model.named_parameters() if name.endswith("bias"))

    def declared_names(self, model: "nn.Module", cell: Cell) -> frozenset[str]:
        """The names of the biases and of all parameters in the head's new modules."""
        return self.own_parameters(model) | frozenset(head_names(model, cell))

    def group_name(self, name: str) -> str:
        """Always "bias": all biases form one group."""
        return "bias"


# Liu et al. 2022: learned vectors multiply the keys, the values and the input of the feed-forward
# layer. PEFT's own table lists the same layers for these architectures.
IA3: Mapping[str, Any] = {
    "must_move": ("ia3_l",),
    "layers": {
        "bert": ("key", "value", "output.dense"),
        "gpt2": ("c_attn", "mlp.c_proj"),
        "t5": ("k", "v", "wo"),
    },
    "options_by_backbone": {
        "bert": {"feedforward_modules": ["output.dense"]},
        "gpt2": {"feedforward_modules": ["mlp.c_proj"]},
        "t5": {"feedforward_modules": ["wo"]},
    },
}
NORMS = {
    "bert": ("LayerNorm",),
    "gpt2": ("ln_1", "ln_2", "ln_f"),
    "t5": ("layer_norm", "final_layer_norm"),
}
DORA: Mapping[str, Any] = {
    "options": {"use_dora": True},
    "must_move": ("lora_magnitude_vector",),
}
# PEFT's default inverts by a series, whose result is no rotation at the rates of small models.
OFT: Mapping[str, Any] = {
    "must_move": ("oft_R",),
    "options": {"oft_block_size": 32, "use_cayley_neumann": False},
}
# Learned rows in front of the input embeddings. In an encoder-decoder, only the encoder reads them,
# as in the paper.
SEQ2SEQ = {"task_type": "SEQ_2_SEQ_LM"}
PROMPT: Mapping[str, Any] = {
    "config": "PromptTuningConfig",
    "must_move": ("prompt_encoder",),
    "options": {"num_virtual_tokens": 16, "num_transformer_submodules": 1},
    "options_by_backbone": {"bert": SEQ2SEQ, "gpt2": {"task_type": "CAUSAL_LM"}, "t5": SEQ2SEQ},
}
METHODS: tuple[Method, ...] = (
    LORA,
    QLORA,
    SFT,
    Lora(id="rslora", name="rsLoRA", options={"use_rslora": True}),  # Kalajdzievski 2023
    # Liu et al. 2024: magnitudes are learned separately from directions.
    Lora(id="dora", name="DoRA", **DORA),
    # Meng et al. 2024: training starts from the largest singular directions.
    Lora(id="pissa", name="PiSSA", options={"init_lora_weights": "pissa"}),
    # Hayou et al. 2024: B learns 16 times as fast.
    Lora(id="loraplus", name="LoRA+", rate_factors={"lora_B": 16.0}),
    AdaLora(id="adalora", name="AdaLoRA"),
    Ia3(id="ia3", name="IA3", **IA3),
    Vera(id="vera", name="VeRA", options={"r": 64}, must_move=("vera_lambda",)),
    Oft(id="oft", name="OFT", **OFT),
    # Zhao 2023
    Adapting(
        id="ln",
        name="LN tuning",
        config="LNTuningConfig",
        layers=NORMS,
        must_move=("ln_tuning_layers",),
    ),
    BitFit(id="bitfit", name="BitFit"),
    # Lester et al. 2021
    Adapting(id="prompt", name="prompt tuning", **PROMPT),
    Lora(id="qdora", name="QDoRA", quantization=NF4, **DORA),
    Oft(id="qoft", name="QOFT", quantization=NF4, **OFT),
    Ia3(id="qia3", name="IA3 over NF4", quantization=NF4, **IA3),
)

# The layers that LoRA's paper adapts: queries and values, which GPT-2 keeps in a single layer.
TARGETS = {"bert": ("query", "value"), "gpt2": ("c_attn",), "t5": ("q", "v")}
BERT_SUM = ("query", "key", "value", "output.dense")  # BERT2BERT's new cross-attention needs more
RANK = 8  # PEFT's default
LORA_ALPHA = 16  # gives a scale of 2, as LoRA has in the study's GPT-2 and T5 recipes

# Each method's rate as a multiple of LoRA's. Papers tune other models for thousands of updates.
# Where they name rates, the same proportion is used. "Here" marks what a few updates of micro
# backbones needed.
RATES: Mapping[str, float] = {
    "sft": 0.25,  # BERT's paper: 2e-5 to 5e-5 for all weights
    "rslora": 0.5,  # here: its scale is 2.8 times LoRA's at rank 8
    "loraplus": 0.3,  # here: B learns 16 times as fast, as in its paper
    "pissa": 0.5,  # here: it starts from the largest singular directions, not from zero
    "adalora": 10.0,  # its paper: up to several times LoRA's; here: A, B and E start near zero
    "ia3": 10.0,  # its paper: 3e-3
    "qia3": 10.0,
    "vera": 10.0,  # its paper: an order of magnitude above LoRA's
    "oft": 0.8,  # here: at LoRA's own rate, one summary in ten never ended
    "qoft": 0.8,
    "ln": 5.0,  # here
    "bitfit": 2.0,  # its paper: 1e-4 to 9e-4
    "prompt": 100.0,  # its paper: 0.3, with Adafactor
}


class QuickPlan(NamedTuple):
    """The training plan for the cells of one backbone and task, in batches of 16 rows."""

    updates: int
    rate: float  # LoRA's rate
    head_rate: float | None


# Found by hand with the test scores in view. Every method gets the same rate for the head, because
# at the rate of IA3 or VeRA the head would do all the work. GPT-2's head has a high rate for
# classification: at a low rate, no method learns at some seeds.
QUICK: Mapping[tuple[str, str], QuickPlan] = {
    ("bert", "sa"): QuickPlan(60, 5e-3, 2e-3),
    ("bert", "qa"): QuickPlan(60, 3e-3, 2e-3),
    ("bert", "sum"): QuickPlan(60, 5e-3, None),
    ("gpt2", "sa"): QuickPlan(50, 4e-3, 4e-3),
    ("gpt2", "qa"): QuickPlan(80, 6e-3, 4e-4),
    ("gpt2", "sum"): QuickPlan(30, 4e-3, None),
    ("t5", "sa"): QuickPlan(70, 8e-3, 3e-4),
    ("t5", "qa"): QuickPlan(80, 3e-3, 1e-4),
    ("t5", "sum"): QuickPlan(30, 5e-3, None),
}

# GPT-2's separator is its pretrained end token, because few methods can train the row of a new
# token.
GPT2_SUM = Head(architecture="GPT2LMHeadModel", tied_modules=("lm_head",), layout=Layout.SEPARATED)

CONV1D = "PEFT rotates layers of torch only, and GPT-2's are transformers' Conv1D"
GENERATORS_ONLY = "virtual tokens are for models that generate"
READ_AS_TEXT = f"{GENERATORS_ONLY}: a classifier or a span head would read them as text"
NO_PROMPTS = (
    "PEFT reads the layers from the model's config, and BERT2BERT's config describes two models"
)
# PEFT 0.21.2 passes the cache under a name that transformers 5.24 has changed:
# reports/upstream/peft_prompts.py.
NO_CACHE = "since it does not find transformers' cache"
REPEATED = f"PEFT puts its prompt in front of every generated token again, {NO_CACHE}"
# Libraries can train these cells, but so few weights do not learn: after the cell's updates,
# rougeLsum was 25 (IA3), 17 (LN) and 5 (BitFit).
NEW_PARTS = (
    "it changes too little to train BERT2BERT's new cross-attention within a quick cell's updates"
)
# Why the zoo refuses a cell, by method and backbone, and by task if the reason depends on it.
REFUSED: Mapping[tuple[str, ...], str] = {
    ("oft", "gpt2"): CONV1D,
    ("bitfit", "t5"): "T5 has no biases",
    ("prompt", "bert", "sa"): READ_AS_TEXT,
    ("prompt", "bert", "qa"): READ_AS_TEXT,
    ("prompt", "gpt2", "sa"): READ_AS_TEXT,
    ("prompt", "gpt2", "qa"): READ_AS_TEXT,
    ("prompt", "t5", "sa"): READ_AS_TEXT,
    ("prompt", "t5", "qa"): READ_AS_TEXT,
    ("prompt", "bert", "sum"): NO_PROMPTS,
    ("prompt", "gpt2", "sum"): REPEATED,
    ("ia3", "bert", "sum"): NEW_PARTS,
    ("qia3", "bert", "sum"): NEW_PARTS,
    ("ln", "bert", "sum"): NEW_PARTS,
    ("bitfit", "bert", "sum"): NEW_PARTS,
}


def zoo() -> Grid:
    """The zoo's grid, whose cells run only with quick recipes.

    Each full recipe is the study's SFT recipe for the backbone and task, plus the zoo's adapter.
    """
    grid = replace(study(), methods={method.id: method for method in METHODS})
    grid.recipes = {}
    grid.quick = {}
    grid.heads = {}
    for backbone, task, method in product(grid.backbones, grid.tasks, METHODS):
        pair = (backbone, task)
        cell_id = f"{backbone}_{task}_{method.id}"
        adapter = None
        if method.adapts:
            targets = BERT_SUM if pair == ("bert", "sum") else TARGETS[backbone]
            adapter = Adapter(
                r=RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=targets
            )
        grid.recipes[cell_id] = replace(
            RECIPES[f"{backbone}_{task}_sft"],
            trainable_params=None,
            total_params=None,
            adapter=adapter,
            optim="adamw_torch",
        )
        plan = QUICK[pair]
        quick = {
            **quick_changes(f"{backbone}_{task}_lora"),
            "max_steps": plan.updates,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 1,
            "warmup_ratio": 0.1,
            "learning_rate": plan.rate * RATES.get(method.id, 1.0),
            "head_learning_rate": plan.head_rate if method.adapts else None,
            "precision": "fp32",
            "gradient_checkpointing": False,
        }
        if task == "sum":
            quick["generation"] = GREEDY  # there are many cells, and beams take time
        grid.quick[cell_id] = quick
        reason = REFUSED.get((method.id, backbone)) or REFUSED.get((method.id, backbone, task))
        if reason:
            grid.refused[cell_id] = reason
        if pair == ("gpt2", "sum"):
            grid.heads[cell_id] = GPT2_SUM
    return grid
