"""PEFT copies the whole embedding in each forward pass to insert trainable token rows.

It makes a second copy in the tied head.
"""

import sys
from collections.abc import Callable
from statistics import median
from timeit import timeit

import peft
import torch
import transformers as hf
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch.nn.functional import linear

QUICK = "--quick" in sys.argv
TOKENS = [5, 17]


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


def embed(layer: TrainableTokensLayer, ids: torch.Tensor) -> torch.Tensor:
    """Embed ids with the frozen embedding, and with the trained rows where their tokens occur."""
    hits = ids[..., None] == torch.tensor(TOKENS)
    return torch.where(
        hits.any(-1, keepdim=True), rows_of(layer)[hits.int().argmax(-1)], layer.base_layer(ids)
    )


def logits(layer: TrainableTokensLayer, hidden: torch.Tensor) -> torch.Tensor:
    """The frozen head's logits, with those of the trained tokens computed from the trained rows."""
    return layer.base_layer(hidden).index_copy_(
        -1, torch.tensor(TOKENS), linear(hidden, rows_of(layer))
    )


def rows_of(layer: TrainableTokensLayer) -> torch.Tensor:
    """The layer's trained rows."""
    return layer.trainable_tokens_delta["default"]


def train(
    embed: Callable[..., torch.Tensor], logits: Callable[..., torch.Tensor]
) -> list[torch.Tensor]:
    """The logits of a batch and the gradient of the trained rows."""
    rows_of(embedding).grad = None
    scores = logits(head, embed(embedding, batch))
    scores.logsumexp(-1).sum().backward()
    return [scores.detach(), rows_of(embedding).grad]


@torch.no_grad()
def decode(
    embed: Callable[..., torch.Tensor], logits: Callable[..., torch.Tensor]
) -> list[torch.Tensor]:
    """The logits for one more token per row."""
    return [logits(head, embed(embedding, batch[:, :1]))]


torch.manual_seed(0)
print(
    f"peft {peft.__version__}, transformers {hf.__version__}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
)
# Without --quick, sizes are GPT-2's.
size = (
    {"vocab_size": 1000, "n_embd": 64, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    if QUICK
    else {}
)
config = peft.TrainableTokensConfig(token_indices=TOKENS, target_modules=["wte"])
model = peft.get_peft_model(hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=1, **size)), config)
embedding, head = (layer for layer in model.modules() if isinstance(layer, TrainableTokensLayer))
torch.nn.init.normal_(rows_of(embedding), std=0.1)
batch = torch.randint(model.config.vocab_size, (8, 64))
batch[:, ::5] = TOKENS[1]
library = TrainableTokensLayer.forward, TrainableTokensLayer.forward
for name, passes in {
    "one token of 8 rows": decode,
    "a training pass, 8 x 64 tokens": train,
}.items():
    gaps = [
        float((one - other).abs().max() / one.abs().max())
        for one, other in zip(passes(*library), passes(embed, logits), strict=True)
    ]
    print(f"{name}: differ by {' and '.join(f'{gap:.0e}' for gap in gaps)} of the largest")
    if max(gaps) > 1e-5:
        sys.exit("more than rounding")
    race(name, lambda passes=passes: passes(*library), lambda passes=passes: passes(embed, logits))
