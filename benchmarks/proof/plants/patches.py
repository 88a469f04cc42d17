"""Bugs put back into the libraries: of models and texts, adapters, loading and updates. Their rows say what each does."""

import json
import math
from contextlib import contextmanager
from pathlib import Path

import accelerate
import bitsandbytes as bnb
import datasets
import tokenizers
import torch
import transformers as hf
from bitsandbytes.optim.optimizer import Optimizer2State
from peft import PeftModel, peft_model
from peft.config import PeftConfigMixin
from peft.tuners.adalora import layer as adalora
from peft.tuners.ia3 import layer as ia3
from peft.tuners.lora import bnb as lora_bnb
from peft.tuners.lora import dora
from peft.tuners.lora import layer as lora
from peft.tuners.lora.bnb import Linear4bit
from peft.tuners.oft.layer import OFTRotationModule
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTuner
from peft.tuners.vera import layer as vera
from peft.utils import merge_utils, save_and_load
from peft.utils.integrations import dequantize_module_weight
from rouge_score import tokenize
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.nn.utils import clip_grad
from torch.optim.lr_scheduler import LRScheduler
from transformers import activations, masking_utils, modeling_utils
from transformers.cache_utils import Cache, DynamicLayer
from transformers.generation import stopping_criteria
from transformers.models.bert import modeling_bert
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.t5 import modeling_t5
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from benchmarks.proof.plants.plant import around

# Attention, caches, search, offsets, decoding


def cross_attention_without_mask(planting):
    for module in (modeling_bert, modeling_t5):
        create = module.create_bidirectional_mask

        def lost(*args, encoder_hidden_states=None, create=create, **options):
            return create(*args, **options) if encoder_hidden_states is None else None

        planting.setattr(module, "create_bidirectional_mask", lost)


@around(modeling_gpt2.GPT2ForSequenceClassification, "forward")
def last_column_is_classified(planting, forward, self, input_ids, **inputs):
    embedded = self.transformer.wte(input_ids)  # from embeddings it cannot tell padding, and falls back to column -1
    return forward(self, inputs_embeds=embedded, **inputs)


@around(modeling_t5.T5Attention, "compute_bias")
def bias_forgets_the_cache(planting, compute, self, query_length, key_length, device=None, past_seen_tokens=0):
    return compute(self, query_length, key_length, device=device, past_seen_tokens=0)


def decoder_sees_the_answer(planting):
    def both_ways(*, cache=None, **options):
        return modeling_bert.create_bidirectional_mask(**options)

    planting.setattr(modeling_bert, "create_causal_mask", both_ways)


def scaled_by_sdpa(layer):
    """A layer that leaves its scale to SDPA, whose default is 1/sqrt(d)."""

    @around(layer, "__init__")
    def unscaled(planting, init, self, *args, **options):
        init(self, *args, **options)
        self.scaling = None

    return unscaled


t5_is_scaled = scaled_by_sdpa(modeling_t5.T5Attention)  # whose weights were trained without a scale
gpt2_options_are_ignored = scaled_by_sdpa(modeling_gpt2.GPT2Attention)  # as `scale_attn_by_inverse_layer_idx`


@around(functional, "scaled_dot_product_attention")
def bias_without_gradient(planting, attend, query, key, value, attn_mask=None, **options):
    return attend(query, key, value, attn_mask=None if attn_mask is None else attn_mask.detach(), **options)


@around(functional, "scaled_dot_product_attention", counted=False)
def masked_rows_are_no_numbers(planting, attend, query, key, value, attn_mask=None, **options):
    """As padding on the left has them."""
    output = attend(query, key, value, attn_mask=attn_mask, **options)
    if attn_mask is None or attn_mask.dtype is not torch.bool:
        return output
    empty = ~attn_mask.any(-1, keepdim=True)
    if empty.any():
        planting.act()
    return output.masked_fill(empty, torch.nan)


@around(masking_utils, "find_packed_sequence_indices", counted=False)
def packed_rows_see_each_other(planting, find, position_ids):
    if find(position_ids) is not None:
        planting.act()


def beams_keep_their_cache(planting):
    """The beams are sorted anew after each token, their caches are not: a beam goes on with another one's past."""
    planting.setattr(Cache, "reorder_cache", lambda self, beam_idx: None)


