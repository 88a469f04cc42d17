"""bitsandbytes: the first forward pass of a 4-bit layer rounds its fp32 bias in place, to the type
it computes in.

Prints the bias's type before and after, and how far it moved. Exit code 1 shows the fault, 0 a
version without it.
"""

import sys

import bitsandbytes as bnb
import torch

torch.manual_seed(0)
print(f"bitsandbytes {bnb.__version__}, torch {torch.__version__}")
layer = bnb.nn.Linear4bit(128, 128, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
layer.support_avx512bf16_for_cpu = False  # the other report's fault
layer.bias.requires_grad_(False)
before = layer.bias.detach().clone()
layer(torch.randn(4, 128))
after = layer.bias.detach()
moved = float((after.float() - before).abs().max())
print(f"the frozen bias was {before.dtype} and is {after.dtype}; it moved by up to {moved:.1e}")
sys.exit(int(after.dtype != before.dtype or moved > 0))
