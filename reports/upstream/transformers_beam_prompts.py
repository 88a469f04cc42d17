"""transformers computes, keeps and copies a prompt once per beam, though a row's beams share it."""

import sys
from collections.abc import Callable
from statistics import median
from timeit import timeit

import torch
import transformers as hf
from torch.nn.functional import scaled_dot_product_attention as attend

QUICK = "--quick" in sys.argv
ROWS, BEAMS, HEADS, SIZE = 4, 4, 12, 64
PROMPT, STEPS, VOCABULARY = (16, 4, 3000) if QUICK else (384, 32, 50257)
BLOCK = 128


def race(label: str, library: Callable[[], object], proposed: Callable[[], object]) -> None:
    """Time both ways in turn; print their medians and the proposed way's median speedup."""
    rounds = [
        [1e3 * timeit(way, number=1) for way in (library, proposed)]
        for _ in range(2 if QUICK else 10)
    ]
    # The first round warms up.
    old, new = (median(times) for times in zip(*rounds[1:], strict=True))
    gains = sorted(before / after for before, after in rounds[1:])
    says = (
        f"{median(gains):.2f} x ({gains[0]:.2f} to {gains[-1]:.2f})"
        if median(gains) > 1.05
        else "no gain here"
    )
    print(f"{label:34} {old:8.2f} ms, proposed {new:8.2f} ms: {says}")


def same(label: str, one: torch.Tensor, other: torch.Tensor) -> None:
    """Exit with 1 if two results differ by more than rounding."""
    gap = float((one.double() - other.double()).abs().max() / one.double().abs().max())
    print(f"{label}: differ by {gap:.0e} of the largest")
    if gap > 1e-5:
        sys.exit("more than rounding")


def prefill(each_beam: bool) -> torch.Tensor:
    """Fill a cache for all beams, per beam or per row; return each beam's next-token logits."""
    cache = hf.DynamicCache(config=model.config)
    rows = ids.repeat_interleave(BEAMS, 0) if each_beam else ids
    logits = model(input_ids=rows, cache=cache, logits_to_keep=1).logits
    if not each_beam:
        cache.batch_repeat_interleave(BEAMS)
    return logits if each_beam else logits.repeat_interleave(BEAMS, 0)


def search_as_it_is() -> torch.Tensor:
    """Compute one layer's attention during a search the way transformers does.

    Each token is appended by copying the cache; reordering beams also copies their prompts.
    """
    cache = hf.DynamicCache()
    cache.update(*(kept.repeat_interleave(BEAMS, 0) for kept in prompt), 0)
    for query, key, value, order in steps:
        read = attend(query, *cache.update(key, value, 0))
        cache.reorder_cache(order)
    return read


def search_sharing() -> torch.Tensor:
    """Compute the same attention with one prompt per row, which the row's beams share.

    A beam's own tokens are written in place.
    """
    keys, values = prompt
    own = torch.empty(2, ROWS * BEAMS, HEADS, STEPS, SIZE)
    for step, (query, key, value, order) in enumerate(steps, 1):
        own[0, :, :, step - 1 : step], own[1, :, :, step - 1 : step] = key, value
        query = query / SIZE**0.5
        together = query.view(ROWS, BEAMS, HEADS, SIZE).transpose(1, 2)
        of_prompt = (together @ keys.mT).transpose(1, 2).reshape(-1, HEADS, 1, PROMPT)
        shares = torch.cat([of_prompt, query @ own[0, :, :, :step].mT], -1).softmax(-1)
        of_row = shares[..., :PROMPT].reshape(ROWS, BEAMS, HEADS, PROMPT).transpose(1, 2) @ values
        read = (
            of_row.transpose(1, 2).reshape(-1, HEADS, 1, SIZE)
            + shares[..., PROMPT:] @ own[1, :, :, :step]
        )
        own[:, :, :, :step] = own[:, order, :, :step]
    return read


def largest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Find the indices of the k largest scores.

    Only the blocks with the k largest maxima and the rest after the last whole block are searched.
    """
    whole = scores.shape[-1] // BLOCK * BLOCK
    best = scores[:, :whole].reshape(len(scores), -1, BLOCK).amax(-1).topk(k).indices[:, :, None]
    rest = torch.arange(whole, scores.shape[-1]).expand(len(scores), -1)
    places = torch.cat([(best * BLOCK + torch.arange(BLOCK)).flatten(1), rest], -1)
    return places.gather(-1, scores.gather(-1, places).topk(k).indices)


print(
    f"transformers {hf.__version__}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
)
print(f"{ROWS} rows, {BEAMS} beams, prompts of {PROMPT} tokens, {STEPS} new ones")
torch.manual_seed(0)
ids = torch.randint(VOCABULARY, (ROWS, PROMPT))
model = hf.GPT2LMHeadModel(
    hf.GPT2Config(n_layer=2, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0)
).eval()
states = ROWS * BEAMS, HEADS, 1, SIZE
prompt = torch.randn(2, ROWS, HEADS, PROMPT, SIZE)
starts = torch.arange(ROWS).repeat_interleave(BEAMS) * BEAMS
steps = [
    (*torch.randn(3, *states), starts + torch.randint(BEAMS, (ROWS * BEAMS,))) for _ in range(STEPS)
]
scores = torch.randn(ROWS, BEAMS * VOCABULARY).log_softmax(-1)
with torch.no_grad():
    for label, library, proposed in [
        ("prompts, two layers", lambda: prefill(True), lambda: prefill(False)),
        ("attention and cache, one layer", search_as_it_is, search_sharing),
        (
            "best continuations, one step",
            lambda: scores.topk(2 * BEAMS).indices,
            lambda: largest(scores, 2 * BEAMS),
        ),
    ]:
        same(label, library(), proposed())
        race(label, library, proposed)
