"""One side of a comparison: a clock that does not count what others take, and a cell's first updates by its recipe."""

import io
import json
import time
from contextlib import suppress
from itertools import islice

from tunegrid.data.splits import load_splits
from tunegrid.run import paired_timing
from tunegrid.run.first_updates import MOVED
from tunegrid.run.train import Trainer
from tunegrid.tests.processes import apart
from tunegrid.tests.small import cell_of, silent, trainer_for


def test_time_in_which_others_had_the_core_is_taken_off(monkeypatch):
    readings = iter([1.0, 1.5, 1.5, 1.5])  # the thread waited for half a second between the first two: they are read again
    monkeypatch.setattr(paired_timing, "waited", lambda: next(readings))
    monkeypatch.setattr(time, "perf_counter", iter([10.0, 11.0]).__next__)
    assert paired_timing.own_time() == 9.5


def test_linux_tells_how_long_a_thread_waited(tmp_path, monkeypatch):
    (tmp_path / "schedstat").write_text("5000000000 2500000000 17\n")
    monkeypatch.setattr(paired_timing, "SCHEDULER", tmp_path / "schedstat")
    assert paired_timing.waited() == 2.5
    monkeypatch.setattr(paired_timing, "SCHEDULER", tmp_path / "none")
    assert paired_timing.waited() == 0.0
    assert paired_timing.WARM > MOVED  # what only first updates do is over before the timed ones


def test_an_update_comes_after_its_line_and_not_before(monkeypatch, capsys):
    events = []

    def answers(cell):
        yield {}
        for number in (1, 2, 3):
            events.append("updates")
            yield {"seconds": number}

    class Lines(io.StringIO):
        def __next__(self):
            events.append("reads")
            return super().__next__()

    monkeypatch.setattr(paired_timing, "answers", answers)
    monkeypatch.setattr("sys.stdin", Lines("\n\n"))
    paired_timing.main("bert_sa_lora", "cpu")
    assert events == ["reads", "updates", "reads", "updates", "reads"]
    said = [line.removeprefix(paired_timing.MARK) for line in capsys.readouterr().out.splitlines()]
    assert [json.loads(line) for line in said] == [{}, {"seconds": 1}, {"seconds": 2}]


class FourUpdates(Exception):
    """The training has made four updates."""


def losses_beside_those_of_training():
    """Answers of one side about a cell, the losses of its updates, and those of as many updates of the cell's own training."""
    losses, update, cell = [], Trainer.update, cell_of("bert_sa_lora")

    def kept(trainer, group):
        losses.append(float(update(trainer, group)))

    def stop(trainer):
        if trainer.log.updates == 4:
            raise FourUpdates

    Trainer.update, paired_timing.WARM = kept, 1
    answers = list(islice(paired_timing.answers(cell), 4))
    with suppress(FourUpdates):
        trainer_for(cell, load_splits(cell.task, cell.profile).train, after_update=stop).run(silent())
    return answers, losses[:4], losses[4:]


def test_a_side_makes_the_first_updates_of_the_cells_own_training():
    [((ready, *answers), losses, of_training)] = apart(losses_beside_those_of_training)
    assert losses == of_training
    assert (ready, len(losses), len(answers)) == ({}, 4, 3)
    assert all(answer["seconds"] > 0 and 2**28 < answer["peak_bytes"] < 2**32 for answer in answers)
