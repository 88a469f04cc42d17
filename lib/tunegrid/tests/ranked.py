"""Ranks in a test: processes that a server starts, which has the libraries loaded, so that starting one takes no time."""

import multiprocessing
import os
import socket
import traceback

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tunegrid.tests.small", "tunegrid.run.audits"])


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
    said = []
    for rank, (receiving, _) in enumerate(pipes):
        assert receiving.poll(300), f"rank {rank} says nothing"
        said.append(receiving.recv())
    traces = [f"rank {rank}: {trace}" for rank, (_, trace) in enumerate(said) if trace]
    assert not traces, "\n".join(traces)  # one that failed takes the others along
    for worker in workers:
        worker.join()
    return [answer for answer, _ in said]


def _work(rank, count, port, sending, function, arguments):
    from tunegrid.run.ranks import joined
    from tunegrid.tests.small import CPU

    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()} | {"OMP_NUM_THREADS": "1"})
    try:
        with joined(count, CPU) as ranks:
            sending.send((function(ranks, *arguments), None))
    except BaseException:
        sending.send((None, traceback.format_exc()))
