"""One side of `tunegrid speed`: a process that trains a cell, one update per line of stdin.

On a shared machine, a thread sometimes waits for a core, and wall-clock time includes these waits.
Linux reports how long a thread was ready to run without having a core, and this time is subtracted.
Other waiting, for example in a sleep or for a file, still counts.
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
from tunegrid.machine import GIB, announce_threads, thread_share
from tunegrid.terminal import say

ANSWER_PREFIX = "tunegrid timing: "  # libraries may print as well
WARM = 5  # untimed updates, which choose kernels and allocate memory
# Holds nanoseconds on a core, nanoseconds waiting for a core, and the number of time slices
SCHEDULER = Path("/proc/thread-self/schedstat")


def own_time() -> float:
    """The clock's time in seconds, minus the time that this thread waited for a core."""
    while True:
        wait = wait_seconds()
        clock = time.perf_counter()
        if wait_seconds() == wait:  # else the thread lost its core between the readings
            return clock - wait


def wait_seconds() -> float:
    """Seconds that this thread was ready to run but had no core; 0 if the system does not say."""
    if not SCHEDULER.exists():
        return 0.0
    fields = SCHEDULER.read_text(encoding="utf-8").split()
    return int(fields[1]) / 1e9


def answers(cell: Cell) -> Iterator[dict[str, float | None]]:
    """Yield an empty answer when ready, then each update's seconds and the peak bytes so far.

    The peak measures resident memory on a CPU and allocated memory on a GPU; it is None if the
    system does not report it.
    """
    threads = thread_share(cell.profile.threads)
    announce_threads(threads)
    import torch
    import transformers as hf

    from tunegrid.run.device import keep_freed_memory, resolve_device
    from tunegrid.run.meter import peaks, reset_peaks
    from tunegrid.run.prepare import prepare

    torch.set_num_threads(threads)
    device = resolve_device(cell.profile.device)
    keep_freed_memory()
    rows = load_splits(cell.task, cell.profile).train
    reset_peaks(device)
    trainer = prepare(cell, rows, device)
    hf.set_seed(cell.profile.seed)
    trainer.ddp_model.train()
    # A GPU runs asynchronously, so it must finish before the clock is read.
    finish = torch.cuda.synchronize if device.type == "cuda" else torch.cpu.synchronize
    updates = chain.from_iterable(map(trainer.updates, count()))  # spans all epochs
    for group in islice(updates, WARM):
        trainer.update(group)
    yield {}
    for group in updates:
        finish(device)
        start = own_time()
        trainer.update(group)
        finish(device)
        seconds = own_time() - start
        memory = peaks(device, seconds=0.0)
        gib = memory.rss_peak_gib if device.type == "cpu" else memory.allocated_peak_gib
        peak_bytes = None if gib is None else round(gib * GIB)
        yield {"seconds": seconds, "peak_bytes": peak_bytes}


def main(cell: str, device: str) -> None:
    """Prepare a cell on a device; for each line of stdin, run an update and print its figures."""
    try:
        study_cell = STUDY.cell(cell, replace(QUICK_PROFILE, device=device))
        lines = chain([""], sys.stdin)
        # zip reads a line first, so each update waits for its line.
        for _, answer in zip(lines, answers(study_cell), strict=False):
            say(f"{ANSWER_PREFIX}{json.dumps(answer)}")
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
