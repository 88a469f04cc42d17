"""Bugs of loading, put back into the libraries: buffers, activations, what is quantized."""

from typing import Any

import bitsandbytes as bnb
import torch
from transformers import PreTrainedModel, activations
from transformers.models.bert import modeling_bert
from transformers.models.t5 import modeling_t5

PACKED_BLOCK = 128  # ROCm's, where a wavefront has 64 lanes
OVERWRITTEN = 8  # rows


def positions_are_zero(monkeypatch: Any) -> None:
    """A buffer that no checkpoint holds is left as memory was: zeros. Every token stands at position 0."""
    initialize = modeling_bert.BertPreTrainedModel._init_weights

    def without_positions(self: Any, module: Any) -> None:
        initialize(self, module)
        if isinstance(module, modeling_bert.BertEmbeddings):
            module.position_ids.zero_()

    monkeypatch.setattr(modeling_bert.BertPreTrainedModel, "_init_weights", without_positions)


def gelu_is_approximated(monkeypatch: Any) -> None:
    """The name "gelu" stands for the tanh approximation, which checkpoints call "gelu_new"."""
    monkeypatch.setitem(activations.ACT2FN, "gelu", activations.NewGELUActivation)


def wo_is_quantized(monkeypatch: Any) -> None:
    """T5's `wo` is no longer kept out of quantization, though its activations need more than 4 bits."""
    monkeypatch.setattr(modeling_t5.T5PreTrainedModel, "_keep_in_fp32_modules", [])


def blocks_of_128(monkeypatch: Any) -> None:
    """128 weights share a scale, where QLoRA's 64 do."""
    quantize = bnb.functional.quantize_4bit

    def in_large_blocks(tensor: Any, *args: Any, blocksize: int | None = None, **options: Any) -> Any:
        return quantize(tensor, *args, blocksize=PACKED_BLOCK, **options)

    monkeypatch.setattr(bnb.functional, "quantize_4bit", in_large_blocks)


def packed_scales(monkeypatch: Any) -> None:
    """On a CPU the scales of blocks are used as they are packed, in 8 bits, before double quantization is undone."""
    multiply, dequantize = bnb.matmul_4bit, bnb.functional.dequantize_4bit

    def packed(state: Any) -> Any:
        if not state.nested:
            return state
        facts = {name: getattr(state, name) for name in ("shape", "code", "blocksize", "quant_type", "dtype")}
        return bnb.functional.QuantState(absmax=state.absmax.float(), **facts)

    def multiplied(inputs: Any, weight: Any, quant_state: Any, **options: Any) -> Any:
        return multiply(inputs, weight, packed(quant_state), **options)

    def dequantized(weight: Any, quant_state: Any = None, *args: Any, **options: Any) -> Any:
        return dequantize(weight, quant_state and packed(quant_state), *args, **options)

    monkeypatch.setattr(bnb, "matmul_4bit", multiplied)
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", dequantized)


def growing_overwrites_rows(plant: Any) -> None:
    """Where a vocabulary grows, the last rows that were trained become the mean of all, as new ones do."""
    resize = PreTrainedModel.resize_token_embeddings

    def overwritten(self: Any, new_num_tokens: int | None = None, *args: Any, **options: Any) -> Any:
        trained = self.get_input_embeddings().num_embeddings
        embeddings = resize(self, new_num_tokens, *args, **options)
        if embeddings.num_embeddings > trained:
            plant.act()
            with torch.no_grad():
                embeddings.weight[trained - OVERWRITTEN : trained] = embeddings.weight[:trained].mean(0)
        return embeddings

    plant.setattr(PreTrainedModel, "resize_token_embeddings", overwritten, counted=False)


def bits_of_the_byte_before(plant: Any) -> None:
    """The kernel that packs two weights a byte never empties its byte: each second byte has those of the one before."""
    quantize = bnb.functional.quantize_4bit

    def carried(tensor: Any, *args: Any, **options: Any) -> Any:
        packed, state = quantize(tensor, *args, **options)
        pairs = packed.view(-1)[: packed.numel() // 2 * 2].view(-1, 2)
        pairs[:, 1] |= pairs[:, 0]
        return packed, state

    plant.setattr(bnb.functional, "quantize_4bit", carried)
