"""More tasks (natural language inference, conversations) and larger backbones.

`-m tasks` runs micro cells of natural language inference (NLI). At full size
(`-m 'full and tasks'`), nine NLI cells follow the study's sentiment recipes, except for lengths,
learning rates and BERT's adapter, and three SmolLM2 cells learn to follow instructions in dialogue.
`-m larger` has 36 cells of the study's tasks. None of these 48 cells has been trained to completion
here. `SOURCED` lists learning rates published for the larger sizes. Other larger cells keep the
smaller backbone's rate, as in the papers on T5 (Raffel et al. 2020, section 3.1.2), BERT (Devlin et
al. 2019, appendix A.3) and LoRA (Hu et al. 2021, table 11).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tunegrid.grid.backbones import BERT, GPT2, T5, Backbone, Head, Layout, Objective, Wrap
from tunegrid.grid.cells import Grid, study
from tunegrid.grid.recipes import ALWAYS, AT_TRUE_SIZE, Adapter, Fields, Generation, Recipe
from tunegrid.grid.tasks import Carve, Problem, Task


def resize(like: Backbone, checkpoint: str, name: str, **shape: Any) -> tuple[Backbone, Backbone]:
    """Returns `like` and a copy of it for a larger checkpoint.

    `shape` holds the fields of the checkpoint's `config.json` that differ.
    """
    backbone = replace(
        like,
        id=name.lower().replace("-", ""),
        name=name,
        checkpoint=checkpoint,
        revision=None,  # each record names the commit
        micro=None,
        shape={**like.shape, **shape},
    )
    return like, backbone


# Each backbone follows the study's backbone whose recipes it copies.
LARGER = (
    resize(BERT, "google-bert/bert-large-uncased", "BERT-large",
           hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    resize(GPT2, "openai-community/gpt2-medium", "GPT-2-medium",
           n_embd=1024, n_layer=24, n_head=16),
    resize(T5, "google-t5/t5-base", "T5-base",
           d_model=768, d_ff=3072, num_layers=12, num_decoder_layers=12, num_heads=12),
    resize(T5, "google-t5/t5-large", "T5-large",
           d_model=1024, d_ff=4096, num_layers=24, num_decoder_layers=24, num_heads=16),
)  # fmt: skip

# The adapter of LoRA's scripts for GLUE, for models of BERT's shapes.
QUERY_VALUE = Adapter(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=("query", "value"))
# Rates published for this size, with sources. All but the first are the study's rates, too.
SOURCED: Mapping[str, Fields] = {
    # LoRA's script roberta_large_sst2.sh, for a model of the same shape. The study's bert_sa_lora
    # adapts only a head that copies do not have (`BERT_MLP`), so the study offers no rate for them.
    "bertlarge_sa_lora": {"learning_rate": 4e-4, "adapter": QUERY_VALUE},
    # The README of google-research/bert: SQuAD with BERT-Large, there for 2 epochs in batches of
    # 24.
    "bertlarge_qa_sft": {"learning_rate": 3e-5},
    # LoRA's paper, table 11: GPT-2-medium.
    "gpt2medium_sa_lora": {"learning_rate": 2e-4},
    "gpt2medium_qa_lora": {"learning_rate": 2e-4},
    # Full fine-tuning of GPT-2-medium, compared with prefix tuning (Li and Liang 2021;
    # gpt2/train_e2e.py in their code).
    "gpt2medium_sum_sft": {"learning_rate": 5e-5},
}


def larger_grid() -> Grid:
    """The study's grid plus the cells of larger backbones, which `-m larger` runs."""
    grid = study()
    for source, backbone in LARGER:
        grid.add_backbone(backbone, like=source.id)
    for cell_id, fields in SOURCED.items():
        grid.recipes[cell_id] = replace(grid.recipes[cell_id], **fields)
    return grid


NLI = Task(
    id="nli",
    name="natural language inference",
    problem=Problem.CLASSIFY,
    dataset="nyu-mll/multi_nli",
    columns={"premise": str, "hypothesis": str, "label": int},
    text=("premise",),
    text_pair=("hypothesis",),
    identity=("premise",),  # a premise has three hypotheses
    target="label",
    labels=("entailment", "neutral", "contradiction"),
    train_rows=392_702,
    validation=Carve(share=0.05, group="premise"),
    test="validation_matched",  # MultiNLI's own test labels were never published
    main_score="accuracy",
    bounded_scores=("accuracy", "f1_macro"),
)
# Conversations; the assistant's turns are learned. ROUGE measures how much of the human reply's
# wording a generated last reply shares. A good reply in other words scores low, so use the scores
# only to compare methods and runs.
CHAT = Task(
    id="chat",
    name="multi-turn instruction following",
    problem=Problem.GENERATE,
    dataset="HuggingFaceH4/no_robots",
    messages="messages",
    columns={"history": list, "prompt": str, "reply": str},
    text=("prompt",),
    target="reply",
    train_rows=9_500,
    validation=Carve(share=0.05),
    test="test",
    main_score="rougeL",
    bounded_scores=("rouge1", "rougeL"),
)

