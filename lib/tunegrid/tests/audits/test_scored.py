"""Audits of the very answers that were scored, on cells that were trained and scored with a fault in the libraries."""

from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicLayer

from tunegrid.audits import scores
from tunegrid.grid.recipes import FULL_PROFILE
from tunegrid.run.evaluate import evaluate
from tunegrid.run.metrics import Metrics
from tunegrid.run.probe import hooked
from tunegrid.tests.small import CPU, evidence_from, rows_of, silent, train_rows, trainer_of

TEST = {"sa": "amazon_polarity/train", "qa": "squad/validation", "sum": "cnn_dailymail/test"}


@cache
def trained(cell_id):
    trainer = trainer_of(cell_id, train_rows(cell_id)[:400])
    trainer.run(silent())
    return trainer


def scored_by(cell_id, count=70):
    """What a trained cell leaves behind after its test rows were scored, BERTScore aside."""
    trainer = trained(cell_id)
    rows = rows_of(TEST[trainer.cell.task.id])[-count:]
    evaluation = evaluate(trainer.model, trainer.codec, rows, Metrics(), CPU, silent())
    return evidence_from(trainer, evaluation=evaluation)


@pytest.fixture(scope="module")
def summaries():
    return scored_by("gpt2_sum_sft")


def test_sound_summaries_are_the_models_beams_included(summaries):
    assert summaries.codec.generation.num_beams > 1
    assert scores.texts_are_the_models(summaries) == (
        True,
        "the most doubtful of 8 texts: 0.0e+00 of the largest logit below the best",
    )
    assert scores.cache_changes_nothing(summaries)[0]


def test_beams_that_keep_each_others_cache_are_seen_in_what_was_scored(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(DynamicLayer, "reorder_cache", lambda layer, beams: None)
        broken = scored_by("gpt2_sum_sft")
        assert not scores.cache_changes_nothing(broken)[0]
    assert not scores.texts_are_the_models(broken)[0]  # by now the library is sound again: the scored texts show it


def test_a_text_that_another_row_would_get_is_not_the_models():
    evidence = scored_by("t5_sum_lora")
    assert scores.texts_are_the_models(evidence)[0]
    outputs = evidence.evaluation.outputs
    other = replace(evidence, evaluation=replace(evidence.evaluation, outputs=[*outputs[1:], outputs[0]]))
    assert not scores.texts_are_the_models(other)[0]


def test_padding_that_is_read_is_seen_in_what_was_scored(monkeypatch):
    assert scores.scored_alone_as_in_batch(scored_by("bert_sa_lora"))[0]
    attend = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *states, attn_mask=None, **options: attend(*states, **options)
    )
    passed, detail = scores.scored_alone_as_in_batch(scored_by("bert_sa_lora"))
    assert not passed, detail


@contextmanager
def brought(config, checkpoint):
    """A generation_config that brings more, as a checkpoint's."""
    before = {name: getattr(config, name) for name in checkpoint}
    config.update(**checkpoint)
    try:
        yield
    finally:
        config.update(**before)


def test_the_recipe_alone_says_how_texts_are_searched():
    """With four beams: the first finished texts are then not the best ones, which two hardly show."""
    trainer = trained("t5_sum_sft")
    features = trainer.codec.encode(rows_of(TEST["sum"])[-70:], training=False)

    def texts():
        with torch.no_grad():
            return trainer.codec.generate(trainer.model.eval(), features, CPU, num_beams=4, length_penalty=2.0).tolist()

    plain = texts()
    with brought(
        trainer.model.generation_config, {"early_stopping": True, "forced_bos_token_id": 5, "suppress_tokens": [1, 7]}
    ):
        assert texts() == plain


def test_an_encoder_reads_the_source_of_a_search_once():
    evidence = scored_by("t5_sum_lora", count=16)
    read, written = [], []
    encoder, decoder = evidence.model.get_encoder(), evidence.model.get_decoder()
    with hooked([encoder], lambda *_: read.append(1)), hooked([decoder], lambda *_: written.append(1)):
        assert scores.texts_are_the_models(evidence)[0]
    assert len(read) == 2, "8 texts at once, and the one that is searched anew"
    assert len(written) > 8, "one pass per token"


def test_a_search_by_a_model_of_true_size_is_not_made_on_a_cpu(summaries):
    cell = summaries.cell
    assert scores.texts_are_the_models(replace(summaries, cell=replace(cell, profile=FULL_PROFILE))) is None


@pytest.mark.parametrize("beams", [1, 2])
def test_empty_texts_are_nobodys(summaries, beams):
    codec = copy(summaries.codec)
    codec.recipe = replace(codec.recipe, generation=replace(codec.generation, num_beams=beams))
    empty = replace(summaries.evaluation, outputs=[[] for _ in summaries.evaluation.outputs])
    assert scores.texts_are_the_models(replace(summaries, codec=codec, evaluation=empty)) is None


def test_rows_are_the_shortest_a_padded_one_and_the_longest():
    evidence = scored_by("bert_sa_lora", count=100)
    lengths = [len(feature.input_ids) for feature in evidence.evaluation.features]
    shortest, padded, longest = scores.scored_rows(evidence.evaluation)
    assert (lengths[longest], lengths[shortest]) == (max(lengths), min(lengths))
    assert lengths[padded] == sorted(lengths)[-64] < max(lengths)  # the last of the first batch of 64
    nothing = replace(evidence, evaluation=None)
    assert scores.scored_alone_as_in_batch(nothing) is scores.texts_are_the_models(nothing) is None
