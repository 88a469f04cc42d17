"""The zoo: LoRA, QLoRA, SFT and more of PEFT's methods on every backbone and task; `-m zoo` runs them on micro backbones.

Cells of a backbone and task differ by rate and the method's own settings alone. `REFUSED` has what a library cannot train.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

from tunegrid.grid.backbones import Head, Layout, is_part
from tunegrid.grid.cells import Cell, Grid, study
from tunegrid.grid.methods import LORA, NF4, QLORA, SFT, Adapting, Answer, Base, Lora, Method, exact, get_adapter, head_names
from tunegrid.grid.recipes import GREEDY, RECIPES, Adapter, Recipe, quick_changes

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class AdaLora(Adapting):
    """AdaLoRA (Zhang et al. 2023): ranks are shared out anew between updates, and singular vectors kept orthogonal."""

    config: str = "AdaLoraConfig"
    on_targets: bool = True
    trains_token_rows: bool = True
    frozen_parts: tuple[str, ...] = ("ranknum",)  # how many ranks are left
    shows_early: ClassVar[bool] = False  # ranks are cut later
    start: ClassVar[float] = 1.5  # ranks at the start, in units of the recipe's rank, which is the mean at the end
    first: ClassVar[float] = 0.1  # share of the updates before ranks are cut
    last: ClassVar[float] = 0.4  # and after it

    def _ranks(self, recipe: Recipe) -> dict[str, int]:
        rank = get_adapter(recipe).r
        return {"init_r": round(rank * self.start), "target_r": rank}

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """The recipe's adapter, and PEFT's two ranks."""
        return asdict(get_adapter(recipe)) | self._ranks(recipe)

    def config_fields(self, cell: Cell) -> dict[str, Any]:
        """The recipe's scale and dropout, and the ranks; `plan` says when they are cut."""
        adapter = get_adapter(cell.recipe)
        scale = {"lora_alpha": adapter.lora_alpha, "lora_dropout": adapter.lora_dropout}
        return {**scale, **self._ranks(cell.recipe), "total_step": 1}

    def plan(self, model: Any, updates: int) -> None:
        """Cut ranks between the first and the last share of the updates, after each one."""
        config = model.peft_config["default"]
        config.tinit, config.tfinal, config.total_step = round(updates * self.first), round(updates * self.last), updates

    def penalty(self, model: Any) -> "torch.Tensor | None":
        """PEFT's weight times the mean distance of A's rows and B's columns from orthonormal ones, equation 4 of AdaLoRA."""
        import torch

        parts = [(name.partition("lora_")[2][:1], p) for name, p in model.named_parameters() if p.requires_grad]
        products = [p @ p.T if part == "A" else p.T @ p for part, p in parts if part in ("A", "B")]
        gaps = [(product - torch.eye(len(product), device=product.device)).norm() for product in products]
        penalty: torch.Tensor = model.peft_config["default"].orth_reg_weight * torch.stack(gaps).mean()
        return penalty

    def after_step(self, model: Any, update: int) -> None:
        """Let PEFT weigh the ranks and cut them. It counts updates from 0, too."""
        model.base_model.update_and_allocate(update)

    def state_dict(self, model: Any) -> dict[str, Any]:
        """How important each rank has been so far."""
        return {name: dict(getattr(model.base_model.rankallocator, name)) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}

    def load_state_dict(self, model: Any, state: Mapping[str, Any]) -> None:
        """Take over what was measured."""
        vars(model.base_model.rankallocator).update(state)

    def contribution(self, layer: Any, cell: Cell, inputs: "torch.Tensor") -> "torch.Tensor":
        """P Lambda Q x, equation 3 of AdaLoRA, times alpha over the ranks at the start, as in its authors' code."""
        q = exact(layer.lora_A["default"])
        p = exact(layer.lora_B["default"])
        singular_values = exact(layer.lora_E["default"]).flatten()
        scale = get_adapter(cell.recipe).lora_alpha / self._ranks(cell.recipe)["init_r"]
        product = (exact(inputs) @ q.T * singular_values) @ p.T
        return (scale * product).float().to(inputs.device)

    def starts_at_zero(self, cell: Cell) -> bool:
        """All singular values start at zero."""
        return True

    def check_model(self, model: "nn.Module", cell: Cell) -> Answer:
        """Ranks were cut to the target, on average over the layers."""
        ranks = [int(p.count_nonzero()) for name, p in model.named_parameters() if "lora_E" in name]
        room, goal = (rank * len(ranks) for rank in self._ranks(cell.recipe).values())
        return bool(ranks) and sum(ranks) <= goal, f"{sum(ranks)} of {room} ranks are left; the goal is {goal}"


