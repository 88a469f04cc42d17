"""bitsandbytes on a CPU with AVX512-bf16: an evaluation repacks 4-bit layers and breaks training.

Compares the gradient of the layer's input before and after an evaluation; the two should be equal.
Exits with 1 if the fault shows, with 0 if it does not, with 2 on a CPU without AVX512-bf16.
"""

import sys

import bitsandbytes as bnb
import torch


def gradient(layer: torch.nn.Module, row: torch.Tensor) -> torch.Tensor | None:
    """The gradient of the layer's input in training; None if the layer gives none."""
    row = row.clone().requires_grad_()
    layer.train()
    layer(row).float().sum().backward()
    return row.grad


torch.manual_seed(0)
print(f"bitsandbytes {bnb.__version__}, torch {torch.__version__}")
if not bnb.functional.has_avx512bf16():
    print("this CPU has no AVX512-bf16: the fault cannot show")
    sys.exit(2)
layer = bnb.nn.Linear4bit(128, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(
    "cpu"
)
row = torch.randn(4, 128)
before = gradient(layer, row)
layer.eval()
with torch.no_grad():
    layer(row)
try:
    after = gradient(layer, row)
except Exception as error:
    print(f"after one evaluation, training raises {type(error).__name__}: {error}")
    sys.exit(1)
if after is None:
    print("after one evaluation, training goes on without a gradient of the input")
    sys.exit(1)
change = float((after - before).norm() / before.norm())
print(f"after one evaluation, the gradient of the input differs by {change:.1%}")
sys.exit(int(change > 1e-3))
