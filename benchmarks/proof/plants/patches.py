"""Real bugs, reintroduced into the installed libraries, each with the checks that must catch it.

Users reported these bugs. A patch touches only the library, never tunegrid, and does no more damage
than the original bug. A bug that no cell can trigger must instead be caught by a library invariant
or by comparing two settings that should give equal results.
"""

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import accelerate
import bitsandbytes as bnb
import datasets
import datasets.iterable_dataset as iterable
import tokenizers
import torch
import transformers as hf
from accelerate.data_loader import DataLoaderShard
from bitsandbytes.optim.optimizer import Optimizer2State
from datasets import distributed
from datasets.packaged_modules.json import json as json_module
from peft.tuners.lora import bnb as lora_bnb
from peft.tuners.lora import layer as lora
from peft.tuners.lora.bnb import Linear4bit
from peft.tuners.oft.layer import OFTRotationModule
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import merge_utils, save_and_load
from peft.utils.integrations import dequantize_module_weight
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.nn.utils import clip_grad
from torch.optim.lr_scheduler import LRScheduler
from transformers import activations, masking_utils
from transformers.cache_utils import Cache
from transformers.models.bert import modeling_bert
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.t5 import modeling_t5
from transformers.models.t5.modeling_t5 import T5LayerNorm

from benchmarks.proof.plants.invariants import IGNORED
from benchmarks.proof.plants.plant import FEW, Table, around, with_other
from tunegrid.data.sources import tables

LIBRARIES = Table()  # `more_patches` and `libraries` add to it
plant = LIBRARIES.plant

# The cells


def rows_in_parquet(cell, folder):
    """Writes the rows to Parquet files, which `datasets` reads; tunegrid itself reads JSON."""
    target = folder / "data" / cell.task.folder
    target.mkdir(parents=True)
    for split, table in tables(cell.task, cell.profile.data_root).items():
        rows = table.take(range(len(table)))
        datasets.Dataset.from_list(rows).to_parquet(target / f"{split}.parquet")
    return replace(cell, profile=replace(cell.profile, data_root=folder / "data"))


LORA_WITH_BIASES = with_other(
    "method",
    id="loralb",
    name="LoRA with biases",
    options={"lora_bias": True},
)
SHARED_OUT = with_other("profile", fsdp=True)  # FSDP2 shards weights, gradients and moments

# The bugs


@plant(
    "B02",
    "the decoder's cross-attention ignores the padding of the source",
    "transformers#41890, #15479",
    "t5_sum_sft",
    "rows_alone_as_in_batch, forward",
    module="transformers.T5Stack",
)
def cross_attention_without_mask(planting):
    for module in (modeling_bert, modeling_t5):
        create = module.create_bidirectional_mask

        def lost(*args, encoder_hidden_states=None, create=create, **options):
            if encoder_hidden_states is not None:
                return None
            return create(*args, **options)

        planting.setattr(module, "create_bidirectional_mask", lost)


@plant(
    "B04",
    "GPT-2's classifier reads the batch's last column, not the row's last real token",
    "transformers#35911, #24265, #16372",
    "gpt2_sa_sft",
    "scored_alone_as_in_batch",
    module="transformers.GPT2ForSequenceClassification",
)
@around(modeling_gpt2.GPT2ForSequenceClassification, "forward")
def last_column_is_classified(planting, forward, self, input_ids, **inputs):
    # The model finds no padding in embeddings and falls back to column -1.
    embedded = self.transformer.wte(input_ids)
    return forward(self, inputs_embeds=embedded, **inputs)


@plant(
    "B06",
    "T5's relative bias forgets the cache's length in cached decoding",
    "candle#899, transformers#44602",
    "t5_sum_qlora",
    "texts_are_the_models, generation",
    module="transformers.T5Attention",
)
@around(modeling_t5.T5Attention, "compute_bias")
def bias_forgets_the_cache(
    planting,
    compute,
    self,
    query_length,
    key_length,
    device=None,
    past_seen_tokens=0,
):
    return compute(self, query_length, key_length, device=device, past_seen_tokens=0)


