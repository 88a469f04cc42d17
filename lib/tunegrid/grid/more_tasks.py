"""More tasks than the study's: natural language inference and conversations. `-m tasks` runs the micro cells.

At full size (`-m 'full and tasks'`), nine cells of inference, three labels for two texts, have the study's recipes for
sentiment but for lengths and rates, and three of SmolLM2 learn to follow instructions over several turns. `Recipe.ours` names
what nobody published for this backbone and task. Nobody has trained these twelve to their end here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tunegrid.grid.backbones import Backbone, Head, Layout, Objective, Wrap
from tunegrid.grid.cells import Grid, study
from tunegrid.grid.larger import is_larger, larger
from tunegrid.grid.profiles import AT_TRUE_SIZE
from tunegrid.grid.quick import ALWAYS
from tunegrid.grid.recipes import Adapter, Fields, Generation, Recipe
from tunegrid.grid.tasks import Carve, Problem, Task
from tunegrid.grid.zoo import is_of_zoo, zoo_beside_study

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
# Several turns, of which the assistant's are learned. ROUGE says how much of the last reply's wording is a person's: a good
# reply in other words scores low, so compare scores of methods and of runs only.
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
TASKS = (NLI, CHAT)

SMOLLM2 = Backbone(
    id="smollm2",
    name="SmolLM2",
    checkpoint="HuggingFaceTB/SmolLM2-135M-Instruct",
    wrap=Wrap(before=None, between="eos_token", after=None),
    objective=Objective.CAUSAL,
    shape={
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "pad_token_id": 2,
    },
    special_tokens={"eos_token_id": 2, "pad_token_id": 2},
    vocabulary=49_152,
    heads={
        Problem.GENERATE: Head(architecture="LlamaForCausalLM", tied_modules=("lm_head",), layout=Layout.CHAT),
    },
)

# Of every cell of inference. transformers' run_glue reads 128 tokens of a pair.
NLI_SHARED: Fields = {"text": (), "max_length": 128, "from_notebook": (), "ours": ("learning_rate",)}

# LoRA's script roberta_base_mnli.sh, for a model of BERT's shape. QLoRA adapts the same layers at the same rate.
QUERY_VALUE = Adapter(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=("query", "value"))
BERT_NLI: Fields = {"adapter": QUERY_VALUE, "learning_rate": 5e-4, "trainable_params": 297_219}
# A cell's own row. BERT's SFT has the rate of transformers' run_glue on MNLI, GPT-2's are the study's; transformers' page on
# T5 recommends 1e-4 to 3e-4 with AdamW.
NLI_CELLS: Mapping[str, Fields] = {
    "bert_nli_lora": BERT_NLI,
    "bert_nli_qlora": BERT_NLI,
    "bert_nli_sft": {"learning_rate": 2e-5, "ours": (), "trainable_params": 109_484_547},
    "gpt2_nli_lora": {"trainable_params": 297_216},
    "gpt2_nli_qlora": {"trainable_params": 297_216},
    "gpt2_nli_sft": {"trainable_params": 124_442_112},
    "t5_nli_lora": {"learning_rate": 3e-4, "trainable_params": 198_147},
    "t5_nli_qlora": {"learning_rate": 3e-4, "trainable_params": 198_147},
    "t5_nli_sft": {"learning_rate": 1e-4, "trainable_params": 35_332_355},
}

# Schedule, epochs and batch are those that SmolLM2 was instructed with (recipes/smollm2/sft/config_smol.yaml of the alignment
# handbook); rates are ours, LoRA's ten times that of SFT (Schulman et al. 2025, "LoRA Without Regret").
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
    ours=("learning_rate", "max_length", "max_target_length", "generation"),
    trainable_params=134_515_008,
)
QKVO = Adapter(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
SMOLLM2_LORA = replace(SMOLLM2_CHAT, learning_rate=5e-4, adapter=QKVO, trainable_params=1_843_200)
CHAT_CELLS = {"smollm2_chat_lora": SMOLLM2_LORA, "smollm2_chat_qlora": SMOLLM2_LORA, "smollm2_chat_sft": SMOLLM2_CHAT}

# Of micro cells. Found on rows of seeds 5 to 7 that are neither learned nor tested: 97 to 99 points each.
QUICK_SHARED: Fields = {**ALWAYS, "max_length": 64, "per_device_train_batch_size": 16, "max_steps": 60}
QUICK: Mapping[str, Fields] = {
    "bert_nli_lora": {"learning_rate": 5e-3},
    "bert_nli_qlora": {"learning_rate": 4e-3},
    "bert_nli_sft": {"learning_rate": 5e-4},
}


def more_tasks() -> Grid:
    """The study's grid and the cells of these tasks, which `-m tasks` runs in place of the study's."""
    grid = study()
    grid.add_task(NLI, like="sa", **NLI_SHARED)
    for cell_id, fields in NLI_CELLS.items():
        grid.recipes[cell_id] = replace(grid.recipes[cell_id], **fields)
    grid.add_task(CHAT)
    grid.add_backbone(SMOLLM2)
    grid.recipes |= CHAT_CELLS
    grid.quick |= {cell_id: {**QUICK_SHARED, **fields} for cell_id, fields in QUICK.items()}
    return grid


def is_of_more_tasks(cell_id: str) -> bool:
    """Whether a cell is of one of these tasks."""
    return cell_id.split("_")[1:2] in [[task.id] for task in TASKS]  # a file may call a cell anything


@dataclass(frozen=True, kw_only=True)
class InPlace:
    """Cells that run in place of the study's where `-m` has a word beside a profile: their grid, and which of it they are."""

    grid: Callable[[], Grid]
    has: Callable[[str], bool]


IN_PLACE = {
    "larger": InPlace(grid=larger, has=is_larger),
    "tasks": InPlace(grid=more_tasks, has=is_of_more_tasks),
    "zoo": InPlace(grid=zoo_beside_study, has=is_of_zoo),  # at true size; on micro backbones it is a profile of its own
}


def words_for(cell_id: str, profile: str) -> str:
    """What `-m` names for a cell of a profile, as in "full and larger"."""
    beside = [word for word, cells in IN_PLACE.items() if profile in AT_TRUE_SIZE and cells.has(cell_id)]
    return " and ".join([profile, *beside])