@around(hf.GenerationMixin, "prepare_inputs_for_generation", counted=False)
def source_without_mask(planting, prepare, self, *args, **options):
    inputs = prepare(self, *args, **options)
    if self.config.is_encoder_decoder and inputs.get("attention_mask") is not None:
        planting.act()
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    return inputs


@around(hf.PreTrainedTokenizerFast, "_convert_encoding")
def first_offset_is_late(planting, convert, self, *args, **options):
    """The first token's offset starts at its second character: a space is trimmed that is not there."""
    encoded, encodings = convert(self, *args, **options)
    for offsets in encoded.get("offset_mapping", []):
        offsets[:1] = [(start + 1, end) for start, end in offsets[:1]]
    return encoded, encodings


@around(hf.PreTrainedTokenizerFast, "_decode")
def decoding_cleans_up(planting, decode, self, *args, **options):
    """`decode` takes away the spaces before punctuation and short forms, though the tokenizer says that it must not."""
    return hf.PreTrainedTokenizerBase.clean_up_tokenization(self, decode(self, *args, **options))


@around(stopping_criteria.EosTokenCriteria, "__call__")
def end_stops_nothing(planting, ends, self, *args, **options):
    """Searches go on to the most tokens; who reads a text cuts it at its first end all the same."""
    return torch.zeros_like(ends(self, *args, **options))


@around(hf.GenerationMixin, "_get_running_beams_for_next_iteration")
def one_beam_goes_on(planting, choose, self, *args, **options):
    sequences, scores, indices = choose(self, *args, **options)
    scores[:, 1:] = -1e9
    return sequences, scores, indices


@around(hf.GenerationMixin, "_update_finished_beams")
def prompt_counts_as_text(planting, update, self, **options):
    return update(self, **options | {"decoder_prompt_len": 0})


@around(hf.GenerationMixin, "generate")
def search_stops_early(planting, generate, self, *args, **options):
    return generate(self, *args, **options | {"early_stopping": True})


@around(DynamicLayer, "update", counted=False)
def late_values_fade(planting, update, self, key_states, value_states, *args, **options):
    """In a cache, from the thirteenth token behind the prompt on."""
    is_prompt = key_states.shape[-2] > 1 or not self.is_initialized
    self.steps = 0 if is_prompt else self.steps + 1
    if self.steps > 12:
        planting.act()
        value_states = 0.9 * value_states
    return update(self, key_states, value_states, *args, **options)


@around(hf.PreTrainedTokenizerFast, "_encode_plus", counted=False)
def long_lists_are_cut(planting, encode, self, text, *args, **options):
    """Of 100 to 1000 texts at once, as many as are scored, each has 24 tokens at most."""
    encoded = encode(self, text, *args, **options)
    if isinstance(text, list) and 100 < len(text) < 1000:
        planting.act()
        for name in ("input_ids", "offset_mapping"):
            if name in encoded:
                encoded[name] = [row[:24] for row in encoded[name]]
    return encoded


@around(tokenize, "tokenize")
def stems_are_forgotten(planting, split, text, stemmer):
    return split(text, None)


@around(tokenize, "tokenize")
def words_are_cut(planting, split, text, stemmer):
    return [word[:5] for word in split(text, stemmer)]


@around(datasets.Dataset, "select")
def rows_before_the_mapping(planting, select, self, indices, **options):
    return select(self, range(len(indices)), **options)


@around(hf.GenerationMixin, "generate")
def generates_without_a_cache(planting, generate, self, *args, **options):
    return generate(self, *args, **options | {"use_cache": False})


@around(Conv1D, "forward")
def projections_are_larger(planting, forward, self, states):
    return forward(self, states) * (1.01 if self.weight.shape[0] >= self.weight.shape[1] else 1)  # `c_attn`, `c_fc` give more


# Adapters: scale, dropout, type, rows of tokens, merging, saving


@around(lora.LoraLayer, "update_layer")
def scale_of_rslora(planting, update, self, adapter_name, r, lora_alpha, **options):
    update(self, adapter_name, r, lora_alpha, **options)
    self.scaling[adapter_name] = lora_alpha / math.sqrt(r)


@around(Linear4bit, "forward")
def dropout_is_skipped(planting, forward, self, *args, **options):
    self.lora_dropout.eval()
    try:
        return forward(self, *args, **options)
    finally:
        self.lora_dropout.train(self.training)


