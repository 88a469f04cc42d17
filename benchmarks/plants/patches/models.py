"""Bugs of models and texts, put back into the libraries: attention, caches, search, offsets, decoding."""

import datasets
import torch
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedTokenizerBase, PreTrainedTokenizerFast, masking_utils
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.t5 import modeling_t5

from benchmarks.plants.plant import around


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


def dropout_at_evaluation(planting):
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def always_dropping(module, *args, dropout=0.0, **options):
        layer = getattr(module, "attn_dropout", None) or getattr(module, "dropout", dropout)
        return attend(module, *args, dropout=getattr(layer, "p", layer), **options)

    planting.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", always_dropping)


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


@around(GenerationMixin, "prepare_inputs_for_generation", counted=False)
def source_without_mask(planting, prepare, self, *args, **options):
    inputs = prepare(self, *args, **options)
    if self.config.is_encoder_decoder and inputs.get("attention_mask") is not None:
        planting.act()
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    return inputs


@around(PreTrainedTokenizerFast, "_convert_encoding")
def first_offset_is_late(planting, convert, self, *args, **options):
    """The first token's offset starts at its second character: a space is trimmed that is not there."""
    encoded, encodings = convert(self, *args, **options)
    for offsets in encoded.get("offset_mapping", []):
        offsets[:1] = [(start + 1, end) for start, end in offsets[:1]]
    return encoded, encodings


@around(PreTrainedTokenizerFast, "_decode")
def decoding_cleans_up(planting, decode, self, *args, **options):
    """`decode` takes away the spaces before punctuation and short forms, though the tokenizer says that it must not."""
    return PreTrainedTokenizerBase.clean_up_tokenization(self, decode(self, *args, **options))


@around(datasets.Dataset, "select")
def rows_before_the_mapping(planting, select, self, indices, **options):
    return select(self, range(len(indices)), **options)
