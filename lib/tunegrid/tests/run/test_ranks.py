"""One cell on several ranks is the cell on one process: its losses, its rows, its weights."""

from dataclasses import replace

import pytest
import torch

from tunegrid.audits.training import ranks_end_alike, ranks_train_as_one
from tunegrid.errors import InputError
from tunegrid.grid.recipes import ZOO_PROFILE
from tunegrid.grid.zoo import zoo
from tunegrid.run.build import checksums
from tunegrid.run.evaluate import evaluate
from tunegrid.run.metrics import Metrics
from tunegrid.run.ranks import ALONE
from tunegrid.tests.ranked import CUT, HEADS, cut_on, on_ranks
from tunegrid.tests.small import (
    CPU,
    codec_for,
    evidence_from,
    model_of,
    rows_of,
    silent,
    still,
    train_rows,
    trainer_for,
    trainer_of,
)

METHODS = {cell_id.split("_")[2] for cell_id in zoo().ids(ZOO_PROFILE)} - {"sft"}
PACKED = sorted(name for name in METHODS if zoo().methods[name].quantization)
PLAIN = sorted(METHODS.difference(PACKED))


def course_of(trainer):
    still(trainer).run(silent())
    marks = checksums((name, p) for name, p in trainer.model.named_parameters() if p.requires_grad)
    return trainer.log, marks


def both(ranks, make):
    """The log of a training on all ranks and, on the first, of one process alone; the weights they end with."""
    return course_of(make(ranks)), course_of(make(ALONE)) if ranks.rank == 0 else None


def of_study(cell_id, count, changes):
    rows = train_rows(cell_id)[:count]
    return lambda ranks: trainer_of(cell_id, rows, ranks=ranks, **changes)


def of_zoo(method):
    """The method on GPT-2 and reviews, or where it has no cell there, on another."""
    ids = zoo().ids(ZOO_PROFILE)
    cell_id = next(cell_id for cell_id in (f"gpt2_sa_{method}", f"bert_sum_{method}", f"t5_sum_{method}") if cell_id in ids)
    cell = zoo().cell(cell_id, replace(ZOO_PROFILE, max_steps=3, changes=CUT))
    return lambda ranks: trainer_for(cell, train_rows(cell_id)[:14], ranks=ranks)


def study_on(ranks, cell_id, count, changes):
    return both(ranks, of_study(cell_id, count, changes))


def zoo_on(ranks, method):
    return both(ranks, of_zoo(method))


def hold_to_one(answers, nats=1e-4, share=1e-3):
    """Losses, order of rows and gradients are one process's; all ranks end with the same weights."""
    ((ours, weights), (alone, _)), *others = answers
    assert ours.losses == pytest.approx(alone.losses, abs=nats)
    assert ours.order == alone.order
    clipped = [norm for norm in alone.gradient_norms if norm is not None]
    assert [norm for norm in ours.gradient_norms if norm is not None] == pytest.approx(clipped, rel=share)
    assert all(other == weights for (_, other), _ in others)


@pytest.mark.parametrize("cell_id", HEADS)
@pytest.mark.slow
def test_every_head_trains_on_two_ranks_as_on_one(cell_id):
    hold_to_one(on_ranks(2, study_on, cell_id, 14, CUT))


@pytest.mark.parametrize("method", PLAIN)
def test_every_method_trains_on_two_ranks_as_on_one(method):
    hold_to_one(on_ranks(2, zoo_on, method))


@pytest.mark.parametrize("method", PACKED)
def test_every_method_over_nf4_trains_on_two_ranks_as_on_one_but_for_bf16s_rounding(method):
    """A packed base computes in bf16, which rounds otherwise in a batch of another shape: by 3e-4 nats in three updates."""
    hold_to_one(on_ranks(2, zoo_on, method), nats=5e-3, share=5e-2)


# Audits


