"""Softmax of attention's scores: what torch's own gives, bit for bit, and in its place in a process that asks for it."""

import subprocess
import sys

import pytest
import torch

from lib.run.softmax import safe_softmax

INF = float("inf")
IN_TORCH = """
import torch
from torch.nn.functional import scaled_dot_product_attention
from lib.run import softmax

scores = torch.randn(2, 3, 5, 7)
scores[1, 2, 3] = -torch.inf


def differentiated():
    leaf = scores.clone().requires_grad_()
    torch.ops.aten._safe_softmax(leaf, -1).backward(torch.arange(210.0).reshape(2, 3, 5, 7))
    return leaf.grad


before, called = differentiated(), []
softmax.safe_softmax = lambda *given, ours=softmax.safe_softmax: called.append(1) or ours(*given)
softmax.take_softmax_sooner(), softmax.take_softmax_sooner()
assert torch.equal(before, differentiated()) and called == [1]
query = torch.zeros(1, 1, 2, 8, requires_grad=True)
scaled_dot_product_attention(query, query, query, attn_mask=torch.ones(2, 2).tril().bool(), dropout_p=0.5)
assert called == [1, 1]
"""


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dim", [-1, 1])
def test_it_is_torch_s_bit_for_bit(kind, dim):
    """Also where some scores are masked, or all of a row, or a score is not a number."""
    scores = torch.randn(3, 4, 5, 7, dtype=kind, generator=torch.Generator().manual_seed(0))
    scores[0, 0, :, 0] = scores[1, 2, 3] = scores[1, :, 0, 0] = -INF
    scores[2, 1, 1, 3] = torch.nan
    theirs = torch.ops.aten._safe_softmax(scores, dim)
    assert theirs.isnan().any()
    assert torch.equal(safe_softmax(scores, dim).nan_to_num(-1), theirs.nan_to_num(-1))


def test_a_masked_row_has_no_weights_and_others_share_theirs():
    """Scores of log 1 and log 3: a quarter and three quarters."""
    scores = torch.tensor([[0.0, 3.0], [-INF, -INF], [-INF, 5.0]])
    scores[0, 1] = torch.tensor(3.0).log()
    assert safe_softmax(scores, -1).tolist() == [pytest.approx([0.25, 0.75]), [0, 0], [0, 1]]


def test_a_type_may_be_asked_for_and_nothing_may_be_given():
    assert safe_softmax(torch.zeros(2, 2, dtype=torch.bfloat16), -1, torch.float32).dtype == torch.float32
    assert safe_softmax(torch.zeros(2, 0), -1).shape == (2, 0)


def test_in_torch_attention_calls_it_and_gradients_are_the_same():
    """In a process of its own: what is replaced stays."""
    subprocess.run([sys.executable, "-W", "error", "-c", IN_TORCH], check=True, timeout=60)
