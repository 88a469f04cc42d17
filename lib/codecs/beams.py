"""Beam search without needless copies. In: a model about to generate. Out: the same texts, sooner.

All beams of a row read the same prompt. transformers computes it once a beam, and after each token gathers the whole cache by
the beams that go on, the prompt's part too. Here a prompt is computed once a row and stays where it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers as hf
from torch import Tensor
from transformers.cache_utils import DynamicLayer

CACHES = ("cache", "past_key_values")  # a forward pass's name for its cache, by transformers' release


@contextmanager
def prompt_once(model: Any, beams: int) -> Iterator[None]:
    """Meanwhile `model.generate` with so many beams computes each prompt once a row.

    Nothing changes for one beam, and for a model that reorders its cache by itself.
    """
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if beams == 1 or hasattr(owner, "_reorder_cache"):
        yield
        return
    prefill = Prefill(beams)
    handles = [
        owner.register_forward_pre_hook(prefill.narrow, with_kwargs=True),
        owner.register_forward_hook(prefill.widen, with_kwargs=True),
    ]
    owner._reorder_cache = prefill.reordered
    try:
        yield
    finally:
        del owner._reorder_cache
        for handle in handles:
            handle.remove()


class Prefill:
    """The first forward pass of a search, over one row of each row's beams.

    Attributes:
        length: tokens of the prompt that the cache of self-attention holds; None before they are computed.
    """

    def __init__(self, beams: int) -> None:
        """So many beams a row."""
        self._beams = beams
        self.length: int | None = None

    def narrow(self, module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any] | None:
        """One row of each row's beams, in the first pass."""
        if self.length is not None or not plain(cache_of(options)):
            return None
        return inputs, {name: self._narrowed(value) for name, value in options.items()}

    def _narrowed(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[:: self._beams] if value.ndim > 1 else value  # positions have no rows
        if isinstance(value, hf.utils.ModelOutput):  # the encoder's
            return type(value)(**{name: self._narrowed(part) for name, part in value.items()})
        return value

    def widen(self, module: Any, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        """Its results for all beams."""
        cache = cache_of(options)
        if self.length is None and plain(cache):
            self.length = cache.get_seq_length()
            cache.batch_repeat_interleave(self._beams)
            output.logits = output.logits.repeat_interleave(self._beams, 0)
        return output

    def reordered(self, cache: Any, order: Tensor) -> Any:
        """The cache for the beams that go on; what they share stays."""
        if self.length is None:
            cache.reorder_cache(order)
            return cache
        for layer in (layer for layer in own_layers(cache) if layer.is_initialized):  # T5 may keep more than it has
            for states in (layer.keys, layer.values):
                states[:, :, self.length :] = states[:, :, self.length :].index_select(0, order)
        return cache


def cache_of(options: dict[str, Any]) -> Any:
    """The cache that a forward pass is given."""
    return next((options[name] for name in CACHES if options.get(name) is not None), None)


def own_layers(cache: Any) -> list[Any]:
    """What self-attention keeps."""
    layers: list[Any] = (cache.self_attention_cache if isinstance(cache, hf.EncoderDecoderCache) else cache).layers
    return layers


def plain(cache: Any) -> bool:
    """Whether a cache keeps all tokens of each layer in one tensor."""
    known = isinstance(cache, hf.EncoderDecoderCache | hf.DynamicCache)
    return known and all(type(layer) is DynamicLayer for layer in own_layers(cache))
