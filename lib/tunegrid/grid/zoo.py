"""The zoo: LoRA, QLoRA, SFT and fifteen more ways to fine-tune on every backbone and task.

Every cell of a backbone and task has the same rows, the same updates and the same batch, whatever the method; only the rate and
the method's own settings differ, with where they come from. `REFUSED` has what a library cannot train, and why.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from tunegrid.grid.adapters import IA3, OFT, AdaLora, BitFit, LoraFA, LoraPlus, Norms, Vera, VirtualTokens
from tunegrid.grid.backbones import Head, Layout
from tunegrid.grid.cells import Grid, study
from tunegrid.grid.methods import LORA, NF4, QLORA, SFT, Lora, Method
from tunegrid.grid.recipes import GREEDY, RECIPES, Adapter, quick_changes

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
    LoraPlus(id="loraplus", name="LoRA+"),
    LoraFA(id="lorafa", name="LoRA-FA"),
    AdaLora(id="adalora", name="AdaLoRA"),
    IA3(id="ia3", name="IA3", layers=RESCALED, feedforward=FEEDFORWARD),
    Vera(id="vera", name="VeRA", options={"r": 64}),
    OFT(id="oft", name="OFT", options={"oft_block_size": 32}),
    Norms(id="ln", name="LN tuning", layers=NORMS),
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
    methods = {method.id: method for method in METHODS}
    grid = replace(study(), methods=methods, recipes={}, quick={}, heads={})
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
            from_notebook=(),
            ours=("adapter", "learning_rate", "optim"),
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
    grid.methods = more.methods | grid.methods
    grid.recipes |= {cell_id: recipe for cell_id, recipe in more.recipes.items() if cell_id.split("_")[2] in ZOO_ONLY}
    grid.heads |= {cell_id: head for cell_id, head in more.heads.items() if cell_id.split("_")[2] in ZOO_ONLY}
    grid.refused = more.refused
    return grid
