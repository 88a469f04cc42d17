"""Bugs of generation, put back into transformers: caches, beams, attention of one token."""

from typing import Any

import torch
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

WRONG_SCALE = 0.5
LATE = 10  # tokens, behind which attention goes wrong


def beams_keep_their_layers(monkeypatch: Any) -> None:
    """A cache says that it follows its beams, but its layers stay as they are."""
    monkeypatch.setattr(DynamicLayer, "reorder_cache", lambda self, beam_idx: None)


def beams_keep_their_cache(monkeypatch: Any) -> None:
    """The beams are sorted anew after each token, their caches are not: a beam goes on with another one's past."""
    monkeypatch.setattr(Cache, "reorder_cache", lambda self, beam_idx: None)


def tokens_overwrite_the_last(monkeypatch: Any) -> None:
    """A layer's cache writes the values of a new token over those of the token before."""
    update = DynamicLayer.update

    def overwriting(self: Any, keys: torch.Tensor, values: torch.Tensor, *args: Any, **options: Any) -> Any:
        if self.is_initialized and self.values.shape[-2] and values.shape[-2] == 1:
            self.values = torch.cat([self.values[..., :-1, :], values], dim=-2)
        return update(self, keys, values, *args, **options)

    monkeypatch.setattr(DynamicLayer, "update", overwriting)


def beams_take_anothers_past(monkeypatch: Any) -> None:
    """A beam that goes on gets the tokens so far of the next best one, and keeps its own scores and cache."""
    pick = GenerationMixin._get_top_k_continuations

    def mixed(self: Any, *, cur_len: int, **options: Any) -> Any:
        scores, sequences, places = pick(self, cur_len=cur_len, **options)
        return scores, torch.cat([sequences[:, :, :cur_len].roll(1, 1), sequences[:, :, cur_len:]], dim=-1), places

    monkeypatch.setattr(GenerationMixin, "_get_top_k_continuations", mixed)


def one_token_is_scaled(monkeypatch: Any, after: int = 0) -> None:
    """Attention of one token, as in cached decoding, has another scale than attention of many."""
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    steps: dict[Any, int] = {}

    def rescaled(module: Any, query: torch.Tensor, *args: Any, scaling: float | None = None, **options: Any) -> Any:
        steps[module] = steps.get(module, 0) + 1 if query.shape[2] == 1 else 0
        usual = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attend(module, query, *args, scaling=usual * WRONG_SCALE if steps[module] > after else scaling, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", rescaled)


def late_tokens_are_scaled(monkeypatch: Any) -> None:
    """The same, from the eleventh token on."""
    one_token_is_scaled(monkeypatch, after=LATE)


def source_without_mask(plant: Any) -> None:
    """`generate` of an encoder-decoder hands the source to its decoder without the mask, which training had."""
    prepare = GenerationMixin.prepare_inputs_for_generation

    def lost(self: Any, *args: Any, **options: Any) -> Any:
        inputs = prepare(self, *args, **options)
        if self.config.is_encoder_decoder and inputs.get("attention_mask") is not None:
            plant.act()
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        return inputs

    plant.setattr(GenerationMixin, "prepare_inputs_for_generation", lost, counted=False)
