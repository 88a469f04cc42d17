"""Harmless changes to which no check may object.

They are added to the table `LIBRARIES` after the bugs in `patches` and `more_patches`.
"""

import torch
import transformers as hf
from peft.tuners.lora import layer as lora
from peft.tuners.lora.bnb import Linear4bit
from torch.nn.functional import linear

from benchmarks.proof.plants import more_patches  # noqa: F401 # its plants come first
from benchmarks.proof.plants.patches import LIBRARIES as LIBRARIES
from benchmarks.proof.plants.patches import plant, rows_in_parquet
from benchmarks.proof.plants.plant import around, with_other

# Short cells that cover every task and every method.
ACROSS = ("gpt2_sa_lora", "t5_sum_qlora", "gpt2_qa_sft")


@plant(
    "order",
    "LoRA's product in another order of operations",
    "classic",
    ("gpt2_sa_lora", "bert_qa_qlora", "t5_qa_lora"),
    "",
)
def product_in_another_order(planting):
    """Multiplies an adapter's two matrices first: x (s B A)^T instead of s ((x A^T) B^T)."""

    def reordered(self, x, *args, **options):
        result = self.base_layer(x, *args, **options).clone()
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            matrix = self.scaling[name] * self.lora_B[name].weight @ self.lora_A[name].weight
            inputs = self.lora_dropout[name](x.to(matrix.dtype))
            result = result + linear(inputs, matrix).to(result.dtype)
        return result

    for kind in (lora.Linear, Linear4bit):
        planting.setattr(kind, "forward", reordered)


@plant(
    "no-op",
    "linear layers add 0 and clone",
    "classic",
    ACROSS,
    "",
)
def operation_without_effect(planting):
    forward = torch.nn.Linear.forward

    def added(self, inputs):
        return (forward(self, inputs) + 0).clone()

    planting.setattr(torch.nn.Linear, "forward", added)


plant(
    "threads",
    "two threads in place of one",
    "classic",
    ACROSS,
    "",
    breaks="cell",
)(with_other("profile", threads=2))


plant(
    "noise",
    "weights times 1 + 1e-6 x noise",
    "classic",
    ACROSS,
    "",
    breaks="cell",
)(with_other("profile", perturbation=1))


@plant("shards", "a model is saved in many files", "classic", "bert_sa_sft", "")
@around(hf.PreTrainedModel, "save_pretrained")
def saved_in_shards(planting, save, self, save_directory, **options):
    save(self, save_directory, **options | {"max_shard_size": "200KB"})


plant(
    "parquet",
    "the same rows from Parquet",
    "classic",
    "bert_sa_sft",
    "",
    breaks="cell",
)(rows_in_parquet)
