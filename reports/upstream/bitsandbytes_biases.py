"""bitsandbytes: a 4-bit layer's first forward pass rounds its fp32 bias in place.

The bias is rounded to the layer's compute type. Prints the bias's type before and after, and how
far the bias moved. Exits with 1 if the fault shows, with 0 if it does not.
"""

import sys

import bitsandbytes as bnb
import torch

torch.manual_seed(0)
print(f"bitsandbytes {bnb.__version__}, torch {torch.__version__}")
layer = bnb.nn.Linear4bit(128, 128, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
# This turns off another fault, shown in bitsandbytes_repacking.py
layer.support_avx512bf16_for_cpu = False
layer.bias.requires_grad_(False)
before = layer.bias.detach().clone()
layer(torch.randn(4, 128))
after = layer.bias.detach()
moved = float((after.float() - before).abs().max())
print(f"the frozen bias was {before.dtype} and is {after.dtype}; it moved by up to {moved:.1e}")
sys.exit(int(after.dtype != before.dtype or moved > 0))
