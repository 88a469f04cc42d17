"""Beam search over prompts that are computed once: the texts are those of `generate`."""

import pytest
import torch
import transformers as hf
from transformers.cache_utils import DynamicCache

from lib.codecs.beams import Prefill, plain, prompt_once
from lib.tests.small import CPU, codec_for, model_of, rows_of

BEAMS = ("bert_sum_sft", "gpt2_sum_sft", "t5_sum_sft")  # the quick cells that search with beams


@pytest.fixture(params=BEAMS)
def search(request):
    """A codec, its model, and the features of some reports."""
    codec, model = codec_for(request.param), model_of(request.param).eval()
    return codec, model, codec.encode(rows_of("cnn_dailymail/test")[:24], training=False)


def test_texts_are_those_of_generate(search):
    codec, model, features = search
    plainly = [codec.until_end(ids) for ids in codec.generate(model, features, CPU).tolist()]
    assert codec.predict(model, features, CPU) == plainly
    assert len({tuple(text) for text in plainly}) > 1


def test_a_prompt_is_computed_once_a_row_and_nothing_stays_on_the_model(search):
    codec, model, features = search
    rows = []
    handle = model.register_forward_hook(lambda module, inputs, output: rows.append(len(output.logits)))
    hung = set(vars(model))
    codec.predict(model, features, CPU)
    handle.remove()
    assert rows[0] == len(features)
    assert set(rows[1:]) == {len(features) * codec.generation.num_beams}
    assert set(vars(model)) == hung
    assert not model._forward_pre_hooks


def test_an_adapted_model_searches_alike():
    codec, model = codec_for("gpt2_sum_lora", generation=codec_for("gpt2_sum_sft").generation), model_of("gpt2_sum_lora").eval()
    features = codec.encode(rows_of("cnn_dailymail/test")[:8], training=False)
    assert codec.predict(model, features, CPU) == [
        codec.until_end(ids) for ids in codec.generate(model, features, CPU).tolist()
    ]


def test_beams_that_go_on_bring_their_own_tokens_and_leave_the_prompt():
    cache, prefill = DynamicCache(), Prefill(2)
    states = torch.arange(8.0).reshape(2, 1, 4, 1)  # two beams, four tokens
    cache.update(states, states, 0)
    prefill.length = 3
    keys = prefill.reordered(cache, torch.tensor([1, 1])).layers[0].keys
    assert keys.flatten().tolist() == [0, 1, 2, 7, 4, 5, 6, 7]  # the last token is the second beam's, the first three stay


def test_one_beam_and_a_model_with_a_reordering_of_its_own_are_left_alone():
    model = torch.nn.Linear(1, 1)
    with prompt_once(model, 1):
        assert not model._forward_hooks
    model._reorder_cache = lambda cache, order: cache
    with prompt_once(model, 4):
        assert not model._forward_hooks


def test_a_cache_of_another_kind_is_not_touched():
    config = hf.MistralConfig(num_hidden_layers=1, sliding_window=4)
    assert not plain(hf.DynamicCache(config=config))
    assert plain(hf.DynamicCache())
    assert not plain(None)
    options = {"cache": None, "input_ids": torch.ones(4, 2)}
    assert Prefill(2).narrow(None, (), options) is None