SMOLLM2 = Backbone(
    id="smollm2",
    name="SmolLM2",
    checkpoint="HuggingFaceTB/SmolLM2-135M-Instruct",
    wrap=Wrap(before=None, between="eos_token", after=None),
    objective=Objective.CAUSAL,
    shape={
        "model_type": "llama",
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "pad_token_id": 2,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    special_tokens={"eos_token_id": 2, "pad_token_id": 2},
    vocabulary=49_152,
    heads={
        Problem.GENERATE: Head(
            architecture="LlamaForCausalLM",
            tied_modules=("lm_head",),
            layout=Layout.CHAT,
        ),
    },
)

NLI_LENGTH = 128  # tokens per pair, as in transformers' run_glue

# LoRA's script roberta_base_mnli.sh, for a model of BERT's shape. QLoRA adapts the same layers at
# the same rate.
BERT_NLI: Fields = {"adapter": QUERY_VALUE, "learning_rate": 5e-4, "trainable_params": 297_219}
# Each cell's own fields. BERT's SFT has the rate that transformers' run_glue uses on MNLI, and
# GPT-2's rates are the study's. For T5, transformers' documentation recommends 1e-4 to 3e-4 with
# AdamW.
NLI_CELLS: Mapping[str, Fields] = {
    "bert_nli_lora": BERT_NLI,
    "bert_nli_qlora": BERT_NLI,
    "bert_nli_sft": {"learning_rate": 2e-5, "trainable_params": 109_484_547},
    "gpt2_nli_lora": {"trainable_params": 297_216},
    "gpt2_nli_qlora": {"trainable_params": 297_216},
    "gpt2_nli_sft": {"trainable_params": 124_442_112},
    "t5_nli_lora": {"learning_rate": 3e-4, "trainable_params": 198_147},
    "t5_nli_qlora": {"learning_rate": 3e-4, "trainable_params": 198_147},
    "t5_nli_sft": {"learning_rate": 1e-4, "trainable_params": 35_332_355},
}

# Schedule, epochs and batch come from SmolLM2's own instruction tuning
# (recipes/smollm2/sft/config_smol.yaml in the alignment handbook). Lengths, search and rates are
# ours; LoRA's rate is ten times SFT's (Schulman et al. 2025, "LoRA Without Regret").
SMOLLM2_CHAT = Recipe(
    learning_rate=5e-5,
    lr_scheduler_type="cosine",
    warmup_ratio=0.1,
    num_train_epochs=2,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    gradient_checkpointing=True,
    precision="bf16",
    max_length=2048,
    max_target_length=512,
    generation=Generation(num_beams=1, max_new_tokens=512),
    trainable_params=134_515_008,
)
QKVO = Adapter(
    r=16,
    lora_alpha=32,
    lora_dropout=0.05,
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
)
SMOLLM2_LORA = replace(
    SMOLLM2_CHAT,
    learning_rate=5e-4,
    adapter=QKVO,
    trainable_params=1_843_200,
)
CHAT_CELLS = {
    "smollm2_chat_lora": SMOLLM2_LORA,
    "smollm2_chat_qlora": SMOLLM2_LORA,
    "smollm2_chat_sft": SMOLLM2_CHAT,
}

# Micro cells, tuned on rows of seeds 5 to 7, not used in training or tests: 97 to 99 points.
QUICK_NLI: Fields = {
    **ALWAYS,
    "max_length": 64,
    "per_device_train_batch_size": 16,
    "max_steps": 60,
}
NLI_RATES = {"bert_nli_lora": 5e-3, "bert_nli_qlora": 4e-3, "bert_nli_sft": 5e-4}


def more_tasks() -> Grid:
    """The study's grid plus the NLI and conversation cells, which `-m tasks` runs."""
    grid = study()
    grid.add_task(NLI, like="sa", max_length=NLI_LENGTH)
    for cell_id, fields in NLI_CELLS.items():
        grid.recipes[cell_id] = replace(grid.recipes[cell_id], **fields)
    grid.add_task(CHAT)
    grid.add_backbone(SMOLLM2)
    grid.recipes |= CHAT_CELLS
    for cell_id, rate in NLI_RATES.items():
        grid.quick[cell_id] = {**QUICK_NLI, "learning_rate": rate}
    return grid


# Both are keyed by the word that `-m` combines with a full-size profile. A grid here replaces the
# study's grid and includes its cells; OWN_PARTS has the backbones or tasks of the added cells.
EXTRA_GRIDS: Mapping[str, Callable[[], Grid]] = {"larger": larger_grid, "tasks": more_tasks}
OWN_PARTS = {"larger": {backbone.id for _, backbone in LARGER}, "tasks": {NLI.id, CHAT.id}}


def belongs_to(word: str, cell_id: str) -> bool:
    """Checks whether `cell_id`, which may be any text, is a cell that the grid for `word` adds."""
    return not OWN_PARTS[word].isdisjoint(cell_id.split("_"))


def marker_words(cell_id: str, profile: str) -> str:
    """The `-m` expression that selects a cell under a profile, such as "full and larger"."""
    words = [profile]
    if profile in AT_TRUE_SIZE:
        words += [word for word in EXTRA_GRIDS if belongs_to(word, cell_id)]
    return " and ".join(words)
