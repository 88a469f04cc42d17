"""Processes of a server that has loaded the libraries, so that they start at once; and what /proc
says of any.
"""

import multiprocessing
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tunegrid.tests.small", "tunegrid.audits"])


def runs(pid):
    """Whether a process is there, and no zombie that nobody has waited for."""
    return _stat(pid)[:1] not in ([], ["Z"])


def parent_pid(pid):
    """None if it has ended meanwhile."""
    return int(stat[1]) if (stat := _stat(pid)) else None


def _stat(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
