"""Sessions that are killed at random moments lose no finished cell, train none twice, and end with the same figures."""

import os
import signal
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from fixtures.session import passed
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.results.files import read_journal
from tunegrid.tests.records import read_records
from tunegrid.tests.sessions import SMALL, SessionProcess

SEED, KILLS = 20, 5


class KilledRun:
    """The quick grid on reviews, small, whose sessions end before their time and are resumed.

    `seen` has, by cell, the seconds of each training whose row was in a journal at some time.
    """

    def __init__(self, folder: Path) -> None:
        self.cache, self.out, self.seen = folder / "cache", folder / "run.json", defaultdict(set)

    def start(self):
        given = ("-n", "2", "--set", "max_steps=4", "--resume", f"--benchmark-json={self.out}")
        self.session = SessionProcess("-m", "quick", "-k", "_sa_", *SMALL, *given, TUNEGRID_CACHE=str(self.cache))

    def kill(self, random):
        """Kill the session, or a worker and a moment later the session; or ask it to end."""
        self.wait(random.uniform(2, 8))
        victims = [(self.session.pid, number) for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)]
        victim, number = random.choice(victims + [(worker, signal.SIGKILL) for worker in children(self.session.pid)])
        with suppress(ProcessLookupError):  # a worker whose session had just ended
            os.kill(victim, number)
        if victim != self.session.pid:
            self.wait(random.uniform(0, 4))
            if self.session.runs():
                os.kill(self.session.pid, signal.SIGKILL)
        self.ended()

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.session.runs():
            time.sleep(0.01)

    def ended(self):
        """Its answer; every row that passed is seen, in whatever journal it stands."""
        answer = self.session.ended()
        for row in (row for path in (self.cache / "journal").glob("*.jsonl") for _, row in read_journal(path)):
            if row["extra_info"]["status"] == "passed":
                self.seen[row["extra_info"]["cell"]].add(tuple(row["stats"]["data"]))
        return answer


def children(pid):
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()))
    except FileNotFoundError:
        return []


def figures(path):
    return {cell: (record.status, record.scores, record.training.losses) for cell, record in read_records(path).items()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds workers by /proc, which is not here")
def test_kills_at_random_moments_lose_no_cell_and_train_none_twice(tmp_path):
    random = Random(SEED)
    killed, whole = KilledRun(tmp_path / "killed"), KilledRun(tmp_path / "whole")
    for _ in range(KILLS):
        killed.start()
        killed.kill(random)
    lost = killed.seen.keys() - {row["extra_info"]["cell"] for row, _ in passed(killed.cache / "journal").values()}
    killed.start()
    last = killed.ended()
    whole.start()
    whole.session.ended()
    twice = {cell for cell, times in killed.seen.items() if len(times) > 1}
    assert (lost, twice) == (set(), set())
    assert last.returncode == 0, last.stdout
    assert killed.seen.keys() == {cell for cell in STUDY_IDS if "_sa_" in cell}
    assert figures(killed.out) == figures(whole.out)
