"""Measures where the memory of `bert_sa_qlora` goes on a CPU: an update's tensors, and the process.

Run it from the checkout's folder, with the checkout on PYTHONPATH. Weights and tokens are random,
in the shape of minilm.py; each update has 16 rows.
"""

import argparse
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from random import Random

import torch
from torch.profiler import ProfilerActivity, profile

from tunegrid.grid.cells import add_file, study
from tunegrid.grid.recipes import FOOTPRINT_CPU_PROFILE
from tunegrid.run.footprint import TensorBytes
from tunegrid.run.meter import state_tensors, tensor_bytes, weight_tensors
from tunegrid.run.prepare import prepare

ROWS = 16
SHOWN = (1, 10, 20, 40, 80)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--equal-lengths", action="store_true", help="256 tokens a row, not 30 to 256")
options = parser.parse_args()


def process_gib(name):
    """A line of /proc/self/status: VmRSS is in use, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
    return int(line.split()[1]) / 2**20


def batch(length):
    """Rows cut to this number of tokens."""
    return [[replace(row, input_ids=row.input_ids[:length]) for row in trainer.features[:ROWS]]]


torch.set_num_threads(1)
grid = study()
add_file(Path(__file__).with_name("minilm.py"), grid)
cell = grid.cell("bert_sa_qlora", FOOTPRINT_CPU_PROFILE)
recipe = replace(cell.recipe, per_device_train_batch_size=ROWS, max_steps=max(SHOWN) + 3)
trainer = prepare(replace(cell, recipe=recipe), None, torch.device("cpu"))
print(f"before the first update: {process_gib('VmRSS'):.2f} GiB")
rng = Random(0)
for update in range(1, max(SHOWN) + 1):
    trainer.update(batch(256 if options.equal_lengths else rng.randint(30, 256)))
    if update in SHOWN:
        print(f"update {update}: {process_gib('VmRSS'):.2f} GiB, peak {process_gib('VmHWM'):.2f}")
tensors = weight_tensors(trainer.model) + state_tensors(trainer.optimizer)
with TensorBytes(tensors) as counter:
    trainer.update(batch(256))
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
    trainer.update(batch(256))
events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
events.sort(key=lambda event: event.start_ns())
allocated = tensor_bytes(tensors) + max(accumulate(event.nbytes() for event in events))
print(f"tensors of an update: {counter.peak / 2**20:.1f} MiB as the suite counts them,")
print(f"{allocated / 2**20:.1f} MiB as torch's profiler does")