@dataclass(frozen=True, kw_only=True)
class Ia3(Adapting):
    """IA3 (Liu et al. 2022): one learned vector a layer multiplies its output, or what a feed-forward layer reads."""

    config: str = "IA3Config"
    changes_inputs: ClassVar[bool] = True

    def declared_facts(self, cell: Cell, layer: str) -> tuple[str, ...]:
        """The side that its vector multiplies."""
        fields = self.config_fields(cell)
        return (SIDES[is_part(layer, fields["feedforward_modules"])],)

    def layer_facts(self, layer: Any) -> tuple[str, ...]:
        """The side that its vector multiplies, by the vector's shape."""
        return (SIDES[layer.ia3_l["default"].shape[0] == 1],)

    def contribution(self, layer: Any, cell: Cell, inputs: "torch.Tensor") -> "torch.Tensor":
        """What multiplying changes: (l - 1) W x, or W (l x) - W x (section 3.3 of the paper)."""
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
        """All vectors start at one, which changes nothing."""
        return True


SIDES = {True: "scales its input", False: "scales its output"}


@dataclass(frozen=True, kw_only=True)
class Vera(Adapting):
    """VeRA (Kopiczko et al. 2024): all layers share two random matrices, and learn how to scale their ranks and outputs."""

    config: str = "VeraConfig"
    on_targets: bool = True

    def contribution(self, layer: Any, cell: Cell, inputs: "torch.Tensor") -> "torch.Tensor":
        """Scales of outputs x B x scales of ranks x A x (equation 2 of VeRA), by the layer's part of A and B."""
        a = exact(layer.vera_A["default"])
        b = exact(layer.vera_B["default"])
        by_rank = exact(layer.vera_lambda_d["default"])
        by_output = exact(layer.vera_lambda_b["default"])
        ranks = exact(inputs) @ a[:, : inputs.shape[-1]].T * by_rank
        product = ranks @ b[: len(by_output)].T * by_output
        return product.float().to(inputs.device)

    def starts_at_zero(self, cell: Cell) -> bool:
        """The scales of all outputs start at zero."""
        return True


@dataclass(frozen=True, kw_only=True)
class Oft(Adapting):
    """OFT (Qiu et al. 2023): learned rotations, in blocks whose size divides the width, of what a layer reads."""

    config: str = "OFTConfig"
    changes_inputs: ClassVar[bool] = True
    on_targets: bool = True

    def contribution(self, layer: Any, cell: Cell, inputs: "torch.Tensor") -> "torch.Tensor":
        """W R x - W x; R has Cayley's blocks (I + Q) (I - Q)^-1, Q skew with the weights above its diagonal."""
        import torch

        weights = exact(layer.oft_R["default"].weight)  # (blocks, values above the diagonal)
        size: int = self.options["oft_block_size"]
        above = torch.triu_indices(size, size, 1)
        skew = torch.zeros(len(weights), size, size, dtype=weights.dtype)
        skew[:, above[0], above[1]] = weights
        skew = skew - skew.mT
        unit = torch.eye(size, dtype=weights.dtype)
        blocks = (unit + skew) @ torch.linalg.inv(unit - skew)
        parts = exact(inputs).reshape(*inputs.shape[:-1], len(blocks), size, 1)
        rotated = (blocks @ parts).reshape(inputs.shape)
        base = layer.get_base_layer()
        product = exact(base(rotated.to(inputs))) - exact(base(inputs))
        return product.float().to(inputs.device)

    def starts_at_zero(self, cell: Cell) -> bool:
        """All rotations start as none."""
        return True


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """BitFit (Ben Zaken et al. 2022): the biases and the new head train."""

    adapts: ClassVar[bool] = True
    must_move: tuple[str, ...] = ("bias",)

    def adapt(self, model: "nn.Module", cell: Cell, base: Base) -> "nn.Module":
        """The model itself, in which the biases and the head's new modules train."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_part(name, cell.head.new_modules) or name.endswith("bias"))
        return model

    def own_parameters(self, model: "nn.Module") -> frozenset[str]:
        """The biases."""
        return frozenset(name for name, _ in model.named_parameters() if name.endswith("bias"))

    def declared_names(self, model: "nn.Module", cell: Cell) -> frozenset[str]:
        """The biases and the head's new modules."""
        return self.own_parameters(model) | frozenset(head_names(model, cell))

    def group_name(self, name: str) -> str:
        """All biases are one group."""
        return "bias"


