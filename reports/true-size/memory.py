"""Counts the bytes of an update's tensors of `bert_sa_qlora` on a CPU, with and without dropout.

Run it from the checkout's folder, with the checkout on PYTHONPATH. Weights and tokens are random,
in the shape of minilm.py; the update has 16 rows of 256 tokens.
"""

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from tunegrid.grid.cells import add_file, study
from tunegrid.grid.recipes import FOOTPRINT_CPU_PROFILE
from tunegrid.run.footprint import TensorBytes
from tunegrid.run.meter import state_tensors, tensor_bytes, weight_tensors
from tunegrid.run.prepare import prepare

ROWS = 16
MIB = 2**20

grid = study()
add_file(Path(__file__).with_name("minilm.py"), grid)
cell = grid.cell("bert_sa_qlora", FOOTPRINT_CPU_PROFILE)
recipe = replace(cell.recipe, per_device_train_batch_size=ROWS)
trainer = prepare(replace(cell, recipe=recipe), None, torch.device("cpu"))
group = [trainer.features[:ROWS]]
trainer.update(group)  # from now on, the optimizer holds its moments
tensors = weight_tensors(trainer.model) + state_tensors(trainer.optimizer)
for has_dropout in (False, True):
    trainer.model.train(has_dropout)
    with TensorBytes(tensors) as counter:
        trainer.update(group)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.update(group)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    allocated = tensor_bytes(tensors) + max(accumulate(event.nbytes() for event in events))
    print(
        f"{'with' if has_dropout else 'without'} dropout: {counter.peak / MIB:.1f} MiB as the suite "
        f"counts them, {allocated / MIB:.1f} MiB as torch's profiler does"
    )
