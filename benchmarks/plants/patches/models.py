"""Bugs of models and texts, put back into the libraries: attention, caches, search, offsets, decoding."""

from typing import Any

import datasets
import torch
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedTokenizerBase, PreTrainedTokenizerFast, masking_utils
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.t5 import modeling_t5


def cross_attention_without_mask(planting: Any) -> None:
    """The mask of the source is lost on its way to the decoder's cross-attention, which then attends to padding, too."""
    for module in (modeling_bert, modeling_t5):
        create = module.create_bidirectional_mask

        def lost(*args: Any, encoder_hidden_states: Any = None, create: Any = create, **options: Any) -> Any:
            return create(*args, **options) if encoder_hidden_states is None else None

        planting.setattr(module, "create_bidirectional_mask", lost)


def last_column_is_classified(planting: Any) -> None:
    """The classifier reads column -1, as without a padding token: short rows are read at their padding."""
    forward = modeling_gpt2.GPT2ForSequenceClassification.forward

    def of_last_column(self: Any, input_ids: Any, **inputs: Any) -> Any:
        embedded = self.transformer.wte(input_ids)  # from embeddings it cannot tell padding, and falls back to column -1
        return forward(self, inputs_embeds=embedded, **inputs)

    planting.setattr(modeling_gpt2.GPT2ForSequenceClassification, "forward", of_last_column)


def bias_forgets_the_cache(planting: Any) -> None:
    """With a cache, T5's decoder takes each new token for the first one: its relative positions all start at 0."""
    compute = modeling_t5.T5Attention.compute_bias

    def from_zero(self: Any, query_length: int, key_length: int, device: Any = None, past_seen_tokens: Any = 0) -> Any:
        return compute(self, query_length, key_length, device=device, past_seen_tokens=0)

    planting.setattr(modeling_t5.T5Attention, "compute_bias", from_zero)


def decoder_sees_the_answer(planting: Any) -> None:
    """BERT as a decoder gets the encoder's mask: each target token attends to the ones behind it."""

    def both_ways(*, cache: Any = None, **options: Any) -> Any:
        return modeling_bert.create_bidirectional_mask(**options)

    planting.setattr(modeling_bert, "create_causal_mask", both_ways)


def t5_is_scaled(planting: Any) -> None:
    """T5 leaves its scale to SDPA, whose default is 1/sqrt(d). T5's weights were trained without a scale."""
    _after_init(planting, modeling_t5.T5Attention, lambda layer: setattr(layer, "scaling", None))


def gpt2_options_are_ignored(planting: Any) -> None:
    """GPT-2 leaves its scale to SDPA, whose default is 1/sqrt(d) whatever `scale_attn_by_inverse_layer_idx` says."""
    _after_init(planting, modeling_gpt2.GPT2Attention, lambda layer: setattr(layer, "scaling", None))