@plant(
    "B08",
    "BERT as decoder is not causal: training sees the answer",
    "transformers#48745, #48760",
    "bert_sum_sft",
    "decoder_sees_no_future",
    module="transformers.BertModel",
)
def decoder_sees_the_answer(planting):
    def both_ways(*, cache=None, **options):
        return modeling_bert.create_bidirectional_mask(**options)

    planting.setattr(modeling_bert, "create_causal_mask", both_ways)


def scaled_by_sdpa(layer):
    """Creates a plant that leaves attention's scale to SDPA, whose default is 1/sqrt(d)."""

    @around(layer, "__init__")
    def unscaled(planting, init, self, *args, **options):
        init(self, *args, **options)
        self.scaling = None

    return unscaled


plant(
    "B10",
    "T5 under SDPA is scaled by 1/sqrt(d), where T5 scales nothing",
    "transformers#46946, #47014",
    "t5_qa_sft",
    "bound, gate",
    module="transformers.T5Attention",
)(scaled_by_sdpa(modeling_t5.T5Attention))  # T5's weights were trained without a scale


@plant(
    "B12",
    "a buffer is left uninitialised: BERT's position ids are all 0",
    "transformers#48892",
    "bert_qa_lora",
    "bound, forward",
    module="transformers.BertEmbeddings",
)
@around(modeling_bert.BertPreTrainedModel, "_init_weights")
def positions_are_zero(planting, initialize, self, module):
    """Zeroes a buffer that checkpoints do not contain, as if it had never been initialized."""
    initialize(self, module)
    if isinstance(module, modeling_bert.BertEmbeddings):
        module.position_ids.zero_()


@plant(
    "B14",
    '"gelu" resolves to the tanh approximation',
    "transformers#2807, PaddlePaddle/PaddleFleet#363",
    "bert_sum_lora",
    "forward",
    module="transformers.BertIntermediate",
)
def gelu_is_approximated(planting):
    planting.setitem(activations.ACT2FN, "gelu", activations.NewGELUActivation)


@plant(
    "B16",
    "the attention bias gets no gradient through SDPA: T5's relative bias never trains",
    "torch#148476, #188302",
    "t5_qa_sft",
    "gradients_reach",
    module="transformers.T5Attention",
)
@around(functional, "scaled_dot_product_attention")
def bias_without_gradient(planting, attend, query, key, value, attn_mask=None, **options):
    if attn_mask is not None:
        attn_mask = attn_mask.detach()
    return attend(query, key, value, attn_mask=attn_mask, **options)


@plant(
    "B18",
    "LoRA is scaled by alpha/sqrt(r), though rsLoRA is off",
    "peft#2733, sgl-project/sglang#40835",
    "gpt2_qa_lora",
    "adapters_where_declared",
    module="peft.Linear",
)
@around(lora.LoraLayer, "update_layer")
def scale_of_rslora(planting, update, self, adapter_name, r, lora_alpha, **options):
    update(self, adapter_name, r, lora_alpha, **options)
    self.scaling[adapter_name] = lora_alpha / math.sqrt(r)


@plant(
    "B20",
    "4-bit LoRA layers skip lora_dropout",
    "peft#1806",
    "bert_qa_qlora",
    "dropout_drops, random numbers",
    module="peft.Linear4bit",
)
@around(Linear4bit, "forward")
def dropout_is_skipped(planting, forward, self, *args, **options):
    self.lora_dropout.eval()
    try:
        return forward(self, *args, **options)
    finally:
        self.lora_dropout.train(self.training)


@plant(
    "B22",
    "adapters of a quantized base are kept and trained in bf16, not fp32",
    "peft#1706, #1090",
    "gpt2_sa_qlora",
    "trains_in_fp32, loading",
)
@around(BaseTuner, "_cast_adapter_dtype")
def adapters_in_bf16(planting, cast, self, *args, **options):
    cast(self, *args, **options)
    for layer in self.model.modules():
        if isinstance(layer, lora.LoraLayer) and isinstance(layer.base_layer, bnb.nn.Linear4bit):
            layer.lora_A.to(torch.bfloat16)
            layer.lora_B.to(torch.bfloat16)


