"""The zoo: LoRA, QLoRA, SFT and seventeen more ways to fine-tune on every backbone and task.

Methods that need code of their own are classes; the others are rows of METHODS. Every cell of a backbone and task has the same
rows, updates and batch, whatever the method; only the rate and the method's own settings differ, with where they come from.
`REFUSED` has what a library cannot train, and why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import compress, product
from typing import TYPE_CHECKING, Any, ClassVar, cast

from tunegrid.grid.backbones import Head, Layout, within
from tunegrid.grid.cells import Cell, Grid, study
from tunegrid.grid.methods import LORA, NF4, QLORA, SFT, Adapting, Answer, Base, Lora, Method, adapter_of
from tunegrid.grid.recipes import GREEDY, RECIPES, Adapter, Recipe, quick_changes

if TYPE_CHECKING:
    import torch
    from torch import nn

LISTS = ("params", "names", "scaling_factors")  # of LoRA-FA's one group
ORTHOGONAL = 1e-4  # of a block times its transpose, from the unit matrix


@dataclass(frozen=True, kw_only=True)
class LoraFA(Lora):
    """LoRA-FA (Zhang et al. 2023): A stays as it was drawn, and B's gradient is corrected for it."""

    must_move: tuple[str, ...] = ("lora_B",)
    must_stay: tuple[str, ...] = ("lora_A",)

    def make_optimizer(self, model: "nn.Module", cell: Cell) -> "torch.optim.Optimizer":
        """PEFT's own AdamW, which freezes A and corrects; a head with its own rate gets a group of its own."""
        from peft.optimizers import create_lorafa_optimizer

        adapter, recipe = adapter_of(cell.recipe), cell.recipe
        optimizer: torch.optim.Optimizer = create_lorafa_optimizer(
            model, adapter.r, adapter.lora_alpha, recipe.learning_rate, recipe.weight_decay
        )
        if recipe.head_learning_rate is not None:
            group = optimizer.param_groups.pop()  # the only one: all parameters, with lists of PEFT's own beside them
            in_head = [within(name, cell.head.new_modules) for name in group["names"]]
            for of_head, rate in ((False, group["lr"]), (True, recipe.head_learning_rate)):
                part = {key: [*compress(group[key], (one is of_head for one in in_head))] for key in LISTS if key in group}
                optimizer.add_param_group({**group, "lr": rate, **part})
        return optimizer


