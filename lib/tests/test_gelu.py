"""GELU by its tanh formula: transformers' values by torch's kernel, in a process that asks for it."""

import subprocess
import sys

IN_TRANSFORMERS = """
import torch
from transformers.activations import ACT2FN
from lib.run.gelu import take_gelu_at_once

leaf = torch.linspace(-6, 6, 1001).requires_grad_()


def differentiated(kind):
    leaf.grad = None
    values = ACT2FN["gelu_new"](leaf.to(kind))
    values.backward(torch.ones_like(values))
    return values.detach().double(), leaf.grad.double()


exact = differentiated(torch.float64)
before = {kind: differentiated(kind) for kind in (torch.float32, torch.bfloat16)}
take_gelu_at_once(), take_gelu_at_once()
for kind, theirs in before.items():
    for here, there, true in zip(differentiated(kind), theirs, exact, strict=True):
        assert not torch.equal(here, there)  # another kernel
        assert (here - true).abs().max() < (there - true).abs().max() + 1e-6  # which is no further from the truth
        if kind is torch.float32:
            torch.testing.assert_close(here, there, atol=2e-6, rtol=0)

at_one = float(ACT2FN["gelu_new"](torch.ones(())))
assert abs(at_one - 0.841192) < 1e-6, at_one  # (1 + tanh(0.797885 * 1.044715)) / 2
assert ACT2FN["gelu_new"](torch.zeros(3, device="meta")).shape == (3,)  # elsewhere as it was
"""


def test_one_kernel_is_no_further_from_the_truth_than_eight():
    """In values and gradients, in fp32 and bf16."""
    subprocess.run([sys.executable, "-W", "error", "-c", IN_TRANSFORMERS], check=True, timeout=60)


OTHER_VALUES = """
import torch
from transformers.activations import NewGELUActivation
from lib.run.gelu import take_gelu_at_once

NewGELUActivation.forward = own = lambda self, input: torch.nn.functional.gelu(input)  # by erf, 5e-4 away at most
take_gelu_at_once()
assert NewGELUActivation.forward is own
"""


def test_a_release_with_other_values_keeps_its_own():
    subprocess.run([sys.executable, "-W", "error", "-c", OTHER_VALUES], check=True, timeout=60)
