"""Plants of attention, padding, packing and search: each breaks the row of the table that names it."""

from typing import Any

import torch
from transformers import masking_utils
from transformers.cache_utils import DynamicLayer, StaticLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert
from transformers.models.gpt2 import modeling_gpt2

from tunegrid.run import evaluation


def _attention(monkeypatch: Any, change: Any) -> None:
    """Change what SDPA is given: (query, key, value, mask, options) to the same."""
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def changed(module: Any, query: Any, key: Any, value: Any, mask: Any = None, *args: Any, **options: Any) -> Any:
        if "attention_mask" in options:
            mask = options.pop("attention_mask")
        query, key, value, mask = change(query, key, value, mask)
        return attend(module, query, key, value, mask, *args, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", changed)


def first_mask_for_all(monkeypatch: Any) -> None:
    """The mask of a batch's first row is broadcast to all rows."""
    _attention(monkeypatch, lambda q, k, v, mask: (q, k, v, None if mask is None else mask[:1].expand_as(mask)))


def sdpa_computes_in_bf16(monkeypatch: Any) -> None:
    """The fused kernel takes halves, and its inputs are cast to them."""

    def halved(*tensors: Any) -> Any:
        q, k, v, mask = tensors
        return q.bfloat16().to(q.dtype), k.bfloat16().to(k.dtype), v.bfloat16().to(v.dtype), mask

    _attention(monkeypatch, halved)


def positions_are_counted_from_the_left(monkeypatch: Any) -> None:
    """The positions that a caller gives are lost on their way: padding in front counts."""
    for kind in (modeling_gpt2.GPT2Model, modeling_bert.BertModel):
        forward = kind.forward

        def lost(self: Any, *args: Any, position_ids: Any = None, forward: Any = forward, **options: Any) -> Any:
            return forward(self, *args, **options)

        monkeypatch.setattr(kind, "forward", lost)


def packed_rows_see_each_other(monkeypatch: Any) -> None:
    """Positions that start anew no longer part a packed sequence."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)


def static_cache_overwrites_its_last(monkeypatch: Any) -> None:
    """A static cache writes each new token over the one before."""
    update = StaticLayer.update

    def over(self: Any, keys: Any, values: Any, *args: Any, **options: Any) -> Any:
        single = self.is_initialized and keys.shape[-2] == 1
        self.cumulative_length.sub_(int(single))
        cached = update(self, keys, values, *args, **options)
        self.cumulative_length.add_(int(single))
        return cached

    monkeypatch.setattr(StaticLayer, "update", over)


def beams_follow_the_first_row(monkeypatch: Any) -> None:
    """The caches of a batch's beams all follow the beams of its first row."""
    reorder = DynamicLayer.reorder_cache
    monkeypatch.setattr(DynamicLayer, "reorder_cache", lambda self, beams: reorder(self, beams.clamp(max=1)))


def answers_come_as_they_were_read(monkeypatch: Any) -> None:
    """Answers come from the longest row to the shortest, as rows were read, and not in the order of the rows."""
    predict = evaluation.predict

    def unsorted(model: Any, codec: Any, features: Any, *args: Any) -> Any:
        outputs, batch = predict(model, codec, features, *args)
        order = sorted(range(len(features)), key=lambda i: -len(features[i].input_ids))
        return [outputs[i] for i in order], batch

    monkeypatch.setattr(evaluation, "predict", unsorted)


def mask_is_lost(monkeypatch: Any) -> None:
    """Attention that is not causal gets no mask: padding is attended to."""

    def without(q: Any, k: Any, v: Any, mask: Any) -> Any:
        if mask is None or not (mask.dtype == torch.bool or q.shape[-2] == k.shape[-2]):
            return q, k, v, mask
        padded = torch.ones_like(mask) if mask.dtype == torch.bool else mask.clamp(min=-1e4)
        return q, k, v, padded

    _attention(monkeypatch, without)
