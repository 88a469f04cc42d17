"""The types of operations under autocast: torch's documented ones pass, all others are named."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softmax

from tunegrid.audits import precision
from tunegrid.audits.precision import OperationTypes, operations_run_in_their_types
from tunegrid.tests.small import assert_fails, assert_passes, fine_tuner, get_evidence, read_rows

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


class Small(nn.Module):
    """An embedding, a product of given type, a norm, a softmax, a sum and a loss."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 64)
        self.linear = nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)

    def forward(self, ids):
        states = self.embedding(ids)
        states = self.norm(self.linear(states) + states)
        shares = softmax(states, -1)
        return cross_entropy(states, ids) + torch.sum(shares)


def look(model, asked):
    types = OperationTypes(asked, "cpu")
    ids = torch.arange(4)
    with torch.autocast("cpu", BF16, enabled=asked == "bf16"), types.attached(model), types:
        model(ids)
    return types


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_healthy_operations_have_their_types(asked):
    torch.manual_seed(0)
    types = look(Small(), asked)
    assert types.faults == []
    assert dict(types.counts) == {
        "embedding": 1, "matmul": 1, "layer norm": 1, "softmax": 1, "loss": 1, "sum": 1,
    }  # fmt: skip


def test_a_product_outside_autocast_is_in_another_type():
    torch.manual_seed(0)
    model = Small()
    types = OperationTypes("bf16", "cpu")
    with types.attached(model), types:
        model(torch.arange(4))
    assert types.faults == ["linear (matmul) in float32, not bfloat16"]


@pytest.mark.parametrize("change", [lambda output: output.bfloat16(), lambda output: output.half()])
def test_a_norm_that_gives_16_bits_is_named(change):
    torch.manual_seed(0)
    model = Small()
    model.norm.register_forward_hook(lambda module, inputs, output: change(output))
    [fault, *_] = look(model, "bf16").faults
    assert fault.startswith("norm (layer norm) in ")
    assert fault.endswith(", not float32")


def test_a_norm_that_rounds_to_16_bits_and_gives_fp32_is_named():
    torch.manual_seed(0)
    model = Small()
    model.norm.register_forward_hook(lambda module, inputs, output: output.bfloat16().float())
    assert look(model, "bf16").faults == [
        "norm (layer norm) with the digits of bfloat16, not float32"
    ]


@pytest.mark.parametrize(
    ("asked", "device", "kind", "given", "expected"),
    [
        ("bf16", "cpu", "matmul", {FP32}, {BF16}),
        ("fp16", "cuda", "matmul", {FP32, FP16}, {FP16}),
        ("fp32", "cpu", "matmul", {FP32}, {FP32}),
        ("bf16", "cpu", "softmax", {BF16}, {BF16}),
        ("bf16", "cuda", "softmax", {BF16}, {FP32}),
        ("fp16", "cuda", "layer norm", {FP16, FP32}, {FP32}),
        ("fp16", "cuda", "norm", {FP16, FP32}, {FP16, FP32}),
        ("bf16", "cpu", "loss", {BF16}, {FP32}),
        ("bf16", "cuda", "sum", {BF16}, {FP32}),
        ("bf16", "cuda", "embedding", {FP32}, {FP32}),
    ],
)
def test_documented_types_by_device(asked, device, kind, given, expected):
    assert OperationTypes(asked, device).expected_types(kind, given) == expected


def test_a_cell_in_bf16_is_looked_at_and_a_broken_one_fails(monkeypatch):
    rows = read_rows("amazon_polarity/train")[:8]
    evidence = get_evidence(fine_tuner("gpt2_sa_lora", rows, max_steps=1, precision="bf16"))
    detail = assert_passes(operations_run_in_their_types, evidence)
    assert detail.startswith("operations in bf16: 2 of embedding, 7 of layer norm, 1 of loss, ")
    norm = torch.nn.functional.layer_norm

    def rounded(*args, **options):
        return norm(*args, **options).bfloat16()

    monkeypatch.setattr(precision.nn.functional, "layer_norm", rounded)
    detail = assert_fails(operations_run_in_their_types, evidence)
    assert "(layer norm) in bfloat16, not float32" in detail