# Liu et al. 2022: one learned vector a layer multiplies keys, values and what the feed-forward layer reads. PEFT's own table
# for these architectures does, too.
FEEDFORWARD = {"bert": "output.dense", "gpt2": "mlp.c_proj", "t5": "wo"}
IA3: Mapping[str, Any] = {
    "must_move": ("ia3_l",),
    "layers": {"bert": ("key", "value", "output.dense"), "gpt2": ("c_attn", "mlp.c_proj"), "t5": ("k", "v", "wo")},
    "options_by_backbone": {backbone: {"feedforward_modules": [layer]} for backbone, layer in FEEDFORWARD.items()},
}
NORMS = {"bert": ("LayerNorm",), "gpt2": ("ln_1", "ln_2", "ln_f"), "t5": ("layer_norm", "final_layer_norm")}
DORA: Mapping[str, Any] = {"options": {"use_dora": True}, "must_move": ("lora_magnitude_vector",)}
# PEFT's default inverts by a series, which at the rates of small models is not a rotation any more.
OFT: Mapping[str, Any] = {
    "must_move": ("oft_R",),
    "options": {"oft_block_size": 32, "use_cayley_neumann": False},
}
# Learned rows in front of the input embeddings. Of an encoder-decoder the encoder alone reads them, as in the paper.
SEQ2SEQ = {"task_type": "SEQ_2_SEQ_LM"}
PROMPT: Mapping[str, Any] = {
    **{"config": "PromptTuningConfig", "must_move": ("prompt_encoder",)},
    "options": {"num_virtual_tokens": 16, "num_transformer_submodules": 1},
    "options_by_backbone": {"bert": SEQ2SEQ, "gpt2": {"task_type": "CAUSAL_LM"}, "t5": SEQ2SEQ},
}
METHODS: tuple[Method, ...] = (
    LORA,
    QLORA,
    SFT,
    Lora(id="rslora", name="rsLoRA", options={"use_rslora": True}),  # Kalajdzievski 2023
    Lora(id="dora", name="DoRA", **DORA),  # Liu et al. 2024: magnitudes learn apart from directions
    Lora(id="pissa", name="PiSSA", options={"init_lora_weights": "pissa"}),  # Meng et al. 2024: the largest singular directions
    Lora(id="loraplus", name="LoRA+", rate_factors={"lora_B": 16.0}),  # Hayou et al. 2024: B learns 16 times as fast
    AdaLora(id="adalora", name="AdaLoRA"),
    Ia3(id="ia3", name="IA3", **IA3),
    Vera(id="vera", name="VeRA", options={"r": 64}, must_move=("vera_lambda",)),
    Oft(id="oft", name="OFT", **OFT),
    Adapting(id="ln", name="LN tuning", config="LNTuningConfig", layers=NORMS, must_move=("ln_tuning_layers",)),  # Zhao 2023
    BitFit(id="bitfit", name="BitFit"),
    # Lester et al. 2021
    Adapting(id="prompt", name="prompt tuning", **PROMPT),
    Lora(id="qdora", name="QDoRA", quantization=NF4, **DORA),
    Oft(id="qoft", name="QOFT", quantization=NF4, **OFT),
    Ia3(id="qia3", name="IA3 over NF4", quantization=NF4, **IA3),
)

# Of the layers that LoRA's paper adapts: queries and values, which GPT-2 keeps in one layer.
TARGETS = {"bert": ("query", "value"), "gpt2": ("c_attn",), "t5": ("q", "v")}
BERT_SUM = ("query", "key", "value", "output.dense")  # BERT2BERT's cross-attention is new: it takes more
RANK, ALPHA = 8, 16  # PEFT's default rank; its scale of 2 is LoRA's in the study's GPT-2 and T5 recipes

# A method's rate, in units of LoRA's. Papers tune other models for thousands of updates: if they name rates, these are theirs
# in proportion; "here" is what a few updates of micro backbones needed.
RATES: Mapping[str, float] = {
    "sft": 0.25,  # BERT's paper: 2e-5 to 5e-5 for all weights
    "rslora": 0.5,  # here: its scale is 2.8 times LoRA's at rank 8
    "loraplus": 0.3,  # here: B is 16 times as fast, as its paper says
    "pissa": 0.5,  # here: it starts from the largest singular directions, not from zero
    "adalora": 10.0,  # its paper: up to several times LoRA's; here: A, B and E start near zero
    "ia3": 10.0,  # its paper: 3e-3
    "qia3": 10.0,
    "vera": 10.0,  # its paper: an order of magnitude above LoRA's
    "oft": 0.8,  # here: at LoRA's own rate one summary in ten had no end
    "qoft": 0.8,
    "ln": 5.0,  # here
    "bitfit": 2.0,  # its paper: 1e-4 to 9e-4
    "prompt": 100.0,  # its paper: 0.3, with Adafactor
}

