"""Counts the bytes of an update's tensors of `bert_sa_qlora` on a CPU, with and without dropout.

Run it from the checkout's folder, with the checkout on PYTHONPATH. Weights and tokens are random,
in the shape of minilm.py; the update has 16 rows of 256 tokens.
"""

from dataclasses import replace
from pathlib import Path

import torch

from tunegrid.grid.cells import add_file, study
from tunegrid.grid.recipes import FOOTPRINT_CPU_PROFILE
from tunegrid.run.footprint import TensorBytes
from tunegrid.run.meter import state_tensors, weight_tensors
from tunegrid.run.prepare import prepare

ROWS = 16

grid = study()
add_file(Path(__file__).with_name("minilm.py"), grid)
cell = grid.cell("bert_sa_qlora", FOOTPRINT_CPU_PROFILE)
recipe = replace(cell.recipe, per_device_train_batch_size=ROWS)
trainer = prepare(replace(cell, recipe=recipe), None, torch.device("cpu"))
group = [trainer.features[:ROWS]]
trainer.update(group)  # from now on, the optimizer holds its moments
tensors = weight_tensors(trainer.model) + state_tensors(trainer.optimizer)
for name in ("the adapters' alone, as in a footprint", "as in training"):
    if name == "as in training":
        trainer.model.train()
    with TensorBytes(tensors) as counter:
        trainer.update(group)
    print(f"dropout {name}: {counter.peak / 2**20:.1f} MiB")
