"""Audits of the very answers that were scored, on cells that were trained and scored with a fault in the libraries."""

from dataclasses import replace
from functools import cache

import pytest
from torch import nn
from transformers.cache_utils import DynamicLayer

from tunegrid.audits import run_audits, scores
from tunegrid.run.evaluate import evaluate
from tunegrid.run.metrics import Metrics
from tunegrid.tests.small import CPU, fine_tuner, get_evidence, read_rows, silent, train_rows

TEST = {"sa": "amazon_polarity/train", "qa": "squad/validation", "sum": "cnn_dailymail/test"}


@cache
def trained(cell_id):
    trainer = fine_tuner(cell_id, train_rows(cell_id)[:400])
    trainer.run(silent())
    return trainer


def score_cell(cell_id, count=70):
    """What a trained cell leaves behind after its test rows were scored, BERTScore aside."""
    trainer = trained(cell_id)
    rows = read_rows(TEST[trainer.cell.task.id])[-count:]
    evaluation = evaluate(trainer.model, trainer.codec, rows, Metrics(), CPU, silent())
    return get_evidence(trainer, evaluation=evaluation)


@pytest.fixture(scope="module")
def summaries():
    return score_cell("gpt2_sum_sft")


def test_sound_summaries_are_the_models_beams_included(summaries):
    assert summaries.codec.generation.num_beams > 1
    assert scores.texts_are_the_models(summaries) == (True, "8 texts: below the best by 0.0e+00 of the largest logit")
    assert scores.cache_changes_nothing(summaries)[0]


def test_beams_that_keep_each_others_cache_are_seen_in_what_was_scored(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(DynamicLayer, "reorder_cache", lambda layer, beams: None)
        broken = score_cell("gpt2_sum_sft")
        assert not scores.cache_changes_nothing(broken)[0]
    assert not scores.texts_are_the_models(broken)[0]  # by now the library is sound again: the scored texts show it


def test_rows_are_the_shortest_a_padded_one_and_the_longest():
    evidence = score_cell("bert_sa_lora", count=100)
    lengths = [len(feature.input_ids) for feature in evidence.evaluation.features]
    shortest, padded, longest = scores.scored_rows(evidence.evaluation)
    assert (lengths[longest], lengths[shortest]) == (max(lengths), min(lengths))
    assert lengths[padded] == sorted(lengths)[-64] < max(lengths)  # the last of the first batch of 64
    names = {finding.name for finding in run_audits(replace(evidence, evaluation=None), ["of scores"])}
    assert names == set()  # nothing was scored


def test_padding_that_is_read_is_seen_in_what_was_scored(monkeypatch):
    assert scores.scored_alone_as_in_batch(score_cell("bert_sa_lora"))[0]
    attend = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *states, attn_mask=None, **options: attend(*states, **options)
    )
    passed, detail = scores.scored_alone_as_in_batch(score_cell("bert_sa_lora"))
    assert not passed, detail