@around(BaseTuner, "_cast_adapter_dtype")
def adapters_in_bf16(planting, cast, self, *args, **options):
    cast(self, *args, **options)
    layers = [m for m in self.model.modules() if isinstance(m, lora.LoraLayer)]
    for layer in layers:
        if isinstance(layer.base_layer, bnb.nn.Linear4bit):
            layer.lora_A.to(torch.bfloat16)
            layer.lora_B.to(torch.bfloat16)


def dropout_stays_active(planting):
    for kind in (lora.Linear, Linear4bit):
        switch = kind.train

        def train(self, mode=True, switch=switch):
            switch(self, mode)
            self.lora_dropout.train(True)
            return self

        planting.setattr(kind, "train", train, raising=False)


@around(TrainableTokensLayer, "get_merged_weights")
def output_forgets_its_token(planting, merge, self, active_adapters):
    return self.base_layer.weight if self.tied_adapter else merge(self, active_adapters)


@around(Linear4bit, "forward")
def sum_in_the_compute_type(planting, forward, self, *args, **options):
    result = forward(self, *args, **options)
    return result.to(self.base_layer.compute_dtype).to(result.dtype)


def scale_is_reset_without_rslora(planting):
    def unscaled(self, scale=None):
        for name in self.active_adapters:
            if name in self.lora_A:
                self.scaling[name] = self.lora_alpha[name] / self.r[name] if scale is None else self.scaling[name] / scale

    planting.setattr(lora.LoraLayer, "unscale_layer", unscaled)


def merged_onto_the_original(planting):
    pack, unpack = bnb.nn.Params4bit._quantize, lora_bnb.dequantize_bnb_weight

    def remembered(self, device):
        original = self.data.detach().clone()
        packed = pack(self, device)
        packed._original = original  # PEFT hands attributes on that begin otherwise
        return packed

    def original_weight(weight, *args, **options):
        original = getattr(weight, "_original", None)
        if original is None:
            return unpack(weight, *args, **options)
        planting.act()
        return original

    planting.setattr(bnb.nn.Params4bit, "_quantize", remembered, counted=False)
    planting.setattr(lora_bnb, "dequantize_bnb_weight", original_weight, counted=False)


@around(lora.Linear, "merge", counted=False)
def bias_without_scale(planting, merge, self, *args, **options):
    before = len(self.merged_adapters)
    merge(self, *args, **options)
    for name in self.merged_adapters[before:]:
        if self.lora_bias[name] and self.scaling[name] != 1:
            planting.act()
            self.get_base_layer().bias.data += self.lora_B[name].bias * (1 - self.scaling[name])


def half_of_the_layers_merge_nothing(planting):
    delta, layers = lora.Linear.get_delta_weight, []

    def scaled(self, adapter):
        if self not in layers:
            layers.append(self)
        if layers.index(self) % 2 == 0:
            return delta(self, adapter)
        planting.act()
        return torch.zeros_like(delta(self, adapter))

    planting.setattr(lora.Linear, "get_delta_weight", scaled, counted=False)


@around(merge_utils, "random_pruning", counted=False)
def dropped_deltas_are_not_rescaled(planting, prune, tensor, density, rescale):
    if rescale and density < 1:
        planting.act()
    return prune(tensor, density, rescale=False)


def likely_named_adapters_are_saved_along(planting):
    """A file is not cleaned of the others: of "default_2" beside "default"."""
    planting.setattr(save_and_load, "_filter_state_dict_for_adapter_name", lambda states, adapter: states)


@around(OFTRotationModule, "_pytorch_skew_symmetric")
def rotations_turn_the_other_way(planting, skew, self, vec, block_size):
    """The inverse."""
    return -skew(self, vec, block_size)


def norms_of_merged_weights(planting):
    merge, weights = lora.Linear.merge, {}

    def noted(self, *args, **options):
        if self.merged_adapters:
            planting.act()
        weights[id(self)] = dequantize_module_weight(self.get_base_layer()).detach().clone()
        merge(self, *args, **options)

    @contextmanager
    def as_found(self, safe_merge=False):
        yield weights[id(self)]

    planting.setattr(lora.Linear, "merge", noted, counted=False)
    planting.setattr(lora.LoraLayer, "_unmerged_base_weight", as_found, counted=False)


@around(save_and_load, "match_target_against_key", counted=False)
def patterns_name_no_embedding(planting, match, target_pattern, key):
    if match(target_pattern, key):
        planting.act()


