"""A training that is looked at on the way is the training that nobody looks at."""

import math

import pytest

from tunegrid.run.trial import Bench
from tunegrid.tests.small import CPU, cell_of, codec_for, rows_of, silent, tokenizer_of

ROWS = rows_of("amazon_polarity/train")


@pytest.fixture(scope="module")
def bench():
    codec = codec_for("bert_sa_lora")
    features = codec.encode(ROWS[:64], training=True)
    shared = {"tokenizer": tokenizer_of("bert_sa_lora"), "codec": codec, "features": features}
    return Bench(**shared, validation=ROWS[64:96], device=CPU)


def trained(bench, looks, **changes):
    trainer = bench.trainer(cell_of("bert_sa_lora", **changes))
    scores = list(bench.looks(trainer, silent(), looks))
    return trainer, scores


@pytest.mark.parametrize(("steps", "epochs"), [(6, 1), (0, 3), (2, 1)])  # 0: four updates in each of three epochs
def test_looks_change_no_loss_and_not_the_last_score(bench, steps, epochs):
    one, (score,) = trained(bench, 1, max_steps=steps, num_train_epochs=epochs)
    four, scores = trained(bench, 4, max_steps=steps, num_train_epochs=epochs)
    assert four.log.losses == one.log.losses
    assert len(one.log.losses) == (steps or 12)
    assert (len(scores), scores[-1]) == (4, score)
    assert four.log.epoch_scores == one.log.epoch_scores


def test_a_training_whose_loss_is_no_number_ends_its_looks(bench):
    trainer, scores = trained(bench, 4, max_steps=20, num_train_epochs=1, learning_rate=1e30)
    assert trainer.log.stopped
    assert not math.isfinite(trainer.log.losses[-1])
    assert len(scores) < 4