@plant(
    "B24",
    "lora_dropout stays active at evaluation",
    "peft#3753, #3766, transformers#34469",
    "bert_qa_lora",
    "predicting_twice_is_the_same",
    module="peft.Linear",
)
def dropout_stays_active(planting):
    for kind in (lora.Linear, Linear4bit):
        switch = kind.train

        def train(self, mode=True, switch=switch):
            switch(self, mode)
            self.lora_dropout.train(True)
            return self

        planting.setattr(kind, "train", train, raising=False)


@plant(
    "B28",
    "weights are quantized in blocks of 128, not of 64",
    "bitsandbytes#1873, #1856",
    "bert_sa_qlora",
    "quantized_as_declared",
)
@around(bnb.functional, "quantize_4bit")
def blocks_of_128(planting, quantize, tensor, *args, blocksize=None, **options):
    # ROCm uses this block size on devices whose wavefronts have 64 lanes.
    return quantize(tensor, *args, blocksize=128, **options)


@plant(
    "B30",
    "8-bit Adam keeps second moments in the map for signed numbers",
    "bitsandbytes#227, #121, #152",
    "bert_qa_qlora",
    "trains_in_fp32",
)
@around(bnb.functional, "create_dynamic_map")
def signed_second_moments(planting, create, signed=True, **options):
    """Spends half of the 256 codes on negative values, which second moments never take."""
    return create(signed=True, **options)


@plant(
    "B32",
    "T5's wo is no longer kept out of quantization",
    "transformers#20287, #43374",
    "t5_sum_qlora",
    "loading",
)
def wo_is_quantized(planting):
    """Quantizes T5's `wo`, which transformers keeps in fp32."""
    assert modeling_t5.T5PreTrainedModel._keep_in_fp32_modules, "else nothing changes"
    planting.setattr(modeling_t5.T5PreTrainedModel, "_keep_in_fp32_modules", [])
    planting.act()


@plant(
    "B34",
    "the schedule is stepped twice an update",
    "accelerate#2142, #2926, #1398",
    "bert_sa_lora",
    "schedule_counts_updates, optimizer",
)
@around(LRScheduler, "step")
def schedule_stepped_twice(planting, step, self, *args):
    """Steps the scheduler twice, as accelerate's wrapper does on two processes."""
    step(self, *args)
    if self._step_count > 1:  # the first step is part of making the schedule
        step(self)


@plant(
    "B36",
    "clip_grad_norm_ does not clip",
    "accelerate#641",
    "gpt2_qa_lora",
    "gradients_clipped, backward",
)
def norm_without_clipping(planting):
    def measured(self, parameters, max_norm, norm_type=2):
        gradients = [p.grad for p in parameters if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients, norm_type)

    planting.setattr(accelerate.Accelerator, "clip_grad_norm_", measured)


@plant(
    "B38",
    "Adam's moments are not bias-corrected",
    "torch: Oneflow-Inc/oneflow#5960",
    "gpt2_sum_sft",
    "optimizer_steps_as_defined",
)
@around(torch, "_fused_adamw_")
def moments_without_correction(planting, update, *lists, **options):
    """Passes a huge step t, which makes the bias correction 1 / (1 - beta^t) equal to 1."""
    *states, steps = lists
    update(*states, [torch.full_like(step, 1e9) for step in steps], **options)


@plant(
    "B40",
    "the first token's offset starts one character late",
    "tokenizers#1300, transformers#16321",
    "t5_qa_lora",
    "offsets_show_their_tokens",
)
@around(hf.PreTrainedTokenizerFast, "_convert_encoding")
def first_offset_is_late(planting, convert, self, *args, **options):
    """Moves the start of the first offset, as if a leading space had been trimmed."""
    encoded, encodings = convert(self, *args, **options)
    for offsets in encoded.get("offset_mapping", []):
        offsets[:1] = [(start + 1, end) for start, end in offsets[:1]]
    return encoded, encodings


