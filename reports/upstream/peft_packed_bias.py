"""PEFT: merging an adapter with biases into a 4-bit layer adds the biases without a scale.

An adapter has biases with `lora_bias=True`; merging should multiply them by the adapter's scale.
Prints what the layer's bias gains through merging and what the adapter's forward pass adds. Exits
with 1 if the fault shows, with 0 if it does not.
"""

import sys
import warnings

import bitsandbytes as bnb
import peft
import torch

print(f"peft {peft.__version__}, bitsandbytes {bnb.__version__}, torch {torch.__version__}")
warnings.simplefilter("ignore")
base = torch.nn.Sequential(bnb.nn.Linear4bit(64, 64, quant_type="nf4"))
base.load_state_dict(torch.nn.Sequential(torch.nn.Linear(64, 64)).state_dict())
base.to("cpu").is_loaded_in_4bit = True
config = peft.LoraConfig(r=8, lora_alpha=32, lora_bias=True, target_modules=["0"])
layer = peft.get_peft_model(base, config).base_model.model[0]
layer.lora_B["default"].bias.data.fill_(1.0)
before = layer.get_base_layer().bias.detach().clone()
layer.merge()
gained = float((layer.get_base_layer().bias.detach() - before).mean())
print(f"the base's bias gains {gained:g}, where the adapter adds {layer.scaling['default']:g}")
sys.exit(int(abs(gained - layer.scaling["default"]) > 0.1))
