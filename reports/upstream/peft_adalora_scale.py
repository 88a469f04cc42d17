"""PEFT: an AdaLoRA layer that is scaled and set back has another scale than before.

Prints the scale at the start, and after `scale_layer` and `unscale_layer`. Exit code 1 shows the
fault, 0 a version without it.
"""

import sys

import peft
import torch

print(f"peft {peft.__version__}, torch {torch.__version__}")
config = peft.AdaLoraConfig(init_r=8, lora_alpha=16, target_modules=["0"], total_step=1)
layer = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), config).base_model.model[0]
before = layer.scaling["default"]
layer.scale_layer(2.0)
layer.unscale_layer()
after = layer.scaling["default"]
print(f"the scale was {before:g}; after it was doubled and set back it is {after:g}")
sys.exit(int(before != after))
