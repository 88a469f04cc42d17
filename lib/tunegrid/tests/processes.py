"""Processes forked from a server that has loaded the libraries, and their state in /proc."""

import multiprocessing
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tunegrid.tests.small", "tunegrid.audits"])


def runs(pid):
    """Checks that a process exists and is not a zombie that nobody has waited for."""
    stat = _stat(pid)
    return bool(stat) and stat[0] != "Z"


def parent_pid(pid):
    """The pid of a process's parent; None if the process has ended."""
    stat = _stat(pid)
    return int(stat[1]) if stat else None


def _stat(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
