"""One turn of a comparison: a clock that does not count what others take, and a cell's first updates by its recipe."""

import json
import time
from contextlib import suppress

from tunegrid.commands.speed import Settings
from tunegrid.data.splits import load_splits
from tunegrid.run import turn
from tunegrid.run.first_step import MOVED
from tunegrid.run.training import Trainer
from tunegrid.tests.processes import apart
from tunegrid.tests.small import cell_of, silent, trainer_for


def test_time_that_others_had_the_core_is_taken_off():
    earlier, later = turn.Moment(at=10.0, waited=1.0), turn.Moment(at=12.0, waited=1.5)
    assert turn.OwnClock().seconds(earlier, later) == 1.5


def test_linux_tells_how_long_a_thread_waited(tmp_path, monkeypatch):
    (tmp_path / "schedstat").write_text("5000000000 2500000000 17\n")
    monkeypatch.setattr(turn, "SCHEDULER", tmp_path / "schedstat")
    assert turn.waited() == 2.5
    monkeypatch.setattr(turn, "SCHEDULER", tmp_path / "none")
    assert turn.waited() == 0.0


def test_a_moment_in_which_the_core_was_lost_is_read_again(monkeypatch):
    readings = iter([1.0, 1.5, 1.5, 1.5])  # the thread waited for half a second between the first two
    monkeypatch.setattr(turn, "waited", lambda: next(readings))
    monkeypatch.setattr(time, "perf_counter", iter([10.0, 11.0]).__next__)
    assert turn.OwnClock().mark() == turn.Moment(at=11.0, waited=1.5)


def test_a_threads_own_sleep_counts():
    clock = turn.OwnClock()
    began = clock.mark()
    time.sleep(0.05)
    assert clock.seconds(began, clock.mark()) > 0.04


def test_what_only_first_updates_do_is_over_before_the_timed_ones():
    assert Settings().warm > MOVED  # figures of the first updates, and AdamW by definition beside them


class FourUpdates(Exception):
    """The training has made four updates."""


def losses_of_a_turn_and_of_training():
    """A turn of a cell, the losses of its updates, and those of as many updates of the cell's own training."""
    losses, update, cell = [], Trainer.update, cell_of("bert_sa_lora")

    def kept(trainer, group):
        losses.append(float(update(trainer, group)))

    def stop(trainer):
        if trainer.log.updates == 4:
            raise FourUpdates

    Trainer.update = kept
    turns = []
    measured = turn.measured(cell, warm=1, updates=3, rows=8, in_turn=lambda: turns.append(len(losses)))
    assert turns == [1, 2, 3, 4]  # before each timed update, and after the last
    with suppress(FourUpdates):
        trainer_for(cell, load_splits(cell.task, cell.profile).train, after_update=stop).run(silent())
    return measured, losses[:4], losses[4:]


def test_a_turn_measures_the_first_updates_of_the_cells_own_training():
    [(measured, losses, of_training)] = apart(losses_of_a_turn_and_of_training)
    assert losses == of_training
    assert len(losses) == 4
    assert len(measured.update_seconds) == 3
    assert measured.rows_per_second > 0
    assert 2**28 < measured.peak_bytes < 2**32
    assert 0 <= measured.waited_share < 1


def test_the_command_prints_a_turn_as_json(monkeypatch, capsys):
    answer = turn.Turn(update_seconds=[0.1], waited_share=0.0, rows_per_second=None, peak_bytes=5)
    asked = []
    monkeypatch.setattr(turn, "measured", lambda cell, **options: asked.append((cell.id, options)) or answer)
    assert turn.main(["bert_sa_lora", "--warm", "2", "--updates", "7"]) == 0
    [(cell, options)] = asked
    assert (cell, options["warm"], options["updates"], options["rows"]) == ("bert_sa_lora", 2, 7, 0)
    assert json.loads(capsys.readouterr().out)["peak_bytes"] == 5
