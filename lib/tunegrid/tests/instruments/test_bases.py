"""Which base an adapter lies on, and what each merge makes of a layer of four numbers."""

import warnings

import bitsandbytes as bnb
import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunegrid.audits.computation import packed_like
from tunegrid.instruments.merges import bases_below, the_one
from tunegrid.run.build import numbers_of

# One block of four numbers, of which 1.0 is the largest. NF4's levels near 0.5 are 0.4407 and 0.5626, near 0.1 they are
# 0.0796 and 0.1609: packed, 0.5 becomes 0.4407, and 0.1 becomes 0.0796.
ORIGINAL = ((1.0, 0.5), (-1.0, 0.1))
UNPACKED = ((1.0, 0.4407), (-1.0, 0.0796))


class Net(nn.Module):
    """Two layers, of which PEFT adapts the first."""

    def __init__(self, *layers):
        super().__init__()
        self.adapted, self.other = layers
        self.is_loaded_in_4bit = any(isinstance(layer, bnb.nn.Linear4bit) for layer in layers)

    def forward(self, x):
        return self.other(self.adapted(x))


def linear(weight):
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer


def conv(weight):
    layer = Conv1D(2, 2)
    layer.weight.data = torch.tensor(weight).T.contiguous()
    return layer


def four_bit(weight):
    layer = bnb.nn.Linear4bit(2, 2, bias=False, quant_type="nf4", compress_statistics=False, compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(torch.tensor(weight), requires_grad=False, quant_type="nf4", compress_statistics=False)
    return layer.to("cpu")


def adapter(*layers, delta=0.05):
    """LoRA that adds `delta` to the number at (0, 1) of the first layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, on fan_in_fan_out
        model = peft.get_peft_model(Net(*layers), peft.LoraConfig(r=1, lora_alpha=1, target_modules=["adapted"]))
    lora = model.base_model.model.adapted
    lora.lora_A["default"].weight.data = torch.tensor([[0.0, 1.0]])
    lora.lora_B["default"].weight.data = torch.tensor([[delta], [0.0]])
    return model


def merged(model):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # PEFT's, on rounding
        return model.merge_and_unload()


def rounded(weight):
    return tuple(tuple(round(number, 4) for number in row) for row in weight.tolist())


@pytest.fixture
def trained():
    return adapter(four_bit(ORIGINAL), four_bit(ORIGINAL))


@pytest.mark.parametrize("kind", [linear, conv])
def test_the_base_below_an_adapter_is_told_by_its_weights(trained, kind):
    levels = numbers_of(four_bit(ORIGINAL).weight).tolist()
    assert rounded(numbers_of(four_bit(ORIGINAL).weight)) == UNPACKED
    assert the_one(bases_below(trained, trained)) == "packed"
    for weight, layer, name in ((ORIGINAL, four_bit, "packed"), (levels, kind, "unpacked"), (ORIGINAL, kind, "original")):
        assert the_one(bases_below(trained, adapter(layer(weight), layer(weight)))) == name
        assert the_one(bases_below(trained, merged(adapter(layer(weight), layer(weight))))) == name  # by the other layer
    assert bases_below(trained, adapter(kind(ORIGINAL), kind(((1.0, 0.6), (-1.0, 0.1))))) == frozenset()


def test_a_weight_is_packed_with_the_settings_of_the_layer():
    like = four_bit(ORIGINAL)
    assert torch.equal(packed_like(torch.tensor(ORIGINAL), like).data, like.weight.data)
