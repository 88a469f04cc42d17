"""Ranks in a test, each a process, and what they train."""

import os
import socket
import traceback

import pytest
import torch

from tunegrid.run.build import checksums
from tunegrid.run.checkpoint import Checkpoints
from tunegrid.run.ranks import full_tensor, joined
from tunegrid.tests.processes import CONTEXT
from tunegrid.tests.small import CPU, rows_of, silent, trainer_of

CUT = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 3}  # updates of 6, 6 and 2 rows


def on_ranks(count: int, function, *arguments) -> list:
    """What `function(ranks, *arguments)` returns on each rank; the function is one of a module."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(count)]
    workers = [
        CONTEXT.Process(target=_work, args=(rank, count, port, sending, function, arguments), daemon=True)
        for rank, (_, sending) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    answers = []
    for rank, (receiving, _) in enumerate(pipes):
        assert receiving.poll(300), f"rank {rank} says nothing"
        answers.append(receiving.recv())
    traces = [f"rank {rank}: {trace}" for rank, (_, trace) in enumerate(answers) if trace]
    assert not traces, "\n".join(traces)  # one that failed takes the others along
    for worker in workers:
        worker.join()
    return [answer for answer, _ in answers]


def _work(rank, count, port, sending, function, arguments):
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()} | {"OMP_NUM_THREADS": "1"})
    try:
        with joined(count, CPU) as ranks:
            sending.send((function(ranks, *arguments), None))
    except BaseException:
        sending.send((None, traceback.format_exc()))


class Cut(Exception):
    """Training ends here."""


def sharded_is_the_model(trainer):
    learned = {name: full_tensor(p) for name, p in trainer.stepped.items() if p.requires_grad}
    return all(torch.equal(learned[name], trainer.parameters[name]) for name in learned)


def cut_on(ranks, path, loses_a_file):
    """Losses of a whole training, and of one that was cut after its second update and went on; checksums of their weights."""

    def prepared(resume, cuts=False):
        checkpoints = Checkpoints(path=path, every_seconds=0.0, resume=resume, ranks=ranks)

        def save_and_cut(trainer):
            checkpoints.save_if_due(trainer)
            if cuts and trainer.log.updates == 2:
                raise Cut

        rows = rows_of("cnn_dailymail/train")[:14]
        trainer = trainer_of("gpt2_sum_lora", rows, ranks=ranks, after_update=save_and_cut, **CUT)
        checkpoints.restore(trainer)
        return trainer, checkpoints

    whole, _ = prepared(resume=False)
    losses = whole.run(silent()).losses
    trainer, checkpoints = prepared(resume=False, cuts=True)
    with pytest.raises(Cut):
        trainer.run(silent())
    if loses_a_file and ranks.rank == 1:
        checkpoints.clear()
    again, _ = prepared(resume=True)
    began = again.log.updates
    assert sharded_is_the_model(again)  # audits look at the model before it goes on
    return (
        began,
        losses,
        again.run(silent()).losses,
        checksums(whole.model.named_parameters()) == checksums(again.model.named_parameters()),
    )