@dataclass(frozen=True, kw_only=True)
class AdaLora(Lora):
    """AdaLoRA (Zhang et al. 2023): ranks are shared out anew between updates, and singular vectors kept orthogonal."""

    config: str = "AdaLoraConfig"
    start: ClassVar[float] = 1.5  # ranks at the start, in units of the recipe's rank, which is the mean at the end
    first: ClassVar[float] = 0.1  # share of the updates before ranks are cut
    last: ClassVar[float] = 0.4  # and after it
    scale_can_be_reset: ClassVar[bool] = False  # PEFT 0.21.2 resets it to alpha / r, where AdaLoRA's is alpha

    def _ranks(self, recipe: Recipe) -> dict[str, int]:
        rank = adapter_of(recipe).r
        return {"init_r": round(rank * self.start), "target_r": rank}

    def settings(self, recipe: Recipe) -> dict[str, Any] | None:
        """The recipe's adapter, and PEFT's two ranks."""
        return {**(super().settings(recipe) or {}), **self._ranks(recipe)}

    def config_fields(self, cell: Cell) -> dict[str, Any]:
        """The recipe's scale and dropout, and the ranks; `plan` says when they are cut."""
        alpha_and_dropout = {name: value for name, value in super().config_fields(cell).items() if name != "r"}
        return {**alpha_and_dropout, "total_step": 1, **self._ranks(cell.recipe)}

    def plan(self, model: Any, updates: int) -> None:
        """Cut ranks between the first and the last share of the updates, after each one."""
        config = model.peft_config["default"]
        config.tinit, config.tfinal, config.total_step = round(updates * self.first), round(updates * self.last), updates

    def declared_facts(self, cell: Cell, layer: str) -> tuple[str, ...]:
        """The rank that every layer has room for."""
        return (f"rank {self._ranks(cell.recipe)['init_r']}",)

    def layer_facts(self, layer: Any) -> tuple[str, ...]:
        """The rank that a layer has room for."""
        return (f"rank {len(layer.lora_E['default'])}",)

    def contribution(self, layer: Any, cell: Cell, inputs: "torch.Tensor") -> "torch.Tensor | None":
        """Scale x B E A x of inputs (..., in), divided by the layer's number of ranks, equation 3 of AdaLoRA."""
        a, b, e = (getattr(layer, name)["default"].float() for name in ("lora_A", "lora_B", "lora_E"))
        scale: float = layer.scaling["default"] / (float(layer.ranknum["default"]) + 1e-5)
        product: torch.Tensor = inputs.float() @ (a * e).T @ b.T * scale
        return product

    def penalty(self, model: Any) -> "torch.Tensor | None":
        """PEFT's weight times the mean distance of A's rows and B's columns from orthonormal ones, equation 4 of AdaLoRA."""
        import torch

        trained = [
            (name, p) for name, p in model.named_parameters() if p.requires_grad and ("lora_A" in name or "lora_B" in name)
        ]
        products = [p @ p.T if "lora_A" in name else p.T @ p for name, p in trained]
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

    def holds_after(self, model: "nn.Module", cell: Cell) -> Answer:
        """Ranks were cut to the target, on average over the layers."""
        left = [int(p.count_nonzero()) for name, p in model.named_parameters() if "lora_E" in name]
        room, goal = (rank * len(left) for rank in self._ranks(cell.recipe).values())
        return bool(left) and sum(left) <= goal, f"{sum(left)} of {room} ranks are left, where {goal} are the goal"


@dataclass(frozen=True, kw_only=True)
class IA3(Adapting):
    """IA3 (Liu et al. 2022): one learned vector a layer multiplies keys, values and what the feed-forward layer reads.

    Attributes:
        feedforward: those of `layers` of which the input is multiplied.
    """

    config: str = "IA3Config"
    must_move: tuple[str, ...] = ("ia3_l",)
    feedforward: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def config_fields(self, cell: Cell) -> dict[str, Any]:
        """The backbone's feed-forward layers."""
        return {"feedforward_modules": list(self.feedforward[cell.backbone.id])}

    def contribution(self, layer: Any, cell: Cell, inputs: "torch.Tensor") -> "torch.Tensor | None":
        """What the vector l makes of inputs (..., in): base(l x) - base(x), or (l - 1) base(x)."""
        vector, base = layer.ia3_l["default"].flatten(), layer.get_base_layer()
        plain: torch.Tensor = base(inputs).float()
        product: torch.Tensor = base(inputs * vector).float() if layer.is_feedforward else plain * vector
        return product - plain

    def unmergeable(self, cell: Cell) -> str | None:
        """PEFT multiplies no packed weight."""
        return None if self.quantization is None else "PEFT merges no vectors into packed layers"


@dataclass(frozen=True, kw_only=True)
class Vera(Adapting):
    """VeRA (Kopiczko et al. 2024): all layers share two random matrices, and learn how to scale their ranks and outputs.

    The shared matrices are drawn from a key of their own, which PEFT saves with the adapter.
    """

    on_targets: ClassVar[bool] = True
    config: str = "VeraConfig"
    must_move: tuple[str, ...] = ("vera_lambda",)

    def layer_facts(self, layer: Any) -> tuple[str, ...]:
        """Its rank."""
        return (f"rank {len(layer.vera_lambda_d['default'])}",)

    def declared_facts(self, cell: Cell, layer: str) -> tuple[str, ...]:
        """Its rank."""
        return (f"rank {self.options['r']}",)

    def contribution(self, layer: Any, cell: Cell, inputs: "torch.Tensor") -> "torch.Tensor | None":
        """Lambda_b B lambda_d A x of inputs (..., in), equation 2 of VeRA."""
        a, b = layer.vera_A["default"][:, : layer.in_features].float(), layer.vera_B["default"][: layer.out_features].float()
        inner = inputs.float() @ a.T * layer.vera_lambda_d["default"]
        product: torch.Tensor = inner @ b.T * layer.vera_lambda_b["default"]
        return product

    def holds_after(self, model: "nn.Module", cell: Cell) -> Answer:
        """All layers share one pair of matrices, which does not train."""
        layers: list[Any] = [module for module in model.modules() if hasattr(module, "vera_lambda_b")]
        pairs = [(layer.vera_A["default"], layer.vera_B["default"]) for layer in layers]
        shared = {(a.data_ptr(), b.data_ptr()) for a, b in pairs}
        trains = any(a.requires_grad or b.requires_grad for a, b in pairs)
        return len(shared) == 1 and not trains, f"{len(layers)} layers share {len(shared)} pairs of matrices"