@plant(
    "B42",
    "decode() cleans up spaces where it should not",
    "transformers#42898, #31938",
    "t5_sum_sft",
    "metric_invariants",
)
@around(hf.PreTrainedTokenizerFast, "_decode")
def decoding_cleans_up(planting, decode, self, *args, **options):
    """Removes spaces before punctuation and contractions, though decoding should keep spaces."""
    text = decode(self, *args, **options)
    return hf.PreTrainedTokenizerBase.clean_up_tokenization(self, text)


plant(
    "B44",
    "GPT-2's scaling options are ignored under SDPA",
    "transformers#44380, #44397",
    "gpt2_sum_lora",
    "forward",
    module="transformers.GPT2Attention",
)(scaled_by_sdpa(modeling_gpt2.GPT2Attention))  # ignores `scale_attn_by_inverse_layer_idx`


@plant(
    "B48",
    "beam search does not reorder the cache",
    "transformers#46612, #46639",
    "t5_sum_sft",
    "cache_changes_nothing",
)
def beams_keep_their_cache(planting):
    """Keeps caches in place when beams are reordered, so a beam continues another beam's past."""
    planting.setattr(Cache, "reorder_cache", lambda self, beam_idx: None)


@plant(
    "B52",
    "select returns other rows than asked for",
    "datasets#3459, #7127",
    "bert_sa_sft",
    "refused",
    cell_as=rows_in_parquet,
)
@around(datasets.Dataset, "select")
def rows_before_the_mapping(planting, select, self, indices, **options):
    return select(self, range(len(indices)), **options)


@plant(
    "A04",
    "4-bit LoRA rounds the sum to the type it computes in, not only the adapter's part",
    "peft#2238",
    "gpt2_sum_qlora",
    "adapters_add_as_declared",
)
@around(Linear4bit, "forward")
def sum_in_the_compute_type(planting, forward, self, *args, **options):
    result = forward(self, *args, **options)
    return result.to(self.base_layer.compute_dtype).to(result.dtype)


@plant(
    "A06",
    "QLoRA is merged onto the 16-bit original, not onto the unpacked base that it trained over",
    "unsloth-zoo#810, axolotl-ai-cloud/axolotl#3771, peft#2105, #2321",
    "bert_sa_qlora",
    "saved_is_served",
)
def merged_onto_the_original(planting):
    pack = bnb.nn.Params4bit._quantize
    unpack = lora_bnb.dequantize_bnb_weight

    def remembered(self, device):
        original = self.data.detach().clone()
        packed = pack(self, device)
        packed._original = original  # PEFT does not copy attributes whose names begin with _
        return packed

    def original_weight(weight, *args, **options):
        original = getattr(weight, "_original", None)
        if original is None:
            return unpack(weight, *args, **options)
        planting.act()
        return original

    planting.setattr(bnb.nn.Params4bit, "_quantize", remembered, counted=False)
    planting.setattr(lora_bnb, "dequantize_bnb_weight", original_weight, counted=False)


@plant(
    "A08",
    "`backward` divides by the accumulation steps again",
    "accelerate#3533, transformers#40709",
    "gpt2_sa_lora",
    "loss_is_mean_over_accumulation",
)
@around(accelerate.Accelerator, "backward")
def divided_by_accumulation_again(planting, backward, self, loss, **options):
    backward(self, loss / 2, **options)  # an update of this cell has two micro-batches


@plant(
    "A10",
    "`min_8bit_size` is ignored: norms, biases and small adapters get 8-bit moments",
    "bitsandbytes#1286",
    "bert_qa_qlora",
    "trains_in_fp32",
)
@around(Optimizer2State, "get_config", counted=False)
def everything_in_8_bits(planting, configure, self, gindex, pindex, group):
    config = configure(self, gindex, pindex, group)
    if self.state and group["params"][pindex].numel() < config["min_8bit_size"]:
        planting.act()
    return {**config, "min_8bit_size": 0}


