"""Beam search over prompts that are computed once: the texts are those of `generate`."""

import pytest
import torch
import transformers as hf
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lib.codecs.beams import (
    BLOCK,
    ROOM,
    WIDE,
    ByBlocks,
    Prefill,
    RoomyLayer,
    attend_apart,
    attend_together,
    cache_of,
    largest,
    plain,
    prompt_once,
    tokens_in_place,
)
from lib.run.build import perturb
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


def test_a_new_token_stands_in_its_embedding_meanwhile_and_no_bit_is_left_of_it():
    """Also where nothing is differentiated: the model trains on afterwards."""
    model = model_of("gpt2_sum_lora").eval()
    perturb(model, 1)  # so that rows are others than those that PEFT keeps
    embedding = model.get_base_model().transformer.wte.token_adapter.base_layer.weight
    [row] = [p for name, p in model.named_parameters() if "trainable_tokens_delta" in name]
    with torch.no_grad():
        row += 1
    ids, before = torch.tensor([[1, 2, 3]]), embedding.detach().clone()
    logits = model(input_ids=ids).logits
    with torch.inference_mode(), tokens_in_place(model):
        changed = (embedding != before).any(-1)
        assert embedding[changed].equal(row)
        assert model(input_ids=ids).logits.equal(logits)
    assert embedding.equal(before)
    model(input_ids=ids).logits.sum().backward()
    assert row.grad.abs().sum()


def test_a_switched_off_adapter_stays_out_of_the_embedding():
    model = model_of("gpt2_sum_lora").eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with model.disable_adapter(), tokens_in_place(model):
        assert all(p.equal(before[name]) for name, p in model.named_parameters())


def test_an_output_layer_with_a_bias_computes_what_it_computed_in_training():
    """PEFT leaves the bias out where it copies the weights, and adds it where they are merged."""
    model = model_of("gpt2_sum_lora").eval()
    head, before = model.get_base_model().lm_head.token_adapter.base_layer, model(input_ids=torch.tensor([[1, 2]])).logits
    head.bias = torch.nn.Parameter(torch.ones(head.out_features))
    with tokens_in_place(model):
        assert model(input_ids=torch.tensor([[1, 2]])).logits.equal(before)


def layer_of(states, beams=1, *, apart=False):
    """A layer of a cache that holds these keys, and values that are 100 more."""
    cache = DynamicCache()
    cache.update(states, states + 100, 0)
    return RoomyLayer(cache.layers[0], beams, apart=apart)


@pytest.mark.parametrize("apart", [True, False])
def test_beams_that_go_on_bring_their_own_tokens_and_leave_the_prompt(apart):
    layer, fresh = layer_of(torch.arange(3.0).reshape(1, 1, 3, 1), 2, apart=apart), torch.tensor([7.0, 8.0]).reshape(2, 1, 1, 1)
    layer.reorder_cache(torch.tensor([1, 0]))  # before there is a token
    layer.update(fresh, fresh + 100)
    layer.reorder_cache(torch.tensor([1, 1]))
    layer.update(fresh - 2, fresh + 98)
    prompt = [] if apart else [0, 1, 2]
    assert layer.keys.squeeze().tolist() == [[*prompt, 8, 5], [*prompt, 8, 6]]
    assert torch.equal(layer.values, layer.keys + 100)
    assert layer.get_seq_length() == 5
    assert [part.flatten().tolist() for part in layer.prompt or ()] == ([[0, 1, 2], [100, 101, 102]] if apart else [])


def test_tokens_are_appended_where_there_is_room_and_what_was_written_stays():
    first, fresh = torch.arange(6.0).reshape(1, 1, 3, 2), torch.tensor([[[[6.0, 7.0]]]])
    layer = layer_of(first)
    layer.update(fresh, fresh + 100)
    block = layer.keys.data_ptr()
    for token in range(4, 70):  # past the room that is made at first
        layer.update(fresh + token, fresh + 100 + token)
        assert (layer.keys.data_ptr() == block) == (token < 4 + ROOM), "a block is left only where it is full"
    keys = layer.keys[0, 0, :, 0].tolist()
    assert keys[:4] == [0, 2, 4, 6]
    assert keys[4:] == [6 + token for token in range(4, 70)]
    assert torch.equal(layer.values, layer.keys + 100)
    assert layer.get_seq_length() == 70


def test_beams_of_a_row_attend_to_its_keys_as_if_each_had_its_own():
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(6, 2, 1, 4, generator=draw)  # two rows of three beams
    key, value = torch.randn(2, 2, 5, 4, generator=draw), torch.randn(2, 2, 5, 4, generator=draw)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2]).view(2, 1, 1, 5).repeat_interleave(3, 0)
    module = torch.nn.Module()
    apart = [part.repeat_interleave(3, 0) for part in (key, value)]
    together, _ = attend_together(module, query, key, value, mask)
    alone, _ = attend_together(module, query, *apart, mask)
    assert together.shape == (6, 1, 2, 4)
    assert torch.allclose(together, alone, atol=1e-6)
    assert not torch.allclose(together[:3], together[:3].flip(0), atol=1e-3), "beams ask different questions"


