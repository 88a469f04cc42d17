"""One side of a round of `tunegrid speed`: sets up a cell, trains a few updates of its recipe, prints what they took as JSON.

`python -m tunegrid.run.turn bert_sa_lora` is a process of its own, so that its memory is one cell's. The cell is the one that
the suite runs, put together of the same parts; the suite's own meter takes time and memory. With --in-turn it says before each
timed update that it is ready, and waits for a line: meanwhile the other side makes its own.

On a shared machine other processes take the core away, and the wall clock counts that. Linux tells how long a thread was ready
to run and had no core. That time is taken off; what the thread itself waits for, as a sleep or a file, is not.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from tunegrid.data.splits import load_splits
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.machine import announce_threads, keep_freed_memory, thread_share
from tunegrid.record.turn import Turn
from tunegrid.terminal import say

if TYPE_CHECKING:
    from tunegrid.codecs.base import Feature
    from tunegrid.run.meter import Meter, Update
    from tunegrid.run.training import Trainer


READY = "tunegrid: ready for a turn"
SCHEDULER = Path("/proc/thread-self/schedstat")  # nanoseconds on a core, nanoseconds that it waited for one, time slices


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A time, and how long this thread had waited for a core until then, in seconds."""

    at: float
    waited: float


class OwnClock:
    """Host time without what other processes took of this thread's core; with it where the system does not tell."""

    def mark(self) -> Moment:
        """Now; again where the thread lost its core between the two readings, which would then not be of one moment."""
        while True:
            before, at = waited(), time.perf_counter()
            if waited() == before:
                return Moment(at=at, waited=before)

    def seconds(self, earlier: Moment, later: Moment) -> float:
        """The time between two moments in which the thread ran, or did not want to."""
        return (later.at - earlier.at) - (later.waited - earlier.waited)


def waited() -> float:
    """Seconds that this thread was ready to run and had no core; 0 where the system does not tell."""
    try:
        return int(SCHEDULER.read_text(encoding="utf-8").split()[1]) / 1e9
    except OSError:
        return 0.0


def measured(cell: Cell, *, warm: int, updates: int, rows: int = 0, in_turn: Callable[[], None] = lambda: None) -> Turn:
    """Train `warm` updates, which pick kernels and allocate memory, then time `updates` more; evaluate so many test rows.

    `in_turn` is called before each timed update and after the last one: it returns when it is this process's turn.
    """
    threads = thread_share(cell.profile.threads)
    announce_threads(threads)
    import torch

    from tunegrid.run.device import resolve_device
    from tunegrid.run.meter import Meter

    torch.set_num_threads(threads)
    meter = Meter(device=resolve_device(cell.profile.device), clock=OwnClock())
    keep_freed_memory()
    trainer, test = _set_up(cell, meter, rows)
    with meter.phase("train"):
        _train(trainer, warm, updates, in_turn)
    rows_per_second = _evaluated(trainer, test)
    timed = meter.updates[warm:]
    seconds = [meter.clock.seconds(update.began, update.ended) for update in timed]
    return Turn(
        update_seconds=seconds,
        waited_share=_waited_share(timed),
        rows_per_second=rows_per_second,
        peak_bytes=_peak_bytes(meter),
    )


def _set_up(cell: Cell, meter: "Meter", rows: int) -> "tuple[Trainer, Sequence[Feature]]":
    """The training about to happen, and features of test rows."""
    from tunegrid.codecs import codec_of
    from tunegrid.codecs.features import features_of
    from tunegrid.run.build import build, load_tokenizer
    from tunegrid.run.training import Trainer

    splits, tokenizer = load_splits(cell.task, cell.profile), load_tokenizer(cell)
    codec = codec_of(cell, tokenizer)
    with meter.phase("load"):
        model = build(cell, tokenizer, meter.device)
    trainer = Trainer(cell, model, codec, features_of(codec, splits.train, training=True), meter)
    return trainer, features_of(codec, splits.test[:rows], training=False) if rows else []


def _train(trainer: "Trainer", warm: int, timed: int, in_turn: Callable[[], None]) -> None:
    import transformers as hf

    hf.set_seed(trainer.cell.profile.seed)
    trainer.ddp_model.train()
    groups = _updates(trainer)
    for group in islice(groups, warm):
        trainer.update(group)
    for group in islice(groups, timed):
        _end_work(trainer)
        in_turn()
        trainer.update(group)
    _end_work(trainer)
    in_turn()


def _end_work(trainer: "Trainer") -> None:
    """Wait until a GPU has done what it was given."""
    if trainer.meter.device.type == "cuda":
        import torch

        torch.cuda.synchronize(trainer.meter.device)


def _updates(trainer: "Trainer") -> "Iterator[Sequence[list[Feature]]]":
    """The updates of one epoch after another, for as long as somebody asks."""
    return chain.from_iterable(map(trainer.updates, count()))


def _evaluated(trainer: "Trainer", features: "Sequence[Feature]") -> float | None:
    """Rows a second of an evaluation."""
    from tunegrid.run.evaluation import predict
    from tunegrid.run.progress import Progress

    if not features:
        return None
    clock, progress = trainer.meter.clock, Progress(trainer.cell.id, lambda state: None)
    with trainer.meter.phase("evaluate"):
        began = clock.mark()
        predict(trainer.model, trainer.codec, features, trainer.meter.device, progress)
        ended = clock.mark()
    return len(features) / clock.seconds(began, ended)


def _waited_share(updates: "Sequence[Update]") -> float | None:
    """What others took of the core, of these updates' wall-clock time; None on a GPU, or where the system does not tell."""
    if not SCHEDULER.is_file():
        return None
    times = [(update.began, update.ended) for update in updates if isinstance(update.began, Moment)]
    wall = sum(ended.at - began.at for began, ended in times)
    return sum(ended.waited - began.waited for began, ended in times) / wall if wall else None


def _peak_bytes(meter: "Meter") -> int | None:
    name = "allocated_peak_gib" if meter.device.type == "cuda" else "rss_peak_gib"
    peak = meter.memory().peak(name)
    return None if peak is None else round(peak * 2**30)


def wait_in_turn() -> None:
    """Say that this process is ready, and wait for a line; the end of the input is one, too."""
    say(READY)
    sys.stdin.readline()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a cell and print it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunegrid.run.turn", description=__doc__)
    parser.add_argument("cell")
    parser.add_argument("--warm", type=int, required=True, metavar="N", help="updates before the timed ones")
    parser.add_argument("--updates", type=int, required=True, metavar="N", help="timed updates")
    parser.add_argument("--rows", type=int, default=0, metavar="N", help="test rows to evaluate")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N")
    parser.add_argument("--in-turn", action="store_true", help=f"say {READY} before each timed update, and wait for a line")
    options = parser.parse_args(arguments)
    try:
        profile = replace(QUICK_PROFILE, device=options.device or QUICK_PROFILE.device)
        cell = STUDY.cell(options.cell, profile)
        turn = measured(
            cell,
            warm=options.warm,
            updates=options.updates,
            rows=options.rows,
            in_turn=wait_in_turn if options.in_turn else lambda: None,
        )
    except InputError as error:
        parser.error(str(error))
    say(json.dumps(asdict(turn)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
