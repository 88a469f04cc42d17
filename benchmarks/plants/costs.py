"""Bugs of libraries that cost time or memory alone, or hide in bf16's rounding."""

import bitsandbytes as bnb
import transformers as hf
from transformers.pytorch_utils import Conv1D

from benchmarks.plants.plant import Plant, around


@around(hf.GenerationMixin, "generate")
def generates_without_a_cache(planting, generate, self, *args, **options):
    return generate(self, *args, **options | {"use_cache": False})


@around(Conv1D, "forward")
def projections_are_larger(planting, forward, self, states):
    return forward(self, states) * (1.01 if self.weight.shape[0] >= self.weight.shape[1] else 1)  # `c_attn`, `c_fc` give more


@around(bnb.autograd._functions.MatMul4Bit, "forward")
def packed_product_keeps_its_input(planting, forward, ctx, inputs, *args, **options):
    ctx.kept = inputs.clone()
    return forward(ctx, inputs, *args, **options)


# fmt: off
COSTS = (
    Plant("N08", "`generate` runs without its cache: the same texts, many times as slow", "trl#3891, transformers#28056",
          "gpt2_sum_sft", generates_without_a_cache, "generation"),
    Plant("A12", "`MatMul4Bit` keeps its input for the backward pass", "bitsandbytes#1270", "",
          packed_product_keeps_its_input, "packed_products_keep_no_input"),
    Plant("percent", "GPT-2's `c_proj` gives 1 % more, in a cell that trains in bf16", "classic", "gpt2_sa_lora",
          projections_are_larger, "forward", module="transformers.Conv1D"),
)
# fmt: on
