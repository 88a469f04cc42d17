"""Trains and scores a full cell on the libraries' own path: AutoModel, PEFT and `Trainer`.

Run it from the checkout's folder, with the checkout on PYTHONPATH. It prints one JSON object.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import torch
import transformers as hf

from benchmarks.proof.stock import libraries
from tunegrid.data.splits import load_splits
from tunegrid.grid.cells import study
from tunegrid.grid.recipes import FULL_PROFILE
from tunegrid.grid.tasks import Problem
from tunegrid.run.metrics import Metrics, score_rows

EVAL_BATCH = 32

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("cell")
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--learning-rate", type=float)
parser.add_argument("--checkpoint-root", type=Path, required=True)
parser.add_argument("--data-root", type=Path, required=True)
options = parser.parse_args()

profile = replace(
    FULL_PROFILE,
    seed=options.seed,
    checkpoint_root=options.checkpoint_root,
    data_root=options.data_root,
    own_test=True,
    train_rows=0,
    eval_rows=0,
    device="cpu",
)
cell = study().cell(options.cell, profile)
if options.learning_rate:
    cell = replace(cell, recipe=replace(cell.recipe, learning_rate=options.learning_rate))
splits = load_splits(cell.task, profile)
device = torch.device("cpu")
with TemporaryDirectory() as folder:
    cell = libraries.write_start(cell, Path(folder) / "start")
    tokenizer = libraries.start_tokenizer(cell)
    hf.set_seed(options.seed)
    trainer = libraries.get_trainer(
        cell,
        libraries.make_model(cell, tokenizer, device),
        tokenizer,
        libraries.encoded(cell, tokenizer, splits.train),
        Path(folder) / "trained",
        device,
        num_train_epochs=cell.recipe.num_train_epochs,
        per_device_eval_batch_size=EVAL_BATCH,
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    # Grouped by length, predictions would come in another order than the rows.
    trainer.args.train_sampling_strategy = "random"
    test = libraries.encoded(cell, tokenizer, splits.test)
    if cell.task.problem is Problem.EXTRACT:
        answers = libraries.predicted_spans(cell, trainer, splits.test, test)
    else:
        answers = libraries.predicted_labels(trainer, test)
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
sixth = len(losses) / 6
sixths = [losses[round(i * sixth) : round((i + 1) * sixth)] for i in range(6)]
result = {
    "cell": cell.id,
    "seed": options.seed,
    "learning_rate": cell.recipe.learning_rate,
    "rows": {"train": len(splits.train), "test": len(splits.test)},
    "updates": trainer.state.global_step,
    "train_seconds": round(seconds),
    "train_loss_by_sixths": [round(fmean(part), 3) for part in sixths],
    "scores": score_rows(Metrics(), cell.task, splits.test, answers).scores,
}
print(json.dumps(result, indent=1))