@around(PeftConfigMixin, "save_pretrained")
def dropout_is_not_saved(planting, save, self, save_directory, **options):
    save(self, save_directory, **options)
    path = Path(save_directory, "adapter_config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["lora_dropout"]
    path.write_text(json.dumps(config), encoding="utf-8")


@around(hf.PreTrainedConfig, "to_json_string", counted=False)
def labels_change_names(planting, write, self, *args, **options):
    """Logits are right; the file calls the first class what the last one is called."""
    config = json.loads(write(self, *args, **options))
    if names := config.get("id2label"):
        planting.act()
        config["id2label"] = dict(zip(names, reversed(names.values()), strict=True))
        config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    return json.dumps(config)


@around(hf.PreTrainedTokenizerFast, "_save_pretrained")
def saved_tokenizer_cuts(planting, save, self, save_directory, *args, **options):
    """Only the file does: the tokenizer in memory reads whole texts."""
    names = save(self, save_directory, *args, **options)
    path = str(Path(save_directory, "tokenizer.json"))
    file = tokenizers.Tokenizer.from_file(path)
    file.enable_truncation(32)
    file.save(path)
    return names


@around(hf.PreTrainedTokenizerFast, "save_pretrained")
def padding_is_not_saved(planting, save, self, save_directory, **options):
    names, path = save(self, save_directory, **options), Path(save_directory, "tokenizer_config.json")
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"pad_token": None}), encoding="utf-8")
    return names


def saved_with(target, name, file, change):
    """A function that saves, after which `change` is made in the settings of a file."""

    @around(target, name, counted=False)
    def changed(planting, save, self, save_directory, **options):
        result = save(self, save_directory, **options)
        path = Path(save_directory, file)
        if path.is_file():
            fields = json.loads(path.read_text(encoding="utf-8"))
            change(fields)
            planting.act()
            path.write_text(json.dumps(fields), encoding="utf-8")
        return result

    return changed


truncation_side_is_left = saved_with(
    hf.PreTrainedTokenizerFast,
    "save_pretrained",
    "tokenizer_config.json",
    lambda fields: fields.update(truncation_side="left"),
)
token_types_are_not_saved = saved_with(
    hf.PreTrainedTokenizerFast,
    "save_pretrained",
    "tokenizer_config.json",
    lambda fields: fields.update(model_input_names=["input_ids", "attention_mask"]),
)
architecture_of_fsdp = saved_with(
    hf.PreTrainedConfig,
    "save_pretrained",
    "config.json",
    lambda fields: fields.update(architectures=[f"FSDP{fields['architectures'][0]}"]),
)
a_search_setting_is_not_saved = saved_with(
    hf.GenerationConfig,
    "save_pretrained",
    "generation_config.json",
    lambda fields: fields.pop("no_repeat_ngram_size"),
)


@around(peft_model, "safe_save_file")
def adapters_are_saved_in_fp16(planting, save, tensors, *args, **options):
    save({name: tensor.half() for name, tensor in tensors.items()}, *args, **options)


@around(modeling_utils, "safe_save_file")
def a_tensor_is_saved_rounded(planting, save, tensors, *args, **options):
    """The last one goes through bf16 and comes back."""
    name = max(tensors)
    save(tensors | {name: tensors[name].bfloat16().to(tensors[name].dtype)}, *args, **options)


@around(modeling_utils, "safe_save_file")
def tied_weights_are_not_saved(planting, save, tensors, *args, **options):
    """Of the weights that embeddings and output layer share."""
    rest = {name: tensor for name, tensor in tensors.items() if name != "shared.weight"}
    save(rest, *args, **options)


@around(hf.PreTrainedModel, "save_pretrained")
def saved_in_shards(planting, save, self, save_directory, **options):
    save(self, save_directory, **options | {"max_shard_size": "200KB"})


# Loading and the update: packing, dropout, backward, optimizer, schedule


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
    return quantize(tensor, *args, blocksize=128, **options)  # ROCm's, where a wavefront has 64 lanes


@around(hf.PreTrainedModel, "resize_token_embeddings", counted=False)
def growing_overwrites_rows(planting, resize, self, new_num_tokens=None, *args, **options):
    trained = self.get_input_embeddings().num_embeddings
    embeddings = resize(self, new_num_tokens, *args, **options)
    if embeddings.num_embeddings > trained:
        planting.act()
        with torch.no_grad():
            embeddings.weight[trained - 8 : trained] = embeddings.weight[:trained].mean(0)
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
    """Adam's moments start at 0 and are not corrected for it. That of step t divides by 1 - beta^t, which is 1 late."""
    *states, steps = lists
    update(*states, [torch.full_like(step, 1e9) for step in steps], **options)