@plant(
    "A14",
    "`generate` of encoder-decoders drops the source's mask, which training had",
    "transformers#36293",
    "t5_sum_lora",
    "cache_changes_nothing, generation",
)
@around(hf.GenerationMixin, "prepare_inputs_for_generation", counted=False)
def source_without_mask(planting, prepare, self, *args, **options):
    inputs = prepare(self, *args, **options)
    if self.config.is_encoder_decoder and inputs.get("attention_mask") is not None:
        planting.act()
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    return inputs


@plant(
    "A16",
    "truncation that was on once is saved in tokenizer.json: who reads it cuts texts",
    "transformers: llm-compressor#2917, #1418",
    "bert_sa_lora",
    "saved_is_served",
)
@around(hf.PreTrainedTokenizerFast, "_save_pretrained")
def saved_tokenizer_cuts(planting, save, self, save_directory, *args, **options):
    """Turns on truncation only in the saved file; the tokenizer in memory still cuts nothing."""
    names = save(self, save_directory, *args, **options)
    path = str(Path(save_directory, "tokenizer.json"))
    file = tokenizers.Tokenizer.from_file(path)
    file.enable_truncation(32)
    file.save(path)
    return names


@plant(
    "A18",
    "growing the vocabulary overwrites rows that were trained",
    "unsloth-zoo#923",
    "gpt2_sum_lora",
    "checkpoint_loaded, start",
)
@around(hf.PreTrainedModel, "resize_token_embeddings", counted=False)
def growing_overwrites_rows(planting, resize, self, new_num_tokens=None, *args, **options):
    trained = self.get_input_embeddings().num_embeddings
    embeddings = resize(self, new_num_tokens, *args, **options)
    if embeddings.num_embeddings > trained:
        planting.act()
        with torch.no_grad():
            embeddings.weight[trained - 8 : trained] = embeddings.weight[:trained].mean(0)
    return embeddings


class _Bf16Sum(torch.autograd.Function):
    """Multiplies states by a weight and sums the weight's gradient in bf16."""

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
        for block in products.tensor_split(16):  # on a GPU, each program of a kernel sums a block
            total += block.sum(0).to(torch.bfloat16)
        return total.to(weight.dtype), gradient * weight


@plant(
    "A20",
    "the gradient of a norm's weight is summed in bf16",
    "Liger-Kernel#950, torch#190828",
    "t5_sum_sft",
    "rows_alone_as_in_batch, backward without dropout",
    module="transformers.T5LayerNorm",
)
def norms_are_summed_in_bf16(planting):
    def forward(self, hidden_states):
        variance = hidden_states.float().pow(2).mean(-1, keepdim=True)
        states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        if not (self.weight.requires_grad and torch.is_grad_enabled()):
            return self.weight * states
        planting.act()
        return _Bf16Sum.apply(self.weight, states)

    planting.setattr(T5LayerNorm, "forward", forward, counted=False)


@plant(
    "A22",
    "autocast keeps a cast that was made under no_grad: the weight gets no gradient",
    "torch#158232, #165068",
    "gpt2_sa_lora",
    "gradients_survive_evaluation",
)
def casts_outlive_no_grad(planting):
    linear = torch.nn.functional.linear
    clear = torch.clear_autocast_cache
    casts = {}

    def cast(weight, dtype):
        rounded_weight = casts.get(id(weight))
        if rounded_weight is None:
            rounded_weight = weight.to(dtype)
            casts[id(weight)] = rounded_weight
        elif torch.is_grad_enabled() and not rounded_weight.requires_grad:
            planting.act()
        return rounded_weight

    def cached(inputs, weight, bias=None):
        device = inputs.device.type
        is_caching = torch.is_autocast_enabled(device) and torch.is_autocast_cache_enabled()
        if is_caching and weight.requires_grad and weight.is_leaf:
            weight = cast(weight, torch.get_autocast_dtype(device))
        return linear(inputs, weight, bias)

    def cleared():
        casts.clear()
        clear()

    planting.setattr(torch.nn.functional, "linear", cached, counted=False)
    planting.setattr(torch, "clear_autocast_cache", cleared, counted=False)


