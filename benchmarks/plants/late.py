"""Bugs of libraries that show late: after the first updates, in what an evaluation costs, or only below bf16's rounding."""

import bitsandbytes as bnb
import torch
import transformers as hf
from transformers.pytorch_utils import Conv1D

from benchmarks.plants.plant import Plant, around

SATURATED = 16  # steps


@around(torch.optim.AdamW, "step", counted=False)
def step_counter_saturates(planting, step, self, *args, **options):
    for state in self.state.values():
        if state["step"] >= SATURATED:
            state["step"].fill_(SATURATED - 1)
            planting.act()
    return step(self, *args, **options)


@around(hf.GenerationMixin, "generate")
def generates_without_a_cache(planting, generate, self, *args, **options):
    return generate(self, *args, **options | {"use_cache": False})


@around(Conv1D, "forward", counted=False)
def projections_are_one_percent_larger(planting, forward, self, states):
    """Those of GPT-2's attention and MLP (`c_proj`): the others give more than they take."""
    output = forward(self, states)
    if self.weight.shape[0] < self.weight.shape[1]:
        return output
    planting.act()
    return 1.01 * output


@around(bnb.autograd._functions.MatMul4Bit, "forward")
def packed_product_keeps_its_input(planting, forward, ctx, inputs, *args, **options):
    ctx.kept = inputs.clone()
    return forward(ctx, inputs, *args, **options)


# fmt: off
LATE = (
    Plant("N03", "AdamW's step counter saturates at 16", "pytorch/ao#4915, DeepSpeed#8496", "gpt2_sa_sft",
          step_counter_saturates, "curve"),
    Plant("N08", "`generate` runs without its cache: the same texts, many times as slow", "trl#3891, transformers#28056",
          "gpt2_sum_sft", generates_without_a_cache, "generation"),
    Plant("A12", "`MatMul4Bit` keeps its input for the backward pass", "bitsandbytes#1270", "", packed_product_keeps_its_input,
          "packed_products_keep_no_input"),
    Plant("1%", "the outputs of GPT-2's `c_proj` are 1 % larger, in a cell that trains in bf16", "classic", "gpt2_sa_lora",
          projections_are_one_percent_larger, "forward", module="transformers.Conv1D"),
)
# fmt: on