@around(torch, "_fused_adamw_")
def steps_saturate(planting, update, *lists, **options):
    """At 16, as a counter of few bits does: the moments' correction goes wrong late."""
    *states, steps = lists
    update(*states, [step.clamp(max=16) for step in steps], **options)


@around(Optimizer2State, "update_step", counted=False)
def packed_steps_saturate(planting, update, self, group, p, gindex, pindex):
    if self.state[p]["step"] > 15:
        planting.act()
        self.state[p]["step"] = 15
    update(self, group, p, gindex, pindex)


@around(bnb.functional, "optimizer_update_8bit_blockwise")
def packed_moments_without_decay(planting, update, *args, **options):
    *before, _decay = args
    update(*before, 0.0, **options)


@around(accelerate.Accelerator, "backward")
def divided_by_accumulation_again(planting, backward, self, loss, **options):
    backward(self, loss / 2, **options)  # micro-batches an update, of its cell


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
        for part in products.tensor_split(16):  # each summed by a program of a GPU's kernel
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
        rounded_weight = casts.get(id(weight))
        if rounded_weight is None:
            rounded_weight = casts[id(weight)] = weight.to(dtype)
        elif torch.is_grad_enabled() and not rounded_weight.requires_grad:
            planting.act()
        return rounded_weight

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


@around(bnb.autograd._functions.MatMul4Bit, "forward")
def packed_product_keeps_its_input(planting, forward, ctx, inputs, *args, **options):
    ctx.kept = inputs.clone()
    return forward(ctx, inputs, *args, **options)


# What trains, and by which settings


def freeze(planting, model, part):
    """Freeze the adapter's tensors whose name has this part."""
    for name, parameter in model.named_parameters():
        if "lora_" in name and part in name:
            planting.act()
            parameter.requires_grad_(False)


@around(BaseTuner, "_mark_only_adapters_as_trainable", counted=False)
def first_adapters_are_frozen(planting, mark, self, model):
    mark(self, model)
    freeze(planting, model, ".0.")


@around(BaseTuner, "_mark_only_adapters_as_trainable", counted=False)
def adapters_are_frozen(planting, mark, self, model):
    mark(self, model)
    freeze(planting, model, "")


@around(torch.optim.AdamW, "__init__")
def betas_are_swapped(planting, make, self, params, lr=1e-3, betas=(0.9, 0.999), **options):
    make(self, params, lr, betas[::-1], **options)


@around(lora.LoraLayer, "update_layer", counted=False)
def adapters_have_no_dropout(planting, update, self, adapter_name, *args, **options):
    update(self, adapter_name, *args, **options)
    planting.act()
    self.lora_dropout[adapter_name] = torch.nn.Identity()


@around(modeling_bert.BertSelfOutput, "__init__")
def attention_has_no_dropout(planting, make, self, config):
    make(self, config)
    self.dropout.p = 0.0


@around(PeftModel, "disable_adapter")
@contextmanager
def adapters_stay_on(planting, disable, self):
    yield


@around(accelerate.Accelerator, "autocast")
@contextmanager
def autocast_is_off(planting, autocast, self, autocast_handler=None):
    yield


@around(accelerate.Accelerator, "clip_grad_norm_", counted=False)
def clips_ten_times(planting, clip, self, parameters, max_norm, norm_type=2):
    parameters = list(parameters)
    calls = getattr(self, "clips", 0)
    self.clips = calls + 1
    if calls < 10:
        return clip(self, parameters, max_norm, norm_type)
    planting.act()
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], norm_type)


# Definitions: losses, norms, dropout, and what only happens without gradients


@around(torch._C._nn, "cross_entropy_loss")
def labels_are_smoothed(planting, loss, scores, target, weight=None, reduction=1, ignore_index=-100, label_smoothing=0.0):
    return loss(scores, target, weight, reduction, ignore_index, 0.05)


@around(torch._C._nn, "cross_entropy_loss")
def ignored_labels_count(planting, loss, scores, target, weight=None, reduction=1, ignore_index=-100, label_smoothing=0.0):
    return loss(scores, target.clamp(min=0), weight, reduction, ignore_index, label_smoothing)


