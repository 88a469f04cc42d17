"""Beam search without needless copies. In: a model about to generate. Out: the same texts, sooner.

All beams of a row read the same prompt. transformers computes and keeps it once a beam, and after each token copies the whole
cache twice: to append the token, and to gather the beams that go on, the prompt's part too. Here a prompt is computed and kept
once a row, its beams read it together, whether a decoder or an encoder made it, and tokens are appended in place. On a CPU the
best continuations are looked for in two steps, blocks first. Rows of an embedding that train are written into it once.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    ALL_ATTENTION_FUNCTIONS[SDPA] = prefill.attend
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

    Nothing is done to an output layer with a bias, which PEFT adds only to what stands in place.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, TrainableTokensLayer)]
    if any(getattr(layer.base_layer, "bias", None) is not None for layer in layers):
        layers = []
    with ExitStack() as undone:
        for layer in layers:
            if layer.active_adapters and not layer.disable_adapters and not layer.merged:
                undone.enter_context(merged(layer))
        yield


@contextmanager
def merged(layer: Any) -> Iterator[None]:
    """Meanwhile the rows that train stand in the layer's embedding; afterwards those that were there, bit for bit."""
    places = [place for name in layer.active_adapters for place in layer.token_indices[name]]
    weight = layer.base_layer.weight
    with outside_inference():
        before = weight[places].clone()
        layer.merge()
    try:
        yield
    finally:
        with outside_inference():
            layer.unmerge()  # to what they were when the adapter was made
            weight[places] = before