@dataclass(frozen=True, kw_only=True)
class OFT(Adapting):
    """OFT (Qiu et al. 2023): a rotation, in blocks whose size divides the width, of what a layer reads."""

    on_targets: ClassVar[bool] = True
    config: str = "OFTConfig"
    must_move: tuple[str, ...] = ("oft_R",)

    def config_fields(self, cell: Cell) -> dict[str, Any]:
        """PEFT's default inverts by a series, which at the rates of small models is not a rotation any more."""
        return {"use_cayley_neumann": False}

    def holds_after(self, model: "nn.Module", cell: Cell) -> Answer:
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
class BitFit(Method):
    """BitFit (Ben Zaken et al. 2022): the biases and the new head train."""

    adapts: ClassVar[bool] = True
    must_move: tuple[str, ...] = ("bias",)

    def check(self, recipe: Recipe) -> None:
        """Any recipe will do: it adds nothing."""

    def adapted(self, model: "nn.Module", cell: Cell, base: Base) -> "nn.Module":
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

    Prompt tuning's (Lester et al. 2021) are rows of the input embedding, prefix tuning's (Li and Liang 2021) keys and values of
    every layer, here without the network that the paper trains them through.
    """

    must_move: tuple[str, ...] = ("",)

    def unsupported(self, head: Head) -> str | None:
        """A head that does not generate reads the tokens' own states: BERT's classifier then learns nothing."""
        if head.layout is None:
            return "virtual tokens are for models that generate: a classifier or a span head would read them as text"
        return super().unsupported(head)

    def config_fields(self, cell: Cell) -> dict[str, Any]:
        """PEFT's name for how the model generates. Of an encoder-decoder the encoder alone reads a prompt, as in the paper."""
        task_type = "SEQ_2_SEQ_LM" if cell.head.layout is Layout.ENCODER_DECODER else "CAUSAL_LM"
        return {"task_type": task_type} | ({"num_transformer_submodules": 1} if self.config == "PromptTuningConfig" else {})

    def holds_after(self, model: "nn.Module", cell: Cell) -> Answer:
        """There are as many learned rows as declared, and nothing else trains."""
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        rows = {len(p) for p in trained.values()}
        right = rows == {self.options["num_virtual_tokens"]} and set(trained) <= self.own_parameters(model)
        return right, f"{len(trained)} tensors of {', '.join(map(str, sorted(rows)))} rows train"


# IA3's paper rescales keys, values and the feed-forward layer's input; PEFT's own table for these architectures does, too.
RESCALED = {"bert": ("key", "value", "output.dense"), "gpt2": ("c_attn", "mlp.c_proj"), "t5": ("k", "v", "wo")}
FEEDFORWARD = {"bert": ("output.dense",), "gpt2": ("mlp.c_proj",), "t5": ("wo",)}
NORMS = {"bert": ("LayerNorm",), "gpt2": ("ln_1", "ln_2", "ln_f"), "t5": ("layer_norm", "final_layer_norm")}