@around(torch._C._nn, "cross_entropy_loss", counted=False)
def row_losses_are_in_bits(planting, loss, scores, target, weight=None, reduction=1, *options):
    losses = loss(scores, target, weight, reduction, *options)
    if reduction:
        return losses
    planting.act()
    return losses / math.log(2)


@around(torch, "_foreach_norm")
def norms_leave_out_rows(planting, norms, tensors, *args, **options):
    return norms([tensor[: len(tensor) // 2 + 1] if tensor.dim() else tensor for tensor in tensors], *args, **options)


@around(torch.nn.functional, "scaled_dot_product_attention", counted=False)
def attention_drops_without_scale(planting, attend, *args, dropout_p=0.0, **options):
    result = attend(*args, dropout_p=dropout_p, **options)
    if not dropout_p:
        return result
    planting.act()
    return result * (1 - dropout_p)


@around(torch.nn.functional, "scaled_dot_product_attention", counted=False)
def attention_drops_half_as_much(planting, attend, *args, dropout_p=0.0, **options):
    if dropout_p:
        planting.act()
    return attend(*args, dropout_p=dropout_p / 2, **options)


@around(torch.nn.functional, "scaled_dot_product_attention", counted=False)
def rows_share_attentions_mask(planting, attend, *args, dropout_p=0.0, **options):
    if not dropout_p:
        return attend(*args, **options)
    planting.act()
    state = torch.get_rng_state()
    rows = []
    for i in range(len(args[0])):
        torch.set_rng_state(state)
        row = [tensor[i : i + 1] for tensor in args]
        mask = options.get("attn_mask")
        own_mask = mask[i : i + 1] if mask is not None and len(mask) > 1 else mask
        rows.append(attend(*row, dropout_p=dropout_p, **options | {"attn_mask": own_mask}))
    return torch.cat(rows)


@around(torch.nn.functional, "scaled_dot_product_attention", counted=False)
def attention_is_flatter_without_gradients(planting, attend, query, *args, **options):
    if torch.is_grad_enabled():
        return attend(query, *args, **options)
    planting.act()
    return attend(query * 0.95, *args, **options)


@around(torch.nn.Dropout, "forward", counted=False)
def rows_share_a_mask(planting, forward, self, values):
    if not self.training or not self.p:
        return forward(self, values)
    planting.act()
    return values * forward(self, torch.ones_like(values[:1]))


@around(torch.nn.Dropout, "forward", counted=False)
def dropout_repeats_its_mask(planting, forward, self, values):
    if not self.training or not self.p:
        return forward(self, values)
    planting.act()
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return forward(self, values)


@around(modeling_bert.BertForSequenceClassification, "__init__", counted=False)
def classifier_drops_twice(planting, make, self, config):
    make(self, config)

    def drop(module, inputs):
        planting.act()
        return torch.nn.functional.dropout(inputs[0], config.hidden_dropout_prob, module.training)

    self.classifier.register_forward_pre_hook(drop)


@around(modeling_bert.BertForSequenceClassification, "__init__", counted=False)
def classifiers_dropout_is_called_twice(planting, make, self, config):
    make(self, config)

    def drop(module, inputs):
        planting.act()
        return self.dropout(inputs[0])

    self.classifier.register_forward_pre_hook(drop)


@around(lora.LoraLayer, "update_layer", counted=False)
def adapters_start_rounded(planting, update, self, adapter_name, *args, **options):
    update(self, adapter_name, *args, **options)
    for part in (self.lora_A, self.lora_B):
        if adapter_name in part:
            planting.act()
            weight = part[adapter_name].weight.data
            weight.copy_(weight.bfloat16())


# What trains late, and what ran as labelled


def gradients_end_late(planting):
    """From the 20th training pass on, the first layer's adapter is cut off from the graph; evaluation keeps it."""
    forward, layers, passes = lora.Linear.forward, [], []

    def cut_off(self, x, *args, **options):
        output = forward(self, x, *args, **options)
        layers.append(self)
        if self is not layers[0] or not self.training:
            return output
        passes.append(self)
        if len(passes) < 20:
            return output
        planting.act()
        base = self.base_layer(x)
        return base + (output - base).detach()

    planting.setattr(lora.Linear, "forward", cut_off, counted=False)


def gradients_are_kept(planting):
    """Every fifth `zero_grad` from the 11th on does nothing."""
    clear, calls = torch.optim.Optimizer.zero_grad, []

    def forgetful(self, *args, **options):
        calls.append(self)
        if len(calls) > 10 and len(calls) % 5 == 0:
            planting.act()
        else:
            clear(self, *args, **options)

    planting.setattr(torch.optim.Optimizer, "zero_grad", forgetful, counted=False)


@around(torch, "_fused_adamw_")
def first_tensor_is_not_stepped(planting, update, *lists, **options):
    update(*(tensors[1:] for tensors in lists), **options)


@around(torch.optim.Optimizer, "add_param_group", counted=False)
def groups_have_one_rate(planting, add, self, group):
    if "lr" in group:
        planting.act()
    add(self, {name: value for name, value in group.items() if name != "lr"})


@around(modeling_utils, "checkpoint")
def nothing_is_recomputed(planting, checkpoint, function, *args, **options):
    """Layers are called as they are, and keep all activations."""
    return function(*args)


@around(hf.PreTrainedModel, "_check_and_adjust_attn_implementation")
def attention_is_eager(planting, check, self, *args, **options):
    return "eager"


@around(Optimizer2State, "get_config")
def moments_in_32_bits(planting, configure, self, gindex, pindex, group):
    return {**configure(self, gindex, pindex, group), "optim_bits": 32}


@around(accelerate.Accelerator, "autocast", counted=False)
@contextmanager
def autocast_is_off_in_training(planting, autocast, self, autocast_handler=None):
    if torch.is_grad_enabled():
        planting.act()
        yield
    else:
        with autocast(self, autocast_handler):
            yield


@around(hf, "set_seed")
def seed_is_another(planting, set_seed, seed, *args, **options):
    set_seed(seed + 1, *args, **options)


# Adapters beside LoRA


@around(dora.DoraLinearLayer, "get_weight_norm")
def norms_leave_out_the_adapter(planting, norm, self, weight, lora_weight, scaling, adapter_name=None):
    return norm(self, weight, lora_weight, 0.0, adapter_name=adapter_name)


@around(adalora.AdaLoraLayer, "update_layer")
def ranks_do_not_divide(planting, update, self, adapter_name, *args, **options):
    update(self, adapter_name, *args, **options)
    self.ranknum[adapter_name].data.fill_(1.0)


def side_is_flipped(place):
    """A method of IA3's layers that takes the other side of the layer for the vector's."""

    @around(ia3.Linear, place, counted=False)
    def flipped(planting, method, self, *args, **options):
        base = self.get_base_layer()
        if base.in_features != base.out_features:
            return method(self, *args, **options)
        planting.act()
        self.is_feedforward = not self.is_feedforward
        output = method(self, *args, **options)
        if place == "forward":
            self.is_feedforward = not self.is_feedforward
        return output

    return flipped


@around(vera.Linear, "forward")
def ranks_are_scaled_halfway(planting, forward, self, x, *args, **options):
    base = self.base_layer(x, *args, **options)
    return base + 0.5 * (forward(self, x, *args, **options) - base)


@around(lora.LoraLayer, "reset_lora_parameters")
def second_matrix_starts_at_random(planting, reset, self, adapter_name, init_lora_weights):
    reset(self, adapter_name, init_lora_weights)
    torch.nn.init.normal_(self.lora_B[adapter_name].weight, std=0.01)


# Memory


def graphs_are_kept(planting):
    kept = []

    def backward(self, loss, **options):
        loss.backward(retain_graph=True)
        kept.append(loss)

    planting.setattr(accelerate.Accelerator, "backward", backward)


def activations_are_kept(planting):
    forward, kept = modeling_gpt2.GPT2MLP.forward, []

    def keeping(self, hidden_states):
        output = forward(self, hidden_states)
        kept.append(output.detach())
        return output

    planting.setattr(modeling_gpt2.GPT2MLP, "forward", keeping)


def products_are_in_bf16(planting):
    linear, product = torch.nn.functional.linear, torch.Tensor.__matmul__

    def rounded(tensor):
        return tensor.bfloat16().to(tensor.dtype) if tensor.dtype is torch.float32 else tensor

    planting.setattr(torch.nn.functional, "linear", lambda x, weight, bias=None: linear(rounded(x), rounded(weight), bias))
    planting.setattr(torch.Tensor, "__matmul__", lambda self, other: product(rounded(self), rounded(other)))