# Updates, LoRA's rate and the head's, in batches of 16, found by hand with test scores in view. A head's is the same with each
# method, since it does the work alone at the rate of IA3 or VeRA. GPT-2's for labels is not slow: from some starts none learns.
QUICK: Mapping[tuple[str, str], tuple[int, float, float | None]] = {
    ("bert", "sa"): (60, 5e-3, 2e-3),
    ("bert", "qa"): (60, 3e-3, 2e-3),
    ("bert", "sum"): (60, 5e-3, None),
    ("gpt2", "sa"): (50, 4e-3, 4e-3),
    ("gpt2", "qa"): (80, 6e-3, 4e-4),
    ("gpt2", "sum"): (30, 4e-3, None),
    ("t5", "sa"): (70, 8e-3, 3e-4),
    ("t5", "qa"): (80, 3e-3, 1e-4),
    ("t5", "sum"): (30, 5e-3, None),
}

# GPT-2 summarizes behind its end token, which is pretrained: few methods can train the row of a new one.
GPT2_SUM = Head(architecture="GPT2LMHeadModel", tied_modules=("lm_head",), layout=Layout.SEPARATED)

# By method and backbone (and task, if only one is meant). A test tries what a library cannot train, and fails if it now can.
CONV1D = "PEFT rotates layers of torch only, and GPT-2's are transformers' Conv1D"
READ_AS_TEXT = "virtual tokens are for models that generate: a classifier or a span head would read them as text"
NO_PROMPTS = "PEFT reads the layers from the model's config, and BERT2BERT's config describes two models"
# PEFT 0.21.2 hands the cache over by the name that transformers 5.24 has renamed: reports/upstream/peft_prompts.py.
REPEATED = "PEFT puts its prompt in front of every generated token again, since it does not find transformers' cache"
# What libraries train, but so few weights do not learn: rougeLsum after the cell's updates was 25 (IA3), 17 (LN), 5 (BitFit).
NEW_PARTS = "it changes too little to train BERT2BERT's new cross-attention within a quick cell's updates"
REFUSED: Mapping[tuple[str, ...], str] = {
    ("oft", "gpt2"): CONV1D,
    ("bitfit", "t5"): "T5 has no biases",
    **{("prompt", backbone, task): READ_AS_TEXT for backbone in TARGETS for task in ("sa", "qa")},
    ("prompt", "bert", "sum"): NO_PROMPTS,
    ("prompt", "gpt2", "sum"): REPEATED,
    **{(method, "bert", "sum"): NEW_PARTS for method in ("ia3", "qia3", "ln", "bitfit")},
}


def zoo() -> Grid:
    """The grid of the zoo's quick cells. Recipes hold no more than what these change."""
    grid = replace(study(), methods={method.id: method for method in METHODS}, recipes={}, quick={}, heads={})
    for backbone, task, method in product(grid.backbones, grid.tasks, METHODS):
        pair, cell_id = (backbone, task), f"{backbone}_{task}_{method.id}"
        targets = BERT_SUM if pair == ("bert", "sum") else TARGETS[backbone]
        adapter = Adapter(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets) if method.adapts else None
        sft = replace(RECIPES[f"{backbone}_{task}_sft"], trainable_params=None, total_params=None)
        grid.recipes[cell_id] = replace(sft, adapter=adapter, optim="adamw_torch")
        updates, rate, head_rate = QUICK[pair]
        grid.quick[cell_id] = {
            **quick_changes(f"{backbone}_{task}_lora"),
            **{"max_steps": updates, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "warmup_ratio": 0.1},
            "learning_rate": rate * RATES.get(method.id, 1.0),
            "head_learning_rate": head_rate if method.adapts else None,
            **{"precision": "fp32", "gradient_checkpointing": False},
            **({"generation": GREEDY} if task == "sum" else {}),  # the cells are many, and beams cost time
        }
        if reason := REFUSED.get((method.id, backbone)) or REFUSED.get((method.id, backbone, task)):
            grid.refused[cell_id] = reason
        if pair == ("gpt2", "sum"):
            grid.heads[cell_id] = GPT2_SUM
    return grid
