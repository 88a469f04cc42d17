"""Bugs of loading and of the update, put back into the libraries: packing, dropout, backward, optimizer, schedule."""

import accelerate
import bitsandbytes as bnb
import torch
from bitsandbytes.optim.optimizer import Optimizer2State
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, activations
from transformers.models.bert import modeling_bert
from transformers.models.t5 import modeling_t5
from transformers.models.t5.modeling_t5 import T5LayerNorm

from benchmarks.plants.plant import around

PACKED_BLOCK = 128  # ROCm's, where a wavefront has 64 lanes
OVERWRITTEN = 8  # rows
LATE = 1e9  # at this step both of Adam's bias corrections are 1
ACCUMULATED = 2  # micro-batches an update, of the cell that divides by them twice
PARTS = 16  # of a batch, each summed by a program of a GPU's kernel


@around(modeling_bert.BertPreTrainedModel, "_init_weights")
def positions_are_zero(planting, initialize, self, module):
    """A buffer that no checkpoint holds is left as memory was: zeros. Every token stands at position 0."""
    initialize(self, module)
    if isinstance(module, modeling_bert.BertEmbeddings):
        module.position_ids.zero_()


def gelu_is_approximated(planting):
    planting.setitem(activations.ACT2FN, "gelu", activations.NewGELUActivation)


def wo_is_quantized(planting):
    """T5's `wo` is no longer kept out of quantization, though its activations need more than 4 bits."""
    assert modeling_t5.T5PreTrainedModel._keep_in_fp32_modules, "else nothing changes"
    planting.setattr(modeling_t5.T5PreTrainedModel, "_keep_in_fp32_modules", [])
    planting.act()


@around(bnb.functional, "quantize_4bit")
def blocks_of_128(planting, quantize, tensor, *args, blocksize=None, **options):
    return quantize(tensor, *args, blocksize=PACKED_BLOCK, **options)


def packed_scales(planting):
    """On a CPU the scales of blocks are used as they are packed, in 8 bits, before double quantization is undone."""
    multiply, dequantize = bnb.matmul_4bit, bnb.functional.dequantize_4bit

    def packed(state):
        if not state.nested:
            return state
        facts = {name: getattr(state, name) for name in ("shape", "code", "blocksize", "quant_type", "dtype")}
        return bnb.functional.QuantState(absmax=state.absmax.float(), **facts)

    def multiplied(inputs, weight, quant_state, **options):
        return multiply(inputs, weight, packed(quant_state), **options)

    def dequantized(weight, quant_state=None, *args, **options):
        return dequantize(weight, quant_state and packed(quant_state), *args, **options)

    planting.setattr(bnb, "matmul_4bit", multiplied)
    planting.setattr(bnb.functional, "dequantize_4bit", dequantized)


@around(PreTrainedModel, "resize_token_embeddings", counted=False)
def growing_overwrites_rows(planting, resize, self, new_num_tokens=None, *args, **options):
    trained = self.get_input_embeddings().num_embeddings
    embeddings = resize(self, new_num_tokens, *args, **options)
    if embeddings.num_embeddings > trained:
        planting.act()
        with torch.no_grad():
            embeddings.weight[trained - OVERWRITTEN : trained] = embeddings.weight[:trained].mean(0)
    return embeddings


@around(bnb.functional, "quantize_4bit")
def bits_of_the_byte_before(planting, quantize, tensor, *args, **options):
    packed, state = quantize(tensor, *args, **options)
    pairs = packed.view(-1)[: packed.numel() // 2 * 2].view(-1, 2)
    pairs[:, 1] |= pairs[:, 0]
    return packed, state


@around(bnb.functional, "create_dynamic_map")
def signed_second_moments(planting, create, signed=True, **options):
    """They are never negative: half of the map's levels are lost."""
    return create(signed=True, **options)


@around(LRScheduler, "step")
def schedule_stepped_twice(planting, step, self, *args):
    """One call steps the schedule once for each of two processes. Accelerate's scheduler does so; ours is torch's own."""
    step(self, *args)
    if self._step_count > 1:  # the first step is the one that makes the schedule
        step(self)


def norm_without_clipping(planting):
    def measured(self, parameters, max_norm, norm_type=2):
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], norm_type)

    planting.setattr(accelerate.Accelerator, "clip_grad_norm_", measured)


@around(torch, "_fused_adamw_")
def moments_without_correction(planting, update, *lists, **options):
    """Adam's moments start at 0 and are not corrected for it. The correction of step t divides by 1 - beta^t."""
    *states, steps = lists
    update(*states, [torch.full_like(step, LATE) for step in steps], **options)


@around(accelerate.Accelerator, "backward")
def divided_by_accumulation_again(planting, backward, self, loss, **options):
    backward(self, loss / ACCUMULATED, **options)


@around(Optimizer2State, "get_config", counted=False)
def everything_in_8_bits(planting, configure, self, gindex, pindex, group):
    config = configure(self, gindex, pindex, group)
    if self.state and group["params"][pindex].numel() < config["min_8bit_size"]:
        planting.act()
    return {**config, "min_8bit_size": 0}


class _Bf16Sum(torch.autograd.Function):
    """weight * states, whose gradient for the weight is summed up in bf16."""

    @staticmethod
    def forward(ctx, weight, states):
        ctx.save_for_backward(weight, states)
        return weight * states

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        weight, states = ctx.saved_tensors
        products = (gradient * states).reshape(-1, weight.numel())
        total = torch.zeros_like(weight, dtype=torch.bfloat16)
        for part in products.tensor_split(PARTS):
            total += part.sum(0).to(torch.bfloat16)
        return total.to(weight.dtype), gradient * weight


def norms_are_summed_in_bf16(planting):
    def forward(self, hidden_states):
        variance = hidden_states.float().pow(2).mean(-1, keepdim=True)
        states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        if not (self.weight.requires_grad and torch.is_grad_enabled()):
            return self.weight * states
        planting.act()
        return _Bf16Sum.apply(self.weight, states)

    planting.setattr(T5LayerNorm, "forward", forward, counted=False)


def casts_outlive_no_grad(planting):
    linear, clear = torch.nn.functional.linear, torch.clear_autocast_cache
    casts = {}

    def cast(weight, dtype):
        kept = casts.get(id(weight))
        if kept is None:
            kept = casts[id(weight)] = weight.to(dtype)
        elif torch.is_grad_enabled() and not kept.requires_grad:
            planting.act()
        return kept

    def cached(inputs, weight, bias=None):
        kind = inputs.device.type
        if torch.is_autocast_enabled(kind) and torch.is_autocast_cache_enabled() and weight.requires_grad and weight.is_leaf:
            weight = cast(weight, torch.get_autocast_dtype(kind))
        return linear(inputs, weight, bias)

    def cleared():
        casts.clear()
        clear()

    planting.setattr(torch.nn.functional, "linear", cached, counted=False)
    planting.setattr(torch, "clear_autocast_cache", cleared, counted=False)


@around(Optimizer2State, "update_step", counted=False)
def gradients_by_memory(planting, update, self, group, p, gindex, pindex):
    if not p.grad.is_contiguous():
        planting.act()
        p.grad = torch.as_strided(p.grad, p.grad.shape, torch.empty(p.grad.shape, device="meta").stride())
    update(self, group, p, gindex, pindex)


@around(clip_grad, "_get_total_norm", counted=False)
def clipped_by_the_local_norm(planting, norm, tensors, *args, **options):
    parts = [one.to_local() if isinstance(one, DTensor) else one for one in tensors]
    if any(isinstance(one, DTensor) for one in tensors):
        planting.act()
    return norm(parts, *args, **options)