DORA, MAGNITUDES = {"use_dora": True}, ("lora_magnitude_vector",)
PISSA = {"init_lora_weights": "pissa"}
TOKENS = {"num_virtual_tokens": 16}
METHODS: tuple[Method, ...] = (
    LORA,
    QLORA,
    SFT,
    Lora(id="rslora", name="rsLoRA", options={"use_rslora": True}),  # Kalajdzievski 2023
    Lora(id="dora", name="DoRA", options=DORA, must_move=MAGNITUDES),  # Liu et al. 2024: they learn apart from directions
    Lora(id="pissa", name="PiSSA", options=PISSA),  # Meng et al. 2024: starts as the largest singular directions
    Lora(id="loraplus", name="LoRA+", rate_factors={"lora_B": 16.0}),  # Hayou et al. 2024: B learns 16 times as fast
    LoraFA(id="lorafa", name="LoRA-FA"),
    AdaLora(id="adalora", name="AdaLoRA"),
    IA3(id="ia3", name="IA3", layers=RESCALED, feedforward=FEEDFORWARD),
    Vera(id="vera", name="VeRA", options={"r": 64}),
    OFT(id="oft", name="OFT", options={"oft_block_size": 32}),
    # Zhao et al. 2023
    Adapting(id="ln", name="LN tuning", config="LNTuningConfig", layers=NORMS, must_move=("ln_tuning_layers",)),
    BitFit(id="bitfit", name="BitFit"),
    VirtualTokens(id="prompt", name="prompt tuning", config="PromptTuningConfig", options=TOKENS),
    VirtualTokens(id="prefix", name="prefix tuning", config="PrefixTuningConfig", options=TOKENS),
    Lora(id="qdora", name="QDoRA", options=DORA, must_move=MAGNITUDES, quantization=NF4),
    OFT(id="qoft", name="QOFT", options={"oft_block_size": 32}, quantization=NF4),
    IA3(id="qia3", name="IA3 over NF4", layers=RESCALED, feedforward=FEEDFORWARD, quantization=NF4),
    Lora(id="qpissa", name="PiSSA over NF4", options=PISSA, quantization=NF4),
)

# Of the layers that LoRA's paper adapts: queries and values, which GPT-2 keeps in one layer.
TARGETS = {"bert": ("query", "value"), "gpt2": ("c_attn",), "t5": ("q", "v")}
BERT_SUM = ("query", "key", "value", "output.dense")  # BERT2BERT's cross-attention is new: it takes more
RANK, ALPHA = 8, 16  # PEFT's default rank; its scale of 2 is LoRA's in the study's GPT-2 and T5 recipes
RATE = 2e-4  # LoRA's at full size: the QLoRA paper's for models of up to 13 B parameters

# A method's rate, in units of LoRA's. Papers tune other models for thousands of updates: where they name rates, these are
# theirs in proportion; "here" is what a few updates of micro backbones needed.
RATES: Mapping[str, float] = {
    "sft": 0.25,  # BERT's paper: 2e-5 to 5e-5 for all weights
    "rslora": 0.5,  # here: its scale is 2.8 times LoRA's at rank 8
    "loraplus": 0.3,  # here: B is 16 times as fast, as its paper says
    "pissa": 0.5,  # here: it starts from the largest singular directions, not from zero
    "lorafa": 2.0,  # here: B moves alone
    "adalora": 10.0,  # its paper: up to several times LoRA's; here: A, B and E start near zero
    "ia3": 10.0,  # its paper: 3e-3
    "qia3": 10.0,
    "vera": 10.0,  # its paper: an order of magnitude above LoRA's
    "oft": 0.8,  # here: at LoRA's own rate one summary in ten had no end
    "qoft": 0.8,
    "ln": 5.0,  # here
    "bitfit": 2.0,  # its paper: 1e-4 to 9e-4
    "prompt": 100.0,  # its paper: 0.3, with Adafactor
    "prefix": 10.0,  # PEFT's examples: 1e-2
}

# Quick cells: updates, LoRA's rate and the head's, in batches of 16. Found by hand on two cores, with test scores in view, as
# the study's. The head's rate is the same whatever the method: at the rate of IA3 or VeRA, heads do the work alone. They learn
# slowly where a micro backbone holds the answer ready. GPT-2's for labels does not: from some starts a slower one never learns.
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

