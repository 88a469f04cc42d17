import math
from itertools import chain, pairwise
from types import SimpleNamespace

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from tunegrid.codecs.classify import ClassifyCodec
from tunegrid.codecs.features import epoch_batches
from tunegrid.grid.recipes import EVAL_BATCH
from tunegrid.run.build import checksums
from tunegrid.run.evaluate import evaluate
from tunegrid.run.metrics import Metrics
from tunegrid.tests.small import CPU, fine_tuner, get_codec, quick_cell, read_rows, silent, still

REVIEWS = read_rows("amazon_polarity/train")[:8]


def test_training_takes_the_planned_updates_of_which_an_epochs_last_may_be_smaller():
    trainer = fine_tuner(
        "bert_sa_sft", REVIEWS[:5], max_steps=0, num_train_epochs=2, per_device_train_batch_size=2
    )
    training = trainer.run(silent())
    assert trainer.total == 6
    assert training.updates == 6
    assert len(training.losses) == 6
    assert sorted(update.samples for update in trainer.meter.updates) == [1, 1, 2, 2, 2, 2]


def test_an_update_takes_as_many_micro_batches_as_are_accumulated():
    cell = quick_cell(
        "bert_sa_sft",
        max_steps=0,
        num_train_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    # 17 rows: 5 micro-batches, 3 updates per epoch
    assert cell.recipe.planned_updates(17) == 9


# Order


def test_an_epoch_covers_every_feature_once_in_batches_of_like_length():
    lengths = [1 + i % 7 for i in range(700)]
    batches = epoch_batches(lengths[:103], 4, seed=0, epoch=0)
    assert sorted(chain(*batches)) == list(range(103))
    assert sorted(map(len, batches)) == [3] + [4] * 25
    # 200 at a time: about 29 of each of 7 lengths
    for batch in epoch_batches(lengths, 10, seed=0, epoch=0):
        batch_lengths = [lengths[index] for index in batch]
        assert max(batch_lengths) - min(batch_lengths) <= 1


def test_the_order_depends_on_seed_and_epoch_only_and_is_the_one_that_bounds_were_calibrated_with():
    assert epoch_batches([3, 1, 2, 1, 3, 2, 1], 2, seed=0, epoch=0) == [[1, 6], [5, 4], [3, 2], [0]]
    lengths = [*range(60)]
    batches = epoch_batches(lengths, 4, seed=0, epoch=1)
    assert epoch_batches(lengths, 4, seed=0, epoch=1) == batches
    assert epoch_batches(lengths, 4, seed=0, epoch=2) != batches
    assert epoch_batches(lengths, 4, seed=1, epoch=1) != batches


# fp16


class Overflowing(ClassifyCodec):
    """Gradients overflow in updates 0, 3, 4 and 5; losses are finite."""

    calls = 0

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        if self.calls in (0, 3, 4, 5):
            loss.register_hook(lambda gradient: gradient * math.inf)
        self.calls += 1
        return loss


def scale_losses(trainer):
    """Gives a trainer the loss scale that it has in fp16."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.accelerator.scaler = scaler
    optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=scaler)
    trainer.optimizer = optimizer
    trainer.stepper.optimizer = optimizer


def test_recorded_gradients_are_those_without_fp16s_loss_scale():
    recorded = []
    for is_scaled in (False, True):
        trainer = fine_tuner("bert_sa_sft", REVIEWS, max_steps=1, max_grad_norm=None)
        if is_scaled:
            scale_losses(trainer)
        trainer.run(silent())
        recorded.append(trainer.log.first_step["gradients"])
    assert recorded[1] == pytest.approx(recorded[0], rel=1e-5)


def test_updates_that_fp16_lost_move_no_weight_and_no_rate():
    """The optimizer is fused and skips a lost step by itself, as on a GPU."""
    weights = []
    trainer = fine_tuner(
        "bert_sa_sft",
        REVIEWS,
        Overflowing,
        after_update=lambda trainer: weights.append(trainer.trained[0].detach().clone()),
        max_steps=6,
        per_device_train_batch_size=2,
        max_grad_norm=None,
        warmup_ratio=0.0,
        learning_rate=6e-4,
    )
    scale_losses(trainer)
    training = trainer.run(silent())
    assert [torch.equal(*pair) for pair in pairwise(weights)] == [False, False, True, True, True]
    assert trainer.log.skipped == [0, 3, 4, 5]
    assert [rate * 1e4 for rate in trainer.log.learning_rates] == pytest.approx([6, 6, 5, 4, 4, 4])
    assert training.updates == 6
    assert training.stopped is None


# The choice among epochs


@pytest.mark.parametrize("cell_id", ["bert_sa_sft", "bert_sa_lora"])
def test_the_best_epochs_weights_are_kept(cell_id):
    trainer = fine_tuner(cell_id, REVIEWS, max_steps=0, num_train_epochs=3, learning_rate=1e-2)
    epoch_scores = [1.0, 3.0, 2.0]
    epoch_weights = []

    def validate():
        epoch_weights.append(checksums(trainer.model.named_parameters()))
        return epoch_scores[len(epoch_weights) - 1], REVIEWS

    training = trainer.run(silent(), validate)
    assert training.epoch_scores == epoch_scores
    assert training.chosen_epoch == 2
    _, best, last = epoch_weights
    assert checksums(trainer.model.named_parameters()) == best
    assert best != last


# Out of memory


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_where_memory_runs_out_smaller_micro_batches_make_the_same_update(error):
    class OneRow(ClassifyCodec):
        """A codec for which memory runs out with more than one row at once."""

        def loss(self, model, batch):
            if len(batch["labels"]) > 1:
                raise error("DefaultCPUAllocator: can't allocate memory")
            return super().loss(model, batch)

    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    whole = still(fine_tuner("bert_sa_sft", REVIEWS, **settings)).run(silent())
    crowded_trainer = still(fine_tuner("bert_sa_sft", REVIEWS, OneRow, **settings))
    crowded = crowded_trainer.run(silent())
    assert crowded.losses == pytest.approx(whole.losses, abs=1e-5)
    assert whole.micro_batch == 4
    assert crowded.micro_batch == 1
    assert crowded.updates == 2
    assert whole.fallbacks == []
    assert crowded.fallbacks == [
        "out of memory at update 1 of 2: micro-batches of 2 in place of 4, "
        "accumulated to the same update",
        "out of memory at update 1 of 2: micro-batches of 1 in place of 2, "
        "accumulated to the same update",
    ]
    assert len(crowded_trainer.meter.updates) == 2  # failed updates are not training time


# Evaluation


class Longest(torch.nn.Module):
    """Calls a review good if it has over 20 tokens; has memory for `room` rows at once."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def forward(self, input_ids, attention_mask):
        if len(input_ids) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        is_longer = (attention_mask.sum(1) > 20).long()
        return SimpleNamespace(logits=10.0 * torch.nn.functional.one_hot(is_longer, 2))


@pytest.mark.parametrize(
    ("room", "batch"), [(EVAL_BATCH, EVAL_BATCH), (EVAL_BATCH // 3, EVAL_BATCH // 4)]
)
def test_where_memory_runs_out_fewer_rows_are_predicted_at_once(room, batch):
    codec = get_codec("bert_sa_sft")
    rows = read_rows("amazon_polarity/train")[: EVAL_BATCH + 9]
    evaluation = evaluate(Longest(room), codec, rows, Metrics(), CPU, silent())
    # Predictions come in the rows' order.
    lengths = [len(feature.input_ids) for feature in codec.encode(rows, training=False)]
    predictions = [prediction.value for prediction in evaluation.predictions]
    assert predictions == [int(length > 20) for length in lengths]
    assert evaluation.part.batch == batch


def test_generated_texts_are_counted_in_tokens_up_to_their_end(monkeypatch):
    codec = get_codec("t5_sum_sft")
    end = codec.end_id
    texts = torch.tensor([[5, 6, end, 0], [5, end, 0, 0]])
    monkeypatch.setattr(codec, "generate", lambda *_: texts)
    rows = read_rows("cnn_dailymail/train")[:2]
    evaluation = evaluate(torch.nn.Module(), codec, rows, Metrics(), CPU, silent())
    assert evaluation.part.generated_tokens == {"mean": 2.5, "median": 2.5, "longest": 3}
    assert evaluation.generated_tokens_per_second == pytest.approx(5 / evaluation.part.seconds)
