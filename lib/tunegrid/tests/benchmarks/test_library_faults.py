"""Each fault that is planted in a library bites: another answer on a small input, and the former one afterwards."""

import bitsandbytes as bnb
import pytest
import torch
import transformers as hf
from peft.tuners.trainable_tokens import TrainableTokensConfig, TrainableTokensLayer
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.faults import CELL_FAULTS

PLANTED = [fault for fault in CELL_FAULTS if fault.breaks == "libraries"]


def any_dropped():
    torch.manual_seed(0)
    return bool((torch.dropout(torch.ones(64), 0.5, True) == 0).any())


def beams():
    """The keys of two beams that both go on from the second one."""
    cache = hf.DynamicCache()
    cache.update(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), 0)
    cache.reorder_cache(torch.tensor([1, 1]))
    return cache.layers[0].keys.flatten().tolist()


def cached_values():
    cache = hf.DynamicCache()
    for value in (1.0, 2.0, 3.0):
        cache.update(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), value), 0)
    return cache.layers[0].values.flatten().tolist()


def attended(tokens):
    """What the last of so many tokens, decoded one by one, reads of the values 0 and 1 with the scores 0 and 2."""
    module = nn.Identity()
    key, value = torch.tensor([0.0, 2.0]).reshape(1, 1, 2, 1), torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1)
    read = [ALL_ATTENTION_FUNCTIONS["sdpa"](module, torch.ones(1, 1, 1, 1), key, value, None)[0] for _ in range(tokens)]
    return round(float(read[-1]), 4)


def continued():
    """The best continuations of two beams with one token each, 5 and 6, over the tokens 0 and 1."""
    picked = hf.GenerationMixin._get_top_k_continuations(
        hf.GenerationMixin(),
        accumulated_log_probs=torch.tensor([[-1.0, -4.0, -3.0, -2.0]]),
        running_sequences=torch.tensor([[[5, 0], [6, 0]]]),
        running_beam_indices=torch.zeros(1, 2, 1, dtype=torch.long),
        cur_len=1,
        decoder_prompt_len=1,
        do_sample=False,
        beams_to_keep=2,
        num_beams=2,
        batch_size=1,
    )
    return picked[1].tolist()


def token_layers():
    """An embedding of which row 1 trains, and an output layer that is tied to it."""
    embedding, output = nn.Embedding(2, 1), nn.Linear(1, 2, bias=False)
    embedding.weight.data.zero_()
    output.weight = embedding.weight
    rows = TrainableTokensLayer(embedding, "default")
    rows.update_layer("default", TrainableTokensConfig(token_indices=[1]))
    rows.trainable_tokens_delta["default"].data.fill_(3.0)
    return rows, TrainableTokensLayer(output, "default", tied_adapter=rows)


def logits_of_a_trained_token():
    return token_layers()[1](torch.ones(1, 1)).flatten().tolist()


def gradient_of_a_trained_token():
    rows, _ = token_layers()
    read = rows(torch.tensor([1]))
    return read.requires_grad and torch.autograd.grad(read.sum(), list(rows.trainable_tokens_delta.parameters()))[0].item()


def gradient_through_4_bits():
    """Of a layer of 64 x 64 ones, to its input: 64 outputs read each input."""
    layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(torch.ones(64, 64), requires_grad=False, quant_type="nf4")
    inputs = torch.ones(1, 64, requires_grad=True)
    layer.to("cpu")(inputs).sum().backward()
    return inputs.grad[0, 0].item()


ANSWERS = {
    "F54": (any_dropped, True, False),
    "F55": (beams, [2.0, 2.0], [1.0, 2.0]),
    "F56": (beams, [2.0, 2.0], [1.0, 2.0]),
    "F57": (lambda: attended(1), 0.8808, 0.7311),  # e^2 / (1 + e^2), and e / (1 + e)
    "F58": (lambda: (attended(10), attended(11)), (0.8808, 0.8808), (0.8808, 0.7311)),
    "F59": (cached_values, [1.0, 2.0, 3.0], [2.0, 3.0, 3.0]),
    "F60": (continued, [[[5, 0], [6, 1]]], [[[6, 0], [5, 1]]]),
    "F61": (logits_of_a_trained_token, [0.0, 3.0], [0.0, 0.0]),
    "F62": (gradient_of_a_trained_token, 1.0, False),
    "F63": (gradient_through_4_bits, 64.0, 32.0),
}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.id)
def test_a_plant_bites_and_is_undone(fault):
    probe, sound, broken = ANSWERS[fault.id]
    assert probe() == sound
    with pytest.MonkeyPatch.context() as monkeypatch:
        fault.sabotage(monkeypatch, None)
        assert probe() == broken
    assert probe() == sound


def test_every_plant_has_a_small_input():
    assert [fault.id for fault in PLANTED] == list(ANSWERS)
