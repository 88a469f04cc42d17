"""bitsandbytes on a CPU with AVX512-bf16: a 4-bit layer unpacks differently after one evaluation.

PEFT's merge, its DoRA and transformers' `dequantize` unpack `weight.data` with
`weight.quant_state`, but an evaluation repacks both for another kernel. Compares the unpacked
weight and a LoRA's merge before and after an evaluation. Exits with 1 if the fault shows, with 0 if
it does not, with 2 on a CPU without AVX512-bf16.
"""

import sys
import warnings

import bitsandbytes as bnb
import peft
import torch

warnings.filterwarnings("ignore", "Merge lora module")


class Net(torch.nn.Module):
    """A model with one layer packed to 4 bits."""

    def __init__(self) -> None:
        """Packs random weights, which are the same each time."""
        super().__init__()
        torch.manual_seed(0)
        self.is_loaded_in_4bit = True
        self.layer = bnb.nn.Linear4bit(
            128, 128, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
        ).to("cpu")

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        """The layer's output."""
        return self.layer(row)


def unpacked(layer: torch.nn.Module) -> torch.Tensor:
    """Unpacks a layer's weight the way PEFT and transformers do."""
    return (
        bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        .float()
        .reshape(128, 128)
    )


def distance(before: torch.Tensor, after: torch.Tensor) -> float:
    """The norm of the difference between two tensors, relative to the norm of the first."""
    return float((after - before).norm() / before.norm())


print(f"bitsandbytes {bnb.__version__}, peft {peft.__version__}, torch {torch.__version__}")
if not bnb.functional.has_avx512bf16():
    print("this CPU has no AVX512-bf16: the fault cannot show")
    sys.exit(2)
model = peft.get_peft_model(
    Net(), peft.LoraConfig(target_modules=["layer"], init_lora_weights=False)
).eval()
base = model.base_model.model.layer.base_layer
before = unpacked(base)
with torch.no_grad():
    served = model(torch.eye(128)).float()
    weights = distance(before, unpacked(base))
    merged = distance(served, model.merge_and_unload()(torch.eye(128)).float())
print(
    f"after one evaluation, the unpacked weight differs by {weights:.1%}, and the merged layer by {merged:.1%}"
)
sys.exit(int(weights > 1e-3))
