import math
from itertools import chain, pairwise

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from tunegrid.codecs.classify import ClassifyCodec
from tunegrid.codecs.features import epoch_batches
from tunegrid.grid.recipes import EVAL_BATCH
from tunegrid.run.evaluate import evaluate
from tunegrid.run.metrics import Metrics, Scored
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
    recipe = {
        "max_steps": 0,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    # 17 rows: 5 micro-batches, 3 updates per epoch
    assert quick_cell("bert_sa_sft", **recipe).recipe.planned_updates(17) == 9
    assert quick_cell("bert_sa_sft", **recipe | {"max_steps": 7}).recipe.planned_updates(17) == 7


# Order


def test_an_epoch_covers_every_feature_once_in_batches_of_like_length():
    lengths = [1 + i % 7 for i in range(700)]
    batches = epoch_batches(lengths[:103], 4, seed=0, epoch=0)
    assert sorted(chain(*batches)) == list(range(103))
    assert sorted(map(len, batches)) == [3] + [4] * 25
    # 200 at a time: about 29 of each of 7 lengths
    batches = epoch_batches(lengths, 10, seed=0, epoch=0)
    for batch in batches:
        of_batch = [lengths[index] for index in batch]
        assert max(of_batch) - min(of_batch) <= 1


def test_the_order_depends_on_seed_and_epoch_only_and_is_the_one_that_bounds_were_calibrated_with():
    assert epoch_batches([3, 1, 2, 1, 3, 2, 1], 2, seed=0, epoch=0) == [[1, 6], [5, 4], [3, 2], [0]]
    lengths = [*range(60)]
    first = epoch_batches(lengths, 4, seed=0, epoch=1)
    assert epoch_batches(lengths, 4, seed=0, epoch=1) == first
    assert epoch_batches(lengths, 4, seed=0, epoch=2) != first
    assert epoch_batches(lengths, 4, seed=1, epoch=1) != first


# fp16


def overflowing(*updates):
    """A codec whose gradients overflow in these updates, counted from 0; its losses are finite."""

    class Overflowing(ClassifyCodec):
        calls = 0

        def loss(self, model, batch):
            loss = super().loss(model, batch)
            if self.calls in updates:
                loss.register_hook(lambda gradient: gradient * math.inf)
            self.calls += 1
            return loss

    return Overflowing


def scaled(codec, **changes):
    """A trainer that scales its losses as in fp16.

    Its optimizer is fused and skips a lost step by itself, as on a GPU.
    """
    settings = {"max_steps": 6, "per_device_train_batch_size": 2, "max_grad_norm": None}
    settings |= {"warmup_ratio": 0.0, "learning_rate": 6e-4}
    trainer = fine_tuner("bert_sa_sft", REVIEWS, codec, **settings | changes)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.accelerator.scaler = scaler
    trainer.optimizer = trainer.stepper.optimizer = AcceleratedOptimizer(
        trainer.optimizer.optimizer, scaler=scaler
    )
    return trainer


def test_updates_that_fp16_lost_move_no_weight_and_no_rate():
    weights = []
    keep = lambda trainer: weights.append(trainer.trained[0].detach().clone())  # noqa: E731
    trainer = scaled(overflowing(0, 3, 4, 5), after_update=keep)
    training = trainer.run(silent())
    assert [torch.equal(*pair) for pair in pairwise(weights)] == [False, False, True, True, True]
    assert trainer.log.skipped == [0, 3, 4, 5]
    assert [rate * 1e4 for rate in trainer.log.learning_rates] == pytest.approx([6, 6, 5, 4, 4, 4])
    assert training.updates == 6
    assert training.stopped is None


# What trains, and what is kept


@pytest.mark.parametrize("cell_id", ["bert_sa_sft", "bert_sa_lora"])
def test_the_best_epochs_weights_are_kept(cell_id):
    trainer = fine_tuner(cell_id, REVIEWS, max_steps=0, num_train_epochs=3, learning_rate=1e-2)
    kept = []

    def validate():
        kept.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
        return [1.0, 3.0, 2.0][len(kept) - 1], REVIEWS

    training = trainer.run(silent(), validate)
    assert training.epoch_scores == [1.0, 3.0, 2.0]
    assert training.chosen_epoch == 2
    assert all(torch.equal(p, kept[1][name]) for name, p in trainer.model.named_parameters())
    assert not all(torch.equal(kept[1][name], kept[2][name]) for name in kept[1])


# Out of memory


def crowded(rows: int, error=torch.OutOfMemoryError):
    """A codec for which memory runs out with more than `rows` rows at once."""

    class Crowded(ClassifyCodec):
        def loss(self, model, batch):
            if len(batch["labels"]) > rows:
                raise error("DefaultCPUAllocator: can't allocate memory")
            return super().loss(model, batch)

    return Crowded


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_where_memory_runs_out_smaller_micro_batches_make_the_same_update(error):
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    whole = still(fine_tuner("bert_sa_sft", REVIEWS, **settings))
    parts = still(fine_tuner("bert_sa_sft", REVIEWS, crowded(1, error), **settings))
    one = whole.run(silent())
    other = parts.run(silent())
    assert other.losses == pytest.approx(one.losses, abs=1e-5)
    assert one.micro_batch == 4
    assert other.micro_batch == 1
    assert other.updates == 2
    assert one.fallbacks == []
    assert other.fallbacks == [
        "out of memory at update 1 of 2: micro-batches of 2 in place of 4, accumulated to the same update",
        "out of memory at update 1 of 2: micro-batches of 1 in place of 2, accumulated to the same update",
    ]
    assert len(parts.meter.updates) == 2  # failed updates are not training time


#


class Longest(torch.nn.Module):
    """Calls a review good where it is longer than 20 tokens."""

    def forward(self, input_ids, attention_mask):
        longer = (attention_mask.sum(1) > 20).long()
        return type("Output", (), {"logits": 10.0 * torch.nn.functional.one_hot(longer, 2)})


class Narrow(Longest):
    """The same, with memory for `rows` rows at once."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, input_ids, attention_mask):
        if len(input_ids) > self.rows:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(input_ids, attention_mask)


def test_where_memory_runs_out_fewer_rows_are_predicted_at_once():
    codec = get_codec("bert_sa_sft")
    rows = read_rows("amazon_polarity/train")[: EVAL_BATCH + 9]
    wide = evaluate(Longest(), codec, rows, Metrics(), CPU, silent())
    narrow = evaluate(Narrow(EVAL_BATCH // 3), codec, rows, Metrics(), CPU, silent())
    # Predictions come in the rows' order
    lengths = [len(feature.input_ids) for feature in codec.encode(rows, training=False)]
    for evaluation in (wide, narrow):
        assert [prediction.value for prediction in evaluation.predictions] == [
            int(length > 20) for length in lengths
        ]
    assert wide.part.batch == EVAL_BATCH
    assert narrow.part.batch == EVAL_BATCH // 4


def test_generated_texts_are_counted_in_tokens_up_to_their_end(monkeypatch):
    codec = get_codec("t5_sum_sft")
    rows = read_rows("cnn_dailymail/train")[:2]
    monkeypatch.setattr(
        codec,
        "generate",
        lambda *_: torch.tensor([[5, 6, codec.end_id, 0], [5, codec.end_id, 0, 0]]),
    )
    nothing = Scored(scores={}, examples={}, sources={})
    monkeypatch.setattr("tunegrid.run.metrics.METRICS", {codec.task.problem: lambda *_: nothing})
    evaluation = evaluate(torch.nn.Module(), codec, rows, Metrics(), CPU, silent())
    assert evaluation.part.generated_tokens == {"mean": 2.5, "median": 2.5, "longest": 3}
    assert evaluation.generated_tokens_per_second == pytest.approx(5 / evaluation.part.seconds)