def _after_init(planting: Any, kind: type, change: Any) -> None:
    """Change every module of a class when it has been made."""
    init = kind.__init__

    def changed(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        change(self)

    planting.setattr(kind, "__init__", changed)


def bias_without_gradient(planting: Any) -> None:
    """A fused kernel of SDPA gives no gradient to an additive mask, so that a learned bias in it never trains."""
    attend = functional.scaled_dot_product_attention

    def constant_mask(query: Any, key: Any, value: Any, attn_mask: Any = None, **options: Any) -> Any:
        return attend(query, key, value, attn_mask=None if attn_mask is None else attn_mask.detach(), **options)

    planting.setattr(torch.nn.functional, "scaled_dot_product_attention", constant_mask)


def dropout_at_evaluation(planting: Any) -> None:
    """SDPA drops whenever it is given a probability, and BERT and GPT-2 give it theirs at evaluation, too."""
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def always_dropping(module: Any, *args: Any, dropout: float = 0.0, **options: Any) -> Any:
        layer = getattr(module, "attn_dropout", None) or getattr(module, "dropout", dropout)
        return attend(module, *args, dropout=getattr(layer, "p", layer), **options)

    planting.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", always_dropping)


def masked_rows_are_no_numbers(planting: Any) -> None:
    """SDPA on a CPU gives no numbers, not zeros, for a query that may look at nothing, as padding on the left has them."""
    attend = functional.scaled_dot_product_attention

    def undefined(query: Any, key: Any, value: Any, attn_mask: Any = None, **options: Any) -> Any:
        output = attend(query, key, value, attn_mask=attn_mask, **options)
        if attn_mask is None or attn_mask.dtype is not torch.bool:
            return output
        empty = ~attn_mask.any(-1, keepdim=True)
        if empty.any():
            planting.act()
        return output.masked_fill(empty, torch.nan)

    planting.setattr(torch.nn.functional, "scaled_dot_product_attention", undefined, counted=False)


def packed_rows_see_each_other(planting: Any) -> None:
    """Positions that begin anew no longer tell texts apart that are packed into one row."""
    find = masking_utils.find_packed_sequence_indices

    def unnoticed(position_ids: Any) -> None:
        if find(position_ids) is not None:
            planting.act()

    planting.setattr(masking_utils, "find_packed_sequence_indices", unnoticed, counted=False)


def beams_keep_their_cache(planting: Any) -> None:
    """The beams are sorted anew after each token, their caches are not: a beam goes on with another one's past."""
    planting.setattr(Cache, "reorder_cache", lambda self, beam_idx: None)


def tokens_overwrite_the_last(planting: Any) -> None:
    """A layer's cache writes the values of a new token over those of the token before."""
    update = DynamicLayer.update

    def overwriting(self: Any, keys: torch.Tensor, values: torch.Tensor, *args: Any, **options: Any) -> Any:
        if self.is_initialized and self.values.shape[-2] and values.shape[-2] == 1:
            self.values = torch.cat([self.values[..., :-1, :], values], dim=-2)
        return update(self, keys, values, *args, **options)

    planting.setattr(DynamicLayer, "update", overwriting)


def source_without_mask(planting: Any) -> None:
    """`generate` of an encoder-decoder hands the source to its decoder without the mask, which training had."""
    prepare = GenerationMixin.prepare_inputs_for_generation

    def lost(self: Any, *args: Any, **options: Any) -> Any:
        inputs = prepare(self, *args, **options)
        if self.config.is_encoder_decoder and inputs.get("attention_mask") is not None:
            planting.act()
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        return inputs

    planting.setattr(GenerationMixin, "prepare_inputs_for_generation", lost, counted=False)


def first_offset_is_late(planting: Any) -> None:
    """The first token's offset starts at its second character: a space is trimmed that is not there."""
    convert = PreTrainedTokenizerFast._convert_encoding

    def late(self: Any, *args: Any, **options: Any) -> Any:
        encoded, encodings = convert(self, *args, **options)
        for offsets in encoded.get("offset_mapping", []):
            offsets[:1] = [(start + 1, end) for start, end in offsets[:1]]
        return encoded, encodings

    planting.setattr(PreTrainedTokenizerFast, "_convert_encoding", late)


def decoding_cleans_up(planting: Any) -> None:
    """`decode` takes away the spaces before punctuation and short forms, though the tokenizer says that it must not."""
    decode = PreTrainedTokenizerFast._decode

    def cleaned(self: Any, *args: Any, **options: Any) -> str:
        return PreTrainedTokenizerBase.clean_up_tokenization(self, decode(self, *args, **options))

    planting.setattr(PreTrainedTokenizerFast, "_decode", cleaned)


def rows_before_the_mapping(planting: Any) -> None:
    """The indices that were selected are forgotten: as many rows come back, from the start of the table."""
    select = datasets.Dataset.select

    def forgetful(self: Any, indices: Any, **options: Any) -> Any:
        return select(self, range(len(indices)), **options)

    planting.setattr(datasets.Dataset, "select", forgetful)
