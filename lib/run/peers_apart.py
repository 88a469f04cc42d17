"""Other people's loops in a process of their own. In: a cell. Out: what they take, and what they come to, as it is asked for.

Our processes keep the memory that they free (`lib.machine.keep_freed_memory`), and glibc does not go back from there to how it
comes. Other people's processes leave it as it comes, which costs some loops a third of their speed on a CPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from lib.codecs import codec_of
from lib.codecs.cache import features_of
from lib.data.splits import load_splits
from lib.errors import InputError, first_line
from lib.grid.cells import Cell
from lib.run.build import build, load_tokenizer
from lib.run.peers import race_of
from lib.run.peers_rounds import Answer, answer
from lib.run.progress import Progress

LEAVING_SECONDS = 10  # after which a process that was told to end is ended


@contextmanager
def apart(cell: Cell, device: torch.device) -> Iterator[Callable[[str, str], Answer]]:
    """A process that has the cell's model and rows; what is yielded asks it for a stage by a contender."""
    context = get_context("spawn")  # a fork would have our allocator's settings, and our threads' locks
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, cell, device, torch.get_num_threads()), daemon=True)
    process.start()
    theirs.close()
    try:
        yield partial(_asked, ours, cell.id)
    finally:
        ours.close()
        process.join(LEAVING_SECONDS)
        process.kill()


def _asked(connection: Connection, cell_id: str, stage: str, name: str) -> Answer:
    try:
        connection.send((stage, name))
        said = connection.recv()
    except (EOFError, OSError):
        raise InputError(f"{cell_id}: the process of other people's loops ended in {stage} by {name!r}") from None
    if isinstance(said, str):
        raise InputError(f"{cell_id}: other people's loop {name!r} failed in {stage}: {said}")
    seconds, peak_gib, outcome = said
    return seconds, peak_gib, outcome


def _serve(connection: Connection, cell: Cell, device: torch.device, threads: int) -> None:
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(cell)
    codec, splits = codec_of(cell, tokenizer), load_splits(cell.task, cell.profile)
    features, scored = (features_of(codec, rows, training=rows is splits.train) for rows in (splits.train, splits.test))
    silent = Progress("peers", lambda standing: None)
    race = race_of(cell, build(cell, tokenizer, device), codec, features, device, silent)
    while True:
        try:
            stage, name = connection.recv()
        except EOFError:  # nobody asks any more
            return
        try:
            connection.send(answer(race, scored, stage, name))
        except Exception as error:  # whatever it is, it is told, and the next question may have an answer
            connection.send(f"{type(error).__name__}: {first_line(error)}")
