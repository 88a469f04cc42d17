"""4-bit layers on a CPU: under autocast they answer in its type, with the values that bitsandbytes gives."""

from collections.abc import Iterator

import bitsandbytes as bnb
import pytest
import torch
from torch import Tensor, nn

from lib.run import packed
from lib.run.packed import answer_in_autocast


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """bitsandbytes as it comes, after a test and before it."""
    answer_in_autocast(False)
    yield
    answer_in_autocast(False)


def layer(compute_dtype: torch.dtype | None) -> nn.Module:
    """A layer from 64 to 32, with a bias, packed to NF4."""
    torch.manual_seed(0)
    plain = nn.Linear(64, 32)
    packed = bnb.nn.Linear4bit(64, 32, compute_dtype=compute_dtype, quant_type="nf4")
    packed.load_state_dict(plain.state_dict())
    packed.bias.requires_grad_(False)
    return packed.to("cpu")


def computed(module: nn.Module, kind: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Answers to three rows of fp32 under autocast to a type, and the rows' gradient of an eighth of the answers' sum."""
    x = torch.linspace(-1, 1, 192).view(3, 64).requires_grad_()
    with torch.autocast("cpu", kind, enabled=kind is not None):
        y = module(x)
    y.backward(torch.full_like(y, 0.125))
    return y.detach(), x.grad


def test_answers_come_in_bf16_with_the_same_values():
    module = layer(torch.bfloat16)
    (wide, wide_gradient), _ = computed(module, torch.bfloat16), answer_in_autocast(True)
    narrow, gradient = computed(module, torch.bfloat16)
    assert (wide.dtype, narrow.dtype, gradient.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert torch.equal(wide, narrow.float())
    assert torch.equal(wide_gradient, gradient)
    answer_in_autocast(False)
    assert torch.equal(computed(module, torch.bfloat16)[0], wide)


@pytest.mark.parametrize(
    ("compute_dtype", "kind"), [(torch.bfloat16, None), (torch.float32, torch.bfloat16), (None, torch.bfloat16)]
)
def test_a_layer_that_computes_in_another_type_answers_as_it_did(compute_dtype, kind):
    """Without autocast; computing in fp32; and computing in whatever its first input has."""
    before = computed(layer(compute_dtype), kind)
    answer_in_autocast(True)
    after = computed(layer(compute_dtype), kind)
    assert before[0].dtype == after[0].dtype == torch.float32
    assert all(map(torch.equal, before, after))


def test_inputs_on_another_device_are_left_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(packed, "_widened", lambda self, x: seen.append(x.dtype))
    answer_in_autocast(True)
    module = layer(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.zeros(3, 64)), module(torch.zeros(3, 64, device="meta"))
    assert seen == [torch.bfloat16, torch.float32]