@contextmanager
def outside_inference() -> Iterator[None]:
    """Tensors made meanwhile can be trained with later, though none of what is done here is differentiated."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class Prefill:
    """The first forward pass of a search, over one row of each row's beams, and what later passes read of it.

    Attributes:
        layers: of self-attention's cache; None before the prompt is computed.
    """

    def __init__(self, beams: int, *, shared: bool) -> None:
        """So many beams a row; `shared` where the keys of its source can stay those of one."""
        self._beams, self._shared = beams, shared
        self._cache: Any = None
        self._apart = set[int]()  # places of layers whose attention reads the cache's own tensors
        self.layers: list[Any] | None = None

    def narrow(self, module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any] | None:
        """One row of each row's beams, in the first pass."""
        if self.layers is not None or not plain(cache_of(options)):
            return None
        self._cache = cache_of(options)
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
        if self.layers is None and plain(cache):
            if not self._shared and isinstance(cache, hf.EncoderDecoderCache):
                cache.cross_attention_cache.batch_repeat_interleave(self._beams)
            self.layers = own_layers(cache)
            for place, layer in enumerate(self.layers):
                if layer.is_initialized:  # T5 may keep more than it has
                    self.layers[place] = RoomyLayer(layer, self._beams, apart=place in self._apart)
            output.logits = output.logits.repeat_interleave(self._beams, 0)
        return output

    def reordered(self, cache: Any, order: Tensor) -> Any:
        """The cache for the beams that go on; what an encoder made is the same for all beams of a row."""
        (cache if self.layers is None else own_cache(cache)).reorder_cache(order)
        return cache

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """Attention by transformers' interface, as SDPA computes it: (rows x beams, tokens, heads, size), and no weights."""
        place = getattr(module, "layer_idx", None)
        if self.layers is None:
            if place is not None and self._reads_all(place, query, key, value, options):
                self._apart.add(place)
        elif place in self._apart and reads(layer := self.layers[place], key, value):
            if query.shape[2] == 1:
                return attend_apart(query, layer, attention_mask, options.get("scaling")), None
            key, value = layer.whole()
        return attend_together(module, query, key, value, attention_mask, **options)

    def _reads_all(self, place: int, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> bool:
        """Whether a decoder's layer attends to what its cache holds, each head to its own, in fp32 and without biases."""
        if not isinstance(self._cache, hf.DynamicCache) or options.get("position_bias") is not None:
            return False
        return reads(self._cache.layers[place], key, value) and key.shape[1] == query.shape[1] and key.dtype == torch.float32


def reads(layer: Any, key: Tensor, value: Tensor) -> bool:
    """Whether these are a layer's own keys and values, not something made of them."""
    return key is layer.keys and value is layer.values


class RoomyLayer(DynamicLayer):  # type: ignore[misc] # transformers' class
    """One layer's keys and values, with room behind them: a token is written there, and nothing else moves.

    Attributes:
        prompt: keys and values of the prompts, one row each, where they are kept apart; `keys` and `values` are those of
            the tokens behind it. None where these begin with the prompt.
    """

    def __init__(self, layer: DynamicLayer, beams: int, *, apart: bool) -> None:
        """Takes over what `layer` holds, for so many beams a row."""
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        states = layer.keys, layer.values
        self.prompt = (layer.keys.contiguous(), layer.values.contiguous()) if apart else None
        self._alike = 0 if apart else layer.keys.shape[-2]  # first tokens that all beams of a row have
        self._blocks = [kept[:, :, : self._alike].repeat_interleave(beams, 0) for kept in states]
        self._show(self._alike)

    def _show(self, tokens: int) -> None:
        """`keys` and `values` are what of the blocks is written."""
        self.keys, self.values = (block[:, :, :tokens] for block in self._blocks)

    def get_seq_length(self) -> int:
        """How many tokens are kept, the prompt's included."""
        own: int = self.keys.shape[-2]
        return own + (self.prompt[0].shape[-2] if self.prompt else 0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens, each (B, heads, tokens, size); return `keys` and `values`."""
        before = self.keys.shape[-2]
        after = before + key_states.shape[-2]
        if after > self._blocks[0].shape[-2]:
            self._blocks = [roomier(kept, after + ROOM) for kept in (self.keys, self.values)]
        for block, states in zip(self._blocks, (key_states, value_states), strict=True):
            block[:, :, before:after] = states
        self._show(after)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the tokens of the beams that go on; the prompt stays."""
        for states in (self.keys[:, :, self._alike :], self.values[:, :, self._alike :]):
            states.copy_(states.index_select(0, beam_idx))

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompt and of the tokens behind it, each beam's."""
        assert self.prompt, "the prompt is kept apart"
        beams = len(self.keys) // len(self.prompt[0])
        keys, values = (kept.repeat_interleave(beams, 0) for kept in self.prompt)
        return torch.cat([keys, self.keys], 2), torch.cat([values, self.values], 2)


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


def attend_apart(query: Tensor, layer: RoomyLayer, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention of each beam's last token to its prompt, which a row's beams read together, and to its own tokens behind it.

    Args:
        query: (rows x beams, heads, 1, size).
        layer: prompts (rows, heads, P, size) and beams' own tokens (rows x beams, heads, T, size).
        mask: of prompt and tokens, (rows x beams or 1, 1, 1, P + T): where to look, or what to add to scores.
        scaling: of scores; 1 / sqrt(size) where it is None.

    Returns:
        (rows x beams, 1, heads, size).
    """
    assert layer.prompt, "the prompt is kept apart"
    keys, values = layer.prompt
    rows, (count, heads, _, size) = len(keys), query.shape
    query = query * (size**-0.5 if scaling is None else scaling)
    together = query.reshape(rows, -1, heads, size).transpose(1, 2)
    of_prompt = (together @ keys.mT).transpose(1, 2).reshape(count, heads, 1, -1)
    scores = torch.cat([of_prompt, query @ layer.keys.mT], -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    shares, own = scores.softmax(-1).tensor_split([keys.shape[-2]], -1)
    read: Tensor = shares.reshape(rows, -1, heads, keys.shape[-2]).transpose(1, 2) @ values
    return read.transpose(1, 2).reshape(count, 1, heads, size).add((own @ layer.values).transpose(1, 2))


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
