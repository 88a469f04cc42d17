"""torch's `_safe_softmax` scans all scores for masked-out rows.

Softmax has already marked these rows with NaN.
"""

import sys
from collections.abc import Callable
from statistics import median
from timeit import timeit

import torch

QUICK = "--quick" in sys.argv


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


def safe_softmax(scores: torch.Tensor, dim: int) -> torch.Tensor:
    """Softmax along a dimension, with zeros where all scores are minus infinity."""
    weights = torch.softmax(scores, dim)
    # Without NaN, no row is masked out
    if weights.numel() and weights.select(dim, 0).isnan().any():
        weights.masked_fill_((scores == -torch.inf).all(dim, keepdim=True), 0)
    return weights


print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
torch.manual_seed(0)
tokens = 64 if QUICK else 384
scores = torch.randn(8, 12, tokens, tokens)
padded = scores.masked_fill(torch.arange(tokens) >= tokens - 9, -torch.inf)
masked_out = padded.index_fill(2, torch.tensor([3, 5]), -torch.inf)
unknown = scores.index_fill(2, torch.tensor([3]), torch.nan)
for label, given in {
    "padded": padded,
    "with rows masked out": masked_out,
    "with NaN": unknown,
}.items():
    if not torch.equal(
        torch._safe_softmax(given, -1).nan_to_num(7), safe_softmax(given, -1).nan_to_num(7)
    ):
        sys.exit(f"{label}: the results differ")
    race(
        f"scores {label}",
        lambda given=given: torch._safe_softmax(given, -1),
        lambda given=given: safe_softmax(given, -1),
    )