def audits_of(ranks, broken):
    trainer = trainer_of("gpt2_sum_lora", rows_of("cnn_dailymail/train")[:12], ranks=ranks, **CUT)
    if broken == "mean of each rank":
        trainer.divisors = lambda batches: [ranks.count * sum(map(trainer.codec.targets, batches))] * len(batches)
    evidence = evidence_from(trainer)
    early = ranks_train_as_one(evidence)
    trainer.run(silent())
    if broken == "a rank of its own" and ranks.rank == 1:
        with torch.no_grad():
            trainer.trained[0].add_(1e-3)
    return early, ranks_end_alike(evidence)


@pytest.mark.parametrize("broken", ["", "mean of each rank", "a rank of its own"])
def test_ranks_that_train_as_one_pass_and_others_are_named(broken):
    (early, late), (_, other) = on_ranks(2, audits_of, broken)
    assert early[0] == (broken != "mean of each rank"), early
    assert early[1].startswith("2 ranks, 6 rows: loss off by ")
    assert late[0] == (broken != "a rank of its own"), late
    assert late[0] or late[1].endswith("; 1 ranks have others than the first: 1")
    assert broken or other == late


# Evaluation


def scored_on(ranks, cell_id, count):
    evaluated = []
    codec = codec_for(cell_id)

    class Recording(type(codec)):
        def predict(self, model, features, device):
            evaluated.extend(feature.example for feature in features)
            return super().predict(model, features, device)

    rows = train_rows(cell_id)[:count]
    evaluation = evaluate(model_of(cell_id), Recording(codec.cell, codec.tokenizer), rows, Metrics(), CPU, silent(), ranks)
    return evaluated, evaluation.scores, evaluation.examples, [prediction.value for prediction in evaluation.predictions]


@pytest.mark.parametrize(("cell_id", "count"), [("bert_sa_sft", 7), ("gpt2_qa_sft", 2)])
def test_three_ranks_score_every_row_once(cell_id, count):
    answers = on_ranks(3, scored_on, cell_id, count)
    assert sorted(row for evaluated, *_ in answers for row in evaluated) == list(range(count))
    assert answers[0][1:] == answers[1][1:] == answers[2][1:] == scored_on(ALONE, cell_id, count)[1:]


# Memory and counts


def meters_of(ranks):
    trainer = trainer_of("bert_sa_sft", rows_of("amazon_polarity/train")[:14], ranks=ranks, **CUT)
    training = trainer.run(silent())
    return trainer.meter.over(ranks), [update.samples for update in trainer.meter.updates], training.tokens


def test_the_record_has_each_rank_and_counts_rows_and_tokens_of_all():
    (record, samples, tokens), _ = on_ranks(2, meters_of)
    assert (record.count, record.backend) == (2, "gloo")
    assert [rank["train_samples"] for rank in record.each] == [7, 7]
    assert samples == [6, 6, 2]
    assert tokens == meters_of(ALONE)[2]


# Checkpoints


@pytest.mark.parametrize(("loses_a_file", "goes_on_at"), [(False, 2), (True, 0)])
def test_ranks_that_were_cut_go_on_together_or_not_at_all(tmp_path, loses_a_file, goes_on_at):
    for began, losses, again, same in on_ranks(2, cut_on, tmp_path / "kept.safetensors", loses_a_file):
        assert began == goes_on_at
        assert again == losses
        assert same


# What cannot be done


def out_of_memory_on(ranks):
    trainer = trainer_of("bert_sa_sft", rows_of("amazon_polarity/train")[:4], ranks=ranks, **CUT)

    def full(model, batch):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    trainer.codec.loss = full
    try:
        trainer.run(silent())
    except InputError as error:
        return str(error)


def test_memory_that_runs_out_on_a_rank_is_one_sentence():
    _, sentence = on_ranks(2, out_of_memory_on)
    assert sentence.startswith("bert_sa_sft does not fit: memory runs out at update 1 of 3 on rank 1 of 2 (CUDA out of memory.")
    assert sentence.endswith("; take more ranks, or share out its weights with --ranks N:fsdp")
