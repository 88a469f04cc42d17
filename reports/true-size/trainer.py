"""Trains and scores a full cell on the libraries' own path: AutoModel, PEFT and `Trainer`.

Run it from the checkout's folder, with the checkout on PYTHONPATH. Progress goes to
stderr, and one JSON object to stdout.
"""

import argparse
import json
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers as hf
from losses import mean_by_sixths

from benchmarks.proof.stock import libraries
from tunegrid.data.splits import load_splits
from tunegrid.grid.cells import study
from tunegrid.grid.recipes import CELLS, FULL_PROFILE
from tunegrid.grid.tasks import Problem
from tunegrid.run.metrics import Metrics, score_rows

EVAL_BATCH = 32
SCORED = [cell_id for cell_id in CELLS if "_sum_" not in cell_id]  # labels and spans

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("cell", choices=SCORED, metavar="CELL")
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
        disable_tqdm=False,
    )
    began = time.perf_counter()
    with redirect_stdout(sys.stderr):  # Trainer prints its logs
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
result = {
    "cell": cell.id,
    "seed": options.seed,
    "learning_rate": cell.recipe.learning_rate,
    "rows": {"train": len(splits.train), "test": len(splits.test)},
    "updates": trainer.state.global_step,
    "train_seconds": round(seconds),
    "train_loss_by_sixths": mean_by_sixths(losses),
    "scores": score_rows(Metrics(), cell.task, splits.test, answers).scores,
}
print(json.dumps(result, indent=1))
