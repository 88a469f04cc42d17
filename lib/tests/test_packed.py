"""4-bit layers on a CPU: what they compute in bf16 stays bf16, with bitsandbytes' values; adapters add to it as LoRA's do."""

import subprocess
import sys
from collections.abc import Iterator

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

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


def test_inputs_on_another_device_are_left_alone():
    """Here, on the one without data."""
    answer_in_autocast(True)
    module = layer(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        kinds = [module(torch.zeros(3, 64, device=device)).dtype for device in ("cpu", "meta")]
    assert kinds == [torch.bfloat16, torch.float32]


def test_an_adapter_adds_to_it_in_bf16_as_lora_does_to_a_plain_layer():
    answer_in_autocast(True)
    model = nn.Sequential(layer(torch.bfloat16))
    model.is_loaded_in_4bit = True  # by which PEFT chooses its layer
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["0"], init_lora_weights=False), model)
    adapted, x = model[0], torch.linspace(-1, 1, 192).view(3, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        base, added = (
            adapted.base_layer(x),
            adapted.lora_B["default"](adapted.lora_A["default"](x)) * adapted.scaling["default"],
        )
        assert base.dtype == added.dtype == torch.bfloat16
        assert added.any()
        assert torch.equal(model(x), base + added)


UNPACKED = """
import bitsandbytes as bnb
import torch
from lib.run.packed import unpack_once

torch.manual_seed(0)
kinds, plain = [], bnb.functional.dequantize_4bit


def noted(packed, state):
    weights = plain(packed, state)
    kinds.append(weights.dtype)
    return weights


bnb.functional.dequantize_4bit = noted


def gradient(computes, trained):
    layer = bnb.nn.Linear4bit(64, 32, bias=False, compute_dtype=computes, quant_type="nf4")
    layer.load_state_dict({"weight": weights})
    layer = layer.to("cpu")
    x = rows.clone().to(trained).requires_grad_()
    layer(x).backward(torch.ones(3, 32, dtype=trained))
    assert layer.weight.quant_state.dtype is torch.float32, "what the layer keeps has changed"
    return x.grad


weights, rows = torch.randn(32, 64), torch.randn(3, 64)
nothing = torch.zeros(0, 64, requires_grad=True)
cases = [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)]
before = [gradient(*case) for case in cases]
assert kinds == [torch.float32] * 3, "bitsandbytes does it by itself: unpack_once is not needed"
unpack_once(), unpack_once()
after = [gradient(*case) for case in cases]
assert kinds[3:] == [torch.bfloat16, torch.bfloat16, torch.float32]
assert all(map(torch.equal, before, after))
bnb.nn.Linear4bit(64, 32, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")(nothing).sum().backward()
assert nothing.grad.shape == (0, 64)
"""


def test_the_backward_pass_unpacks_to_bf16_at_once():
    """With the same gradients; what is computed in fp32 is unpacked to fp32. In a process of its own: it lasts."""
    subprocess.run([sys.executable, "-W", "error", "-c", UNPACKED], check=True, timeout=60)