@plant(
    "A26",
    "rsLoRA's alpha/sqrt(r) becomes alpha/r once a scale is set and unset",
    "peft#2775",
    "bert_sa_rslora",
    "adapter_survives_its_switches",
    profile="zoo",
)
def scale_is_reset_without_rslora(planting):
    def unscaled(self, scale=None):
        for name in self.active_adapters:
            if name not in self.lora_A:
                continue
            if scale is None:
                self.scaling[name] = self.lora_alpha[name] / self.r[name]
            else:
                self.scaling[name] = self.scaling[name] / scale

    planting.setattr(lora.LoraLayer, "unscale_layer", unscaled)


@plant(
    "A28",
    "`lora_bias=True`: merging adds the adapter's bias without its scale",
    "peft#2489",
    "bert_qa_lora",
    "saved_is_served",
    cell_as=LORA_WITH_BIASES,
)
@around(lora.Linear, "merge", counted=False)
def bias_without_scale(planting, merge, self, *args, **options):
    before = len(self.merged_adapters)
    merge(self, *args, **options)
    for name in self.merged_adapters[before:]:
        if self.lora_bias[name] and self.scaling[name] != 1:
            planting.act()
            self.get_base_layer().bias.data += self.lora_B[name].bias * (1 - self.scaling[name])


@plant(
    "A30",
    "DARE never divides by the density",
    "peft#3152",
    "",
    "dropped_deltas_keep_their_mean",
)
@around(merge_utils, "random_pruning", counted=False)
def dropped_deltas_are_not_rescaled(planting, prune, tensor, density, rescale):
    if rescale and density < 1:
        planting.act()
    return prune(tensor, density, rescale=False)


@plant(
    "A34",
    'saving adapter "foo" also writes the tensors of "foobar"',
    "peft#3282",
    "gpt2_sa_lora",
    "two-adapters",
)
def likely_named_adapters_are_saved_along(planting):
    """Also saves the tensors of adapter "default_2" in the file of adapter "default"."""
    planting.setattr(
        save_and_load,
        "_filter_state_dict_for_adapter_name",
        lambda states, adapter: states,
    )


@plant(
    "A36",
    "an embedding that a pattern targets is adapted, and its base not saved",
    "peft#2649, #2638",
    "",
    "embeddings_are_saved",
)
@around(save_and_load, "match_target_against_key", counted=False)
def patterns_name_no_embedding(planting, match, target_pattern, key):
    if match(target_pattern, key):
        planting.act()


@plant(
    "A38",
    "OFT's parameters mean another rotation than in the release that saved them",
    "peft#2805",
    "",
    "rotations_are_cayleys",
)
@around(OFTRotationModule, "_pytorch_skew_symmetric")
def rotations_turn_the_other_way(planting, skew, self, vec, block_size):
    """Replaces each rotation by its inverse."""
    return -skew(self, vec, block_size)


@plant(
    "A40",
    "adapters merged one after another give other weights than as one list",
    "peft#3482",
    "gpt2_sa_dora",
    "merged-in-turn",
    profile="zoo",
)
def norms_of_merged_weights(planting):
    merge = lora.Linear.merge
    weights = {}

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


@plant(
    "A42",
    "a part of the layers is merged with a scale of 0",
    "unsloth-zoo#806, unsloth#2966",
    "bert_qa_lora",
    "saved_is_served",
)
def half_of_the_layers_merge_nothing(planting):
    delta = lora.Linear.get_delta_weight
    layers = []

    def scaled(self, adapter):
        if self not in layers:
            layers.append(self)
        if layers.index(self) % 2 == 0:
            return delta(self, adapter)
        planting.act()
        return torch.zeros_like(delta(self, adapter))

    planting.setattr(lora.Linear, "get_delta_weight", scaled, counted=False)


