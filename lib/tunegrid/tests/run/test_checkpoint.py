"""A training that was cut off goes on to the same weights, bit for bit."""

import re

import pytest
import torch

from tunegrid.run.checkpoint import Checkpoints
from tunegrid.tests.small import silent, train_rows, trainer_of

UPDATES = 12


class Cut(Exception):
    """Training ends here."""


def trainer_for(cell_id, path, resume, cut_at=None, epochs=1, every_seconds=0.0):
    rows = train_rows(cell_id)[:24]
    settings = {"max_steps": UPDATES, "num_train_epochs": epochs, "per_device_train_batch_size": 4}
    checkpoints = Checkpoints(path=path, every_seconds=every_seconds, resume=resume)
    trainer = trainer_of(cell_id, rows, after_update=checkpoints.save_if_due, **settings)
    checkpoints.restore(trainer)
    if cut_at is not None:
        update = trainer.update

        def cut(group):
            if trainer.log.updates == cut_at:
                raise Cut
            return update(group)

        trainer.update = cut
    return trainer


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.parameters.items() if p.requires_grad}


# bert_qa_qlora has bitsandbytes' 8-bit moments; gpt2 accumulates two micro-batches; dropout is on in all of them.
@pytest.mark.parametrize("cell_id", ["bert_qa_qlora", "gpt2_sum_lora"])
def test_a_run_that_was_cut_ends_with_the_weights_of_one_that_was_not(cell_id, tmp_path):
    cut_at = 6
    whole = trainer_for(cell_id, tmp_path / "whole.safetensors", resume=False)
    training = whole.run(silent())
    path = tmp_path / "cut.safetensors"
    with pytest.raises(Cut):
        trainer_for(cell_id, path, resume=False, cut_at=cut_at).run(silent())
    resumed = trainer_for(cell_id, path, resume=True)
    again = resumed.run(silent())
    assert again.losses == training.losses
    assert resumed.log.learning_rates == whole.log.learning_rates
    assert (again.updates, again.order) == (training.updates, training.order)
    assert all(torch.equal(p, weights(whole)[name]) for name, p in weights(resumed).items())
    assert again.fallbacks == [f"resumed at update {cut_at} of {UPDATES}; seconds and throughput are of the rest"]
    Checkpoints(path=path, every_seconds=0.0).clear()
    assert not path.exists()


class State:
    """An object with a state to save and restore."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_a_state_comes_back_as_it_was(tmp_path):
    path = tmp_path / "state.safetensors"
    state = {"log": {"updates": 1}, "a.b": {"0": {"step": torch.ones(2), "rate": 0.5}}, "none": {}, "list": [1, 2], "no": None}
    Checkpoints(path=path, every_seconds=0.0).save_if_due(State(state))
    target = State()
    Checkpoints(path=path, every_seconds=0.0, resume=True).restore(target)
    assert torch.equal(target.state["a.b"]["0"].pop("step"), torch.ones(2))
    assert target.state == {"log": {"updates": 1}, "a.b": {"0": {"rate": 0.5}}, "none": {}, "list": [1, 2], "no": None}


def test_what_cannot_be_written_costs_the_checkpoint_alone(tmp_path):
    (tmp_path / "folder").write_text("a file where the folder should be")
    for path, state, trouble in (
        (tmp_path / "folder" / "state.safetensors", {"tensor": torch.ones(1)}, "Not a directory|File exists"),
        (tmp_path / "state.safetensors", {"function": print}, "not JSON serializable"),
    ):
        checkpoints = Checkpoints(path=path, every_seconds=0.0)
        checkpoints.save_if_due(State(state))
        assert re.search(trouble, checkpoints.trouble)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_that_was_cut_off_is_set_aside_in_a_sentence_and_training_starts_anew(tmp_path):
    path = tmp_path / "cut.safetensors"
    with pytest.raises(Cut):
        trainer_for("bert_sa_sft", path, resume=False, cut_at=4).run(silent())
    whole = path.read_bytes()
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        target, checkpoints = State(), Checkpoints(path=path, every_seconds=0.0, resume=True)
        checkpoints.restore(target)
        assert target.state is None
        [sentence] = checkpoints.remarks
        assert sentence.startswith("started anew: the checkpoint cannot be read (")
        assert sentence.endswith("; it is now cut.safetensors.broken")
        assert (path.with_name("cut.safetensors.broken").read_bytes(), path.exists()) == (whole[:length], False)
