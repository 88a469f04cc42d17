"""Trains bert_sa_qlora by the libraries alone: `Trainer`, PEFT and bitsandbytes, no line of tunegrid.

    python trainer.py CHECKPOINT_ROOT DATA_ROOT SEED

Rows, recipe and budget are those of the cell: 85 % of train, three epochs, scored on the test file.
"""

import json
import random
import sys
import time
from pathlib import Path

import datasets
import peft
import torch
import transformers

checkpoint = Path(sys.argv[1]) / "bert-base-uncased"
folder = Path(sys.argv[2]) / "amazon_polarity"
seed = int(sys.argv[3])


def read(name):
    """The rows of a split."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").open(encoding="utf-8")]


rows = read("train")
random.Random(seed).shuffle(rows)
rows = rows[: round(0.85 * len(rows))]
tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)


def encode(part):
    """Tokenizes rows for `Trainer`."""
    table = datasets.Dataset.from_list(
        [{"text": row["content"], "labels": row["label"]} for row in part]
    )
    return table.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=256),
        batched=True,
        remove_columns=["text"],
    )


transformers.set_seed(seed)
packing = transformers.BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
    llm_int8_skip_modules=["classifier", "pooler"],
)
model = transformers.AutoModelForSequenceClassification.from_pretrained(
    checkpoint, num_labels=2, quantization_config=packing
)
model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
adapter = peft.LoraConfig(
    task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["query", "value"]
)
model = peft.get_peft_model(model, adapter)
arguments = transformers.TrainingArguments(
    output_dir=".cache/trainer",
    num_train_epochs=3,
    per_device_train_batch_size=16,
    per_device_eval_batch_size=64,
    learning_rate=2e-5,
    weight_decay=0.01,
    warmup_ratio=0.1,
    bf16=True,
    use_cpu=True,
    seed=seed,
    save_strategy="no",
    report_to=[],
    logging_steps=100,
)
trainer = transformers.Trainer(
    model=model,
    args=arguments,
    train_dataset=encode(rows),
    processing_class=tokenizer,
    compute_metrics=lambda given: {
        "accuracy": 100 * float((given.predictions.argmax(-1) == given.label_ids).mean())
    },
)
start = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - start
scores = trainer.evaluate(encode(read("test")))
print(f"accuracy {scores['eval_accuracy']:.1f} after {seconds:.0f} s, seed {seed}")
