"""What trackers get of a training run, and when; a tracker that fails costs no cell."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.run.trackers import Trackers
from tunegrid.run.train import TrainingLog
from tunegrid.tests.records import complete

CELL = STUDY.cell("bert_sa_lora", QUICK_PROFILE)


class FakeTracker:
    """Notes what it is called with; one that is told to fails when it is given numbers."""

    def __init__(self, calls, fails=False):
        self.calls = calls
        self.fails = fails

    def start(self):
        torch.rand(1)  # as one that draws itself a name
        self.calls.append("start")

    def store_init_configuration(self, settings):
        self.calls.append(settings)

    def log(self, figures, step):
        if self.fails:
            raise OSError("no network")
        self.calls.append((step, figures))

    def finish(self):
        self.calls.append("finish")


@pytest.fixture
def make_trackers(monkeypatch, tmp_path):
    """Makes trackers and the list of calls that they note."""
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", FakeTracker)

    def make(fails=False):
        calls = []
        options = {"wandb": {"calls": calls, "fails": fails}}
        return Trackers(CELL, options, tmp_path / "lock"), calls

    return make


def make_trainer(losses, norms):
    # The host has all rates; losses and norms come from the device now and then.
    log = TrainingLog(
        precision="fp32",
        micro_batch=2,
        fallbacks=[],
        losses=losses,
        learning_rates=[0.1] * 4,
        gradient_norms=norms,
    )
    return SimpleNamespace(log=log, meter=SimpleNamespace(device=torch.device("cpu")))


def test_each_update_is_sent_once_when_its_loss_is_known_and_scores_at_the_end(make_trackers):
    trackers, calls = make_trackers()
    state = torch.get_rng_state()
    for losses in ([], [0.5, 0.25], [0.5, 0.25], [0.5, 0.25, 0.125]):
        trackers.after_update(make_trainer(losses, [1.0] * len(losses)))
    trackers.finish(complete(scores={"accuracy": 91.0, "f1": None}))
    assert calls[0] == "start"
    assert calls[1]["learning_rate"] == CELL.recipe.learning_rate
    assert calls[1]["adapter.r"] == CELL.recipe.adapter.r
    rest = {"train/learning_rate": 0.1, "train/gradient_norm": 1.0}
    assert calls[2:] == [
        (1, {"train/loss": 0.5} | rest),
        (2, {"train/loss": 0.25} | rest),
        (3, {"train/loss": 0.125} | rest),
        (3, {"eval/accuracy": 91.0}),
        "finish",
    ]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tracker_that_fails_is_dropped_with_one_warning(make_trackers):
    trackers, calls = make_trackers(fails=True)
    with pytest.warns(
        UserWarning, match="--report-to=wandb: no network; bert_sa_lora.* is not reported"
    ):
        trackers.after_update(make_trainer([0.5], []))
    trackers.after_update(make_trainer([0.5, 0.25], []))
    trackers.finish(None)
    assert len(calls) == 2  # its start and its settings


def test_a_cell_that_never_trained_starts_no_tracker(make_trackers):
    trackers, calls = make_trackers()
    trackers.finish(complete())
    assert calls == []
