"""Processes of a server that has loaded the libraries, so that they start at once."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tunegrid.tests.small", "tunegrid.run.audits"])


def apart(function, *arguments, times=1) -> list:
    """What a function of a module returns in so many processes at once, each of its own, which it may break."""
    with ProcessPoolExecutor(times, mp_context=CONTEXT, max_tasks_per_child=1) as pool:
        return [future.result() for future in [pool.submit(function, *arguments) for _ in range(times)]]