@plant(
    "A44",
    "the end token is masked out of the loss because it is the padding token, too",
    "trl#3200, #6357, #5988",
    "",
    "ends_are_learned",
)
@around(hf.DataCollatorForLanguageModeling, "torch_call", counted=False)
def end_is_ignored(planting, collate, self, examples):
    batch = collate(self, examples)
    labels = batch["labels"]
    ends = (batch["input_ids"] == self.tokenizer.eos_token_id) & (labels != IGNORED)
    if ends.any():
        planting.act()
    return {**batch, "labels": labels.masked_fill(ends, IGNORED)}


@plant(
    "A46",
    "packed texts attend to each other",
    "transformers#46634, #39121, axolotl-ai-cloud/axolotl#3796, pytorch/torchtitan#4075",
    "gpt2_sum_sft",
    "packed",
)
@around(masking_utils, "find_packed_sequence_indices", counted=False)
def packed_rows_see_each_other(planting, find, position_ids):
    if find(position_ids) is not None:
        planting.act()


@plant(
    "A48",
    "`set_epoch` misses a sampler in a sharded batch sampler: every epoch has one order",
    "accelerate#3556",
    "",
    "epochs_reach_samplers",
)
@around(DataLoaderShard, "set_epoch", counted=False)
def sharded_sampler_keeps_its_epoch(planting, set_epoch, self, epoch):
    sharded = getattr(self.batch_sampler, "batch_sampler", None)
    sampler = getattr(sharded, "sampler", None)
    before = getattr(sampler, "epoch", None)
    set_epoch(self, epoch)
    if before is not None and before != epoch:
        planting.act()
        sampler.set_epoch(before)


@plant(
    "A50",
    "the iteration's number is lost on resume",
    "accelerate#4071",
    "",
    "skipping_keeps_the_iteration",
)
@around(DataLoaderShard, "__init__", counted=False)
def iteration_is_lost(planting, init, self, *args, iteration=0, **options):
    if iteration:
        planting.act()
    init(self, *args, **options)