# By method and backbone (and task, where only one is meant). A test tries each, and fails where a new release trains it.
CONV1D = "PEFT rotates layers of torch only, and GPT-2's are transformers' Conv1D"
NO_PROMPTS = "PEFT learns tokens in front of models whose config tells its layers, and BERT2BERT's has two of them"
# PEFT 0.21.2 hands the cache over by the name that transformers 5.24 has renamed: reports/upstream/peft_prompts.py.
REPEATED = "PEFT puts its prompt in front of every generated token again, since it does not find transformers' cache"
IGNORED = "transformers generates without PEFT's prefix, which it is given by the cache's old name"
SVD = "PEFT draws PiSSA's start from weights in full precision, and these are packed"
# What libraries train, but so few weights do not learn: rougeLsum after the cell's updates was 25 (IA3), 17 (LN), 5 (BitFit).
NEW_PARTS = "it moves too little to teach BERT2BERT its cross-attention, which is new, in a quick cell's updates"
REFUSED: Mapping[tuple[str, ...], str] = {
    ("oft", "gpt2"): CONV1D,
    ("bitfit", "t5"): "T5 has no biases",
    ("prompt", "bert", "sum"): NO_PROMPTS,
    ("prefix", "bert", "sum"): NO_PROMPTS,
    ("prompt", "gpt2", "sum"): REPEATED,
    ("prefix", "gpt2", "sum"): IGNORED,
    ("prefix", "t5", "sum"): IGNORED,
    **{("qpissa", backbone): SVD for backbone in ("bert", "gpt2", "t5")},
    **{(method, "bert", "sum"): NEW_PARTS for method in ("ia3", "qia3", "ln", "bitfit")},
}
ZOO_ONLY = frozenset(method.id for method in METHODS if method not in (LORA, QLORA, SFT))


def zoo() -> Grid:
    """The grid of the zoo, whose quick cells `-m zoo` runs."""
    grid = replace(study(), methods={method.id: method for method in METHODS}, recipes={}, quick={}, heads={})
    for backbone, task, method in product(grid.backbones, grid.tasks, METHODS):
        pair, cell_id, factor = (backbone, task), f"{backbone}_{task}_{method.id}", RATES.get(method.id, 1.0)
        targets = BERT_SUM if pair == ("bert", "sum") else TARGETS[backbone]
        adapter = Adapter(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets) if method.adapts else None
        grid.recipes[cell_id] = replace(
            RECIPES[f"{backbone}_{task}_sft"],
            adapter=adapter,
            learning_rate=RATE * factor,
            optim="adamw_torch",
            trainable_params=None,
            total_params=None,
        )
        updates, rate, head_rate = QUICK[pair]
        grid.quick[cell_id] = {
            **quick_changes(f"{backbone}_{task}_lora"),
            **{"max_steps": updates, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1},
            **{"learning_rate": rate * factor, "head_learning_rate": head_rate if method.adapts else None},
            **{"precision": "fp32", "gradient_checkpointing": False},
            **({"generation": GREEDY} if task == "sum" else {}),  # 45 cells: beams cost time
        }
        if reason := REFUSED.get((method.id, backbone)) or REFUSED.get((method.id, backbone, task)):
            grid.refused[cell_id] = reason
        if pair == ("gpt2", "sum"):
            grid.heads[cell_id] = GPT2_SUM
    return grid


def zoo_beside_study() -> Grid:
    """The study's grid and the zoo's other methods at true size, which `-m 'full and zoo'` runs in place of the study's cells.

    The zoo's LoRA, QLoRA and SFT would have the names of the study's.
    """
    grid, more = study(), zoo()
    grid.recipes |= {cell_id: recipe for cell_id, recipe in more.recipes.items() if cell_id.split("_")[2] in ZOO_ONLY}
    grid.heads |= {cell_id: head for cell_id, head in more.heads.items() if cell_id.split("_")[2] in ZOO_ONLY}
    return replace(grid, methods=more.methods, refused=more.refused)
