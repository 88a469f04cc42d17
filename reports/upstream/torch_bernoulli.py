"""On a CPU, torch draws a dropout mask one element at a time, on one core.

Eight elements can share one random number.
"""

import math
import sys
from collections.abc import Callable
from statistics import median
from timeit import timeit

import numpy as np
import torch

QUICK = "--quick" in sys.argv
LEVELS = 256  # values of a byte


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


def bernoulli_(mask: torch.Tensor, p: float) -> torch.Tensor:
    """Set each element of a mask to 1 with a probability of exactly `p`, 0 < p < 1, or else to 0.

    Each element draws one random byte. The lowest floor(256 (1 - p)) levels of 256 become zeros.
    A Poisson number of hits at random positions makes the remaining zeros: each position escapes
    all hits with probability exp(-mean), where mean is the expected number of hits per position.
    """
    # Torch's seed still determines every draw
    source = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
    count, zeros = mask.numel(), int((1 - p) * LEVELS)
    drawn = source.random_raw(-(-count // 8)).view(np.uint8)[:count]
    if not zeros:
        drawn.fill(1)
    hits, rng = math.log((1 - zeros / LEVELS) / p), np.random.Generator(source)
    drawn[rng.integers(count, size=rng.poisson(count * max(0.0, hits)))] = 0
    return torch.ge(torch.from_numpy(drawn).view(mask.shape), max(1, zeros), out=mask)


print(f"torch {torch.__version__}, numpy {np.__version__}, {torch.get_num_threads()} thread(s)")
torch.manual_seed(0)
mask = torch.empty(2 if QUICK else 8, 12, 256, 256)
for p in (0.1, 0.5, 0.9, 0.999):
    drawn = bernoulli_(mask, p).double()
    pairs = drawn[..., ::2] * drawn[..., 1::2]
    gaps = [
        (float(ones.mean()) - q) / math.sqrt(q * (1 - q) / ones.numel())
        for ones, q in ((drawn, p), (pairs, p * p))
    ]
    print(
        f"p = {p}: ones are {gaps[0]:+.1f} standard deviations from p, neighbours of ones {gaps[1]:+.1f} from p squared"
    )
    if max(map(abs, gaps)) > 5:
        sys.exit("the share of ones is not p")
race(
    f"mask of {tuple(mask.shape)}, p = 0.9",
    lambda: mask.bernoulli_(0.9),
    lambda: bernoulli_(mask, 0.9),
)