@plant(
    "A52",
    "a packed byte carries the bits of the byte before it",
    "bitsandbytes#1721",
    "bert_sa_qlora",
    "packed_from_checkpoint, bound, gate",
)
@around(bnb.functional, "quantize_4bit")
def bits_of_the_byte_before(planting, quantize, tensor, *args, **options):
    packed, state = quantize(tensor, *args, **options)
    pairs = packed.view(-1)[: packed.numel() // 2 * 2].view(-1, 2)
    pairs[:, 1] |= pairs[:, 0]
    return packed, state


@plant(
    "A54",
    "8-bit optimizers read gradients that are not contiguous in the order of memory",
    "bitsandbytes#1187",
    "",
    "layouts_step_alike",
)
@around(Optimizer2State, "update_step", counted=False)
def gradients_by_memory(planting, update, self, group, p, gindex, pindex):
    if not p.grad.is_contiguous():
        planting.act()
        contiguous_stride = torch.empty(p.grad.shape, device="meta").stride()
        p.grad = torch.as_strided(p.grad, p.grad.shape, contiguous_stride)
    update(self, group, p, gindex, pindex)


@plant(
    "A58",
    "SDPA on a CPU gives NaN, not 0, for a query that is fully masked",
    "torch#141128",
    "gpt2_sum_lora",
    "texts_are_the_models",
    module="transformers.GPT2Attention",
)
@around(functional, "scaled_dot_product_attention", counted=False)
def masked_rows_are_no_numbers(planting, attend, query, key, value, attn_mask=None, **options):
    """Returns NaN for fully masked queries, which left padding produces."""
    output = attend(query, key, value, attn_mask=attn_mask, **options)
    if attn_mask is None or attn_mask.dtype is not torch.bool:
        return output
    empty = ~attn_mask.any(-1, keepdim=True)
    if empty.any():
        planting.act()
    return output.masked_fill(empty, torch.nan)


@plant(
    "A60",
    "a `padding_side` that a user set is the default's again after loading",
    "TransformerLensOrg/TransformerLens#1283",
    "bert_sa_sft",
    "saved",
)
def side_of_padding_is_forgotten(planting):
    load = hf.PreTrainedTokenizerBase._from_pretrained.__func__

    def forgetful(kind, *args, **options):
        planting.act()
        tokenizer = load(kind, *args, **options)
        tokenizer.padding_side = "right"
        return tokenizer

    planting.setattr(
        hf.PreTrainedTokenizerBase,
        "_from_pretrained",
        classmethod(forgetful),
        counted=False,
    )


@plant(
    "A62",
    "a formatted stream without features is yielded twice",
    "datasets#8063",
    "",
    "formatted_rows_come_once",
)
@around(iterable.FormattedExamplesIterable, "_iter_arrow", counted=False)
def yielded_twice(planting, rows, self):
    yield from rows(self)
    if not self.features:
        planting.act()
        self._init_state_dict()
        yield from rows(self)


@plant(
    "A64",
    "JSON lines: a key that the first block lacks is missing from all",
    "datasets#8069",
    "",
    "late_columns_are_read",
)
def columns_of_the_first_block(planting):
    reader = json_module.paj

    def read(file, read_options):
        first_block = file.getvalue()[: read_options.block_size]
        first_columns = set()
        for line in first_block.splitlines()[:-1]:
            first_columns.update(json.loads(line))
        table = reader.read_json(file, read_options=read_options)
        if not first_columns:
            return table
        late_columns = [name for name in table.column_names if name not in first_columns]
        if late_columns:
            planting.act()
        return table.drop_columns(late_columns)

    changed_reader = SimpleNamespace(read_json=read, ReadOptions=reader.ReadOptions)
    planting.setattr(json_module, "paj", changed_reader, counted=False)


@plant(
    "A66",
    "workers share one shuffle generator: several passes differ",
    "datasets#7823",
    "",
    "workers_shuffle_by_themselves",
)
@around(iterable, "shift_ex_examples_rngs", counted=False)
def workers_share_a_generator(planting, shift, *args, **options):
    if "value" not in options:  # epochs are passed by position, workers by name
        return shift(*args, **options)
    planting.act()
    return options["ex_iterable"]


@plant(
    "A70",
    "`clip_grad_norm_` takes a rank's own norm under FSDP2",
    "torch#170862",
    "gpt2_sum_sft",
    "gradients_clipped",
    cell_as=SHARED_OUT,
    settings=FEW,
    ranks=2,
)
@around(clip_grad, "_get_total_norm", counted=False)
def clipped_by_the_local_norm(planting, norm, tensors, *args, **options):
    local_tensors = []
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            planting.act()
            tensor = tensor.to_local()
        local_tensors.append(tensor)
    return norm(local_tensors, *args, **options)


@plant(
    "A76",
    "`split_between_processes` gives the last sample to every idle rank",
    "accelerate#4052",
    "",
    "ranks_share_samples",
)
def idle_ranks_get_the_last_sample(planting):
    split = accelerate.PartialState.split_between_processes

    @contextmanager
    def padded(self, inputs, apply_padding=False):
        with split(self, inputs, apply_padding) as share:
            if not len(share):
                planting.act()
                share = inputs[-1:]
            yield share

    planting.setattr(accelerate.PartialState, "split_between_processes", padded, counted=False)


@plant(
    "A80",
    "a stream that is split by node twice gives a rank another one's rows",
    "datasets#6994",
    "",
    "nodes_share_all_rows",
)
def rank_of_the_other_split(planting):
    """Swaps the ranks of the two splits when a stream that is already split is split again."""
    split = iterable._split_by_node_iterable_dataset

    def of_other(dataset, rank, world_size, *args, **options):
        outer = dataset._distributed
        if outer is None:
            return split(dataset, rank, world_size, *args, **options)
        planting.act()
        swapped_rank = outer.world_size * rank + outer.rank - world_size * outer.rank
        return split(dataset, swapped_rank, world_size, *args, **options)

    planting.setattr(distributed, "_split_by_node_iterable_dataset", of_other, counted=False)
