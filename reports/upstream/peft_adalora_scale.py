"""PEFT: scaling an AdaLoRA layer and setting it back changes its scale.

Prints the scale at the start, and after `scale_layer` and `unscale_layer`. Exits with 1 if the
fault shows, with 0 if it does not.
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
