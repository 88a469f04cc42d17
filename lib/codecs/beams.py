"""Beam search without needless copies. In: a model about to generate. Out: the same texts, sooner.

All beams of a row read the same prompt. transformers computes it once a beam, and after each token copies the whole cache
twice: to append the token, and to gather the beams that go on, the prompt's part too. Here a prompt is computed once a row and
stays where it is, tokens are appended in place, and the beams of a row read what the encoder made of it together. On a CPU the
best continuations are looked for in two steps, blocks first. Rows of an embedding that train are written into it once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers as hf
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SDPA = "sdpa"  # transformers' name for torch's attention
ROOM = 64  # tokens that a cache makes room for at once
BLOCK = 128  # scores of which the largest is found first
WIDE = BLOCK * BLOCK  # scores of a row from which on that pays
TOP_K = "_get_top_k_continuations"  # transformers' name for the part of a search that picks tokens
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
    prefill = Prefill(beams, shared=attention_of(owner) == SDPA)
    handles = [
        owner.register_forward_pre_hook(prefill.narrow, with_kwargs=True),
        owner.register_forward_hook(prefill.widen, with_kwargs=True),
    ]
    ours = {"_reorder_cache": prefill.reordered}
    if hasattr(owner, TOP_K):
        ours[TOP_K] = picked_by_blocks(getattr(owner, TOP_K))
    vars(owner).update(ours)
    ALL_ATTENTION_FUNCTIONS[SDPA] = attend_together
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[SDPA]
        for name in ours:
            delattr(owner, name)
        for handle in handles:
            handle.remove()


@contextmanager
def tokens_in_place(model: Any) -> Iterator[None]:
    """Meanwhile an embedding holds its rows that train, which PEFT otherwise writes into a copy of it in each pass.

    They are written by PEFT, and afterwards the rows that were there before, so that no bit changes.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, TrainableTokensLayer)]
    layers = [layer for layer in layers if layer.active_adapters and not layer.disable_adapters and not layer.merged]
    with outside_inference():
        for layer in layers:
            layer.merge()
    try:
        yield
    finally:
        with outside_inference():
            for layer in layers:
                layer.unmerge()


@contextmanager
def outside_inference() -> Iterator[None]:
    """Tensors made meanwhile can be trained with later, though none of what is done here is differentiated."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Prefill:
    """The first forward pass of a search, over one row of each row's beams.

    Attributes:
        length: tokens of the prompt that the cache of self-attention holds; None before they are computed.
    """

    def __init__(self, beams: int, *, shared: bool) -> None:
        """So many beams a row; `shared` where the keys of its source can stay those of one."""
        self._beams, self._shared = beams, shared
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
            (own_cache(cache) if self._shared else cache).batch_repeat_interleave(self._beams)
            layers = own_layers(cache)
            layers[:] = [RoomyLayer(layer) if layer.is_initialized else layer for layer in layers]
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


class RoomyLayer(DynamicLayer):  # type: ignore[misc] # transformers' class
    """One layer's keys and values, with room behind them: a token is written there, and nothing else moves."""

    def __init__(self, layer: DynamicLayer) -> None:
        """Takes over what `layer` holds."""
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values
        self._blocks = self.keys, self.values  # `keys` and `values` are what of them is written

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens, each (B, heads, tokens, size); return all there are."""
        before = self.keys.shape[-2]
        after = before + key_states.shape[-2]
        if after > self._blocks[0].shape[-2]:
            self._blocks = roomier(self.keys, after + ROOM), roomier(self.values, after + ROOM)
        for block, states in zip(self._blocks, (key_states, value_states), strict=True):
            block[:, :, before:after] = states
        self.keys, self.values = (block[:, :, :after] for block in self._blocks)
        return self.keys, self.values


def roomier(states: Tensor, tokens: int) -> Tensor:
    """A block for so many tokens that begins with these states."""
    block = torch.empty(*states.shape[:2], tokens, states.shape[3], dtype=states.dtype, device=states.device)
    block[:, :, : states.shape[2]] = states
    return block


def attend_together(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """SDPA where fewer rows have keys than queries: the beams of a row, one token each, are its queries.

    Queries are (rows x beams, heads, 1, size), keys and values (rows, heads, tokens, size); the mask, (rows x beams, 1, 1,
    tokens), is the same for all beams of a row. Returns (rows x beams, 1, heads, size), and no weights. With as many rows of
    keys as of queries, this is transformers' own.
    """
    beams = len(query) // len(key)
    if beams > 1:
        query = query.view(len(key), beams, *query.shape[1::2]).transpose(1, 2)
        if attention_mask is not None and len(attention_mask) == len(key) * beams:  # else it is one for all rows
            attention_mask = attention_mask[::beams]
        options["is_causal"] = False
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return output.reshape(len(key) * beams, -1, *output.shape[2:]), None


def picked_by_blocks(pick: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, in which torch finds the largest of many scores by `largest`."""

    def picked(*args: Any, **options: Any) -> Any:
        with ByBlocks():
            return pick(*args, **options)

    return picked


class ByBlocks(TorchFunctionMode):
    """Meanwhile `torch.topk` over the last dimension goes by blocks where a CPU has many scores."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch's function returns."""
        options = kwargs or {}
        if function is torch.topk and len(args) == 1 and set(options) == {"k"}:
            scores, k = args[0], options["k"]
            if scores.device.type == "cpu" and scores.ndim == 2 and scores.shape[-1] >= WIDE and k < BLOCK:
                return largest(scores, k)
        return function(*args, **options)


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of (rows, scores), in order, and their places, both (rows, k): what `torch.topk` returns.

    They are in the blocks with the largest maxima, or in the rest, which fills no block. Maxima of blocks are found much sooner
    than torch sorts scores with their places. Which of equal scores is taken depends on the way, so rows that have such are
    left to torch.
    """
    whole = scores.shape[-1] // BLOCK * BLOCK
    blocks = scores[:, :whole].reshape(len(scores), -1, BLOCK)
    best = blocks.amax(-1).topk(k + 1).indices[:, :, None]
    rest = torch.arange(whole, scores.shape[-1]).expand(len(scores), -1)
    places = torch.cat([(best * BLOCK + torch.arange(BLOCK)).flatten(1), rest], -1)
    values, found = scores.gather(-1, places).topk(k + 1)
    values, tied, places = values[:, :k], (values[:, 1:] == values[:, :-1]).any(-1), places.gather(-1, found[:, :k])
    values[tied], places[tied] = scores[tied].topk(k)
    return values, places


def attention_of(model: Any) -> str | None:
    """The name of the attention that a model's decoder computes."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    return getattr(getattr(decoder, "config", None), "_attn_implementation", None)


def cache_of(options: dict[str, Any]) -> Any:
    """The cache that a forward pass is given."""
    return next((options[name] for name in CACHES if options.get(name) is not None), None)


def own_cache(cache: Any) -> Any:
    """What self-attention keeps."""
    return cache.self_attention_cache if isinstance(cache, hf.EncoderDecoderCache) else cache


def own_layers(cache: Any) -> list[Any]:
    """The same, by layer."""
    layers: list[Any] = own_cache(cache).layers
    return layers


def plain(cache: Any) -> bool:
    """Whether a cache keeps all tokens of each layer in one tensor."""
    known = isinstance(cache, hf.EncoderDecoderCache | hf.DynamicCache)
    return known and all(type(layer) is DynamicLayer for layer in own_layers(cache))
