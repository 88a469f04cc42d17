"""One side of `tunegrid speed`: a process that sets a cell up, and makes an update of its training for each line that it reads.

On a shared machine other processes take the core away, and the wall clock counts that. Linux tells how long a thread was ready
to run and had no core. That time is taken off; what the thread itself waits for, as a sleep or a file, is not.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path

from tunegrid.data.splits import load_splits
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.machine import announce_threads, thread_share
from tunegrid.terminal import say

MARK = "tunegrid timing: "  # begins an answer: a library may print, too
WARM = 5  # updates before the first answer: they pick kernels and allocate memory
SCHEDULER = Path("/proc/thread-self/schedstat")  # nanoseconds on a core, nanoseconds that it waited for one, time slices


def own_time() -> float:
    """The clock in seconds, less those in which this thread was ready to run and had no core."""
    while True:
        wait, clock = wait_seconds(), time.perf_counter()
        if wait_seconds() == wait:  # else the thread lost its core in between, and the two readings are not of one moment
            return clock - wait


def wait_seconds() -> float:
    """Seconds that this thread was ready to run and had no core; 0 if the system does not tell."""
    return int(SCHEDULER.read_text(encoding="utf-8").split()[1]) / 1e9 if SCHEDULER.exists() else 0.0


def answers(cell: Cell) -> Iterator[dict[str, float | None]]:
    """An empty answer when all is ready; then the seconds of one update after another, for as long as somebody asks.

    With them go the most bytes held until then: on a CPU resident, on a GPU allocated; None if the system does not tell.
    """
    announce_threads(threads := thread_share(cell.profile.threads))
    import torch
    import transformers as hf

    from tunegrid.run.device import keep_freed_memory, resolve_device
    from tunegrid.run.meter import GIB, peaks, reset_peaks
    from tunegrid.run.prepare import prepare

    torch.set_num_threads(threads)
    device = resolve_device(cell.profile.device)
    keep_freed_memory()
    rows = load_splits(cell.task, cell.profile).train
    reset_peaks(device)
    trainer = prepare(cell, rows, device)
    hf.set_seed(cell.profile.seed)
    trainer.ddp_model.train()
    finish = torch.cuda.synchronize if device.type == "cuda" else torch.cpu.synchronize  # a GPU works on behind the clock
    updates = chain.from_iterable(map(trainer.updates, count()))  # of one epoch after another
    for group in islice(updates, WARM):
        trainer.update(group)
    yield {}
    for group in updates:
        finish(device)
        start = own_time()
        trainer.update(group)
        finish(device)
        seconds, memory = own_time() - start, peaks(device, seconds=0.0)
        gib = memory.rss_peak_gib if device.type == "cpu" else memory.allocated_peak_gib
        yield {"seconds": seconds, "peak_bytes": None if gib is None else round(gib * GIB)}


def main(cell: str, device: str) -> None:
    """Set a cell up on a device, then answer each line, until there are no more."""
    try:
        study_cell = STUDY.cell(cell, replace(QUICK_PROFILE, device=device))
        for _, answer in zip(chain([""], sys.stdin), answers(study_cell), strict=False):  # an update comes after its line
            say(f"{MARK}{json.dumps(answer)}")
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