@pytest.mark.parametrize("mask", ["none", "where to look", "what to add"])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_a_prompt_kept_apart_is_read_as_if_it_stood_before_the_tokens(mask, scaling):
    draw = torch.Generator().manual_seed(0)
    layer, own = layer_of(torch.randn(2, 2, 5, 4, generator=draw), 3, apart=True), torch.randn(6, 2, 3, 4, generator=draw)
    layer.update(own, own - 1)
    query = torch.randn(6, 2, 1, 4, generator=draw)
    key, value = (
        torch.cat([prompt.repeat_interleave(3, 0), tokens], 2)
        for prompt, tokens in zip(layer.prompt, (layer.keys, layer.values), strict=True)
    )
    look = torch.ones(6, 1, 1, 8, dtype=torch.bool)
    look[:3, :, :, :2] = look[4, :, :, 6] = False
    given = {"none": None, "where to look": look, "what to add": torch.randn(1, 1, 1, 8, generator=draw)}[mask]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, given, scale=scaling).transpose(1, 2)
    assert torch.allclose(attend_apart(query, layer, given, scaling), expected, atol=1e-6)
    assert [part.equal(other) for part, other in zip(layer.whole(), (key, value), strict=True)] == [True, True]


def test_a_decoder_keeps_prompts_apart_where_its_heads_have_keys_of_their_own():
    """Grouped heads share keys, and differential attention reads other values than the cache's: these stay with the tokens."""
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    models = {
        "gpt2": model_of("gpt2_sum_sft"),
        "llama": hf.LlamaForCausalLM(hf.LlamaConfig(**shape, num_key_value_heads=2)),
        "diffllama": hf.DiffLlamaForCausalLM(hf.DiffLlamaConfig(**shape)),
    }
    kept = {}
    for name, model in models.items():
        prompt = {"input_ids": torch.tensor([[1, 5, 7], [9, 3, 4]]), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
        search = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
        plainly = model.eval().generate(**prompt, **search)
        with prompt_once(model, 3):
            handle = model.register_forward_hook(
                lambda module, inputs, options, output: kept.update({name: cache_of(options).layers[0].prompt}),  # noqa: B023
                with_kwargs=True,
            )
            assert torch.equal(model.generate(**prompt, **search), plainly)
            handle.remove()
    assert kept["llama"] is kept["diffllama"] is None
    assert [len(part) for part in kept["gpt2"]] == [2, 2]


def test_what_an_encoder_made_of_a_row_is_kept_once():
    codec, model = codec_for("t5_sum_sft"), model_of("t5_sum_sft").eval()
    features, kept = codec.encode(rows_of("cnn_dailymail/test")[:3], training=False), []
    handle = model.register_forward_hook(
        lambda module, inputs, options, output: kept.append(len(cache_of(options).cross_attention_cache.layers[0].keys)),
        with_kwargs=True,
    )
    codec.predict(model, features, CPU)
    handle.remove()
    assert set(kept) == {3}
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward, "outside the search, attention is transformers' own"


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
    assert Prefill(2, shared=False).narrow(None, (), options) is None


@pytest.mark.parametrize("count", [WIDE, WIDE + BLOCK + 5])
def test_the_largest_scores_are_those_of_torch_in_its_order(count):
    scores = torch.randn(16, count, generator=torch.Generator().manual_seed(0))
    scores[0, -1] = 9.0  # the largest is in the last block, or in the rest, which fills none
    scores[1, : 3 * BLOCK] = float("-inf")
    values, places = largest(scores, 8)
    expected = scores.topk(8)
    assert torch.equal(values, expected.values)
    assert torch.equal(places, expected.indices)


def test_of_equal_scores_those_are_taken_that_torch_takes():
    scores = torch.randn(16, WIDE, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    expected = scores.topk(8)
    assert (expected.values[:, 1:] == expected.values[:, :-1]).any()
    assert torch.equal(largest(scores, 8)[1], expected.indices)


@pytest.mark.parametrize(
    ("count", "options", "blocks"), [(WIDE, {"k": 8}, 1), (WIDE - 1, {"k": 8}, 0), (WIDE, {"k": BLOCK}, 0)]
)
def test_blocks_are_for_many_scores_of_which_few_are_wanted(monkeypatch, count, options, blocks):
    asked = []
    monkeypatch.setattr("lib.codecs.beams.largest", lambda scores, k: asked.append(k) or scores.topk(k))
    with ByBlocks():
        torch.topk(torch.zeros(2, count), **options)
        torch.topk(torch.zeros(2, count), 8, largest=False)
        torch.zeros(2, count).topk(8)
    assert len(asked) == blocks


def test_a_search_over_a_wide_vocabulary_goes_by_blocks(monkeypatch):
    config = hf.GPT2Config(
        vocab_size=WIDE // 2 + 3, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1
    )
    torch.manual_seed(0)
    model = hf.GPT2LMHeadModel(config).eval()
    prompt = torch.randint(2, config.vocab_size, (3, 6))
    options = {
        "attention_mask": torch.ones_like(prompt),
        "num_beams": 2,
        "max_new_tokens": 8,
        "pad_token_id": 0,
        "do_sample": False,
    }
    plainly = model.generate(prompt, **options)
    shapes = []
    monkeypatch.setattr("lib.codecs.beams.largest", lambda scores, k: shapes.append((*scores.shape, k)) or largest(scores, k))
    with prompt_once(model, 2):
        assert torch.equal(model.generate(prompt, **options), plainly)
    assert shapes == [(3, WIDE + 6, 4)] * 8
    assert not {"_reorder_cache", "_get_top_k_continuations"} & set(vars(model))
