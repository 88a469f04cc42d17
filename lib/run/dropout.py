"""Dropout's random numbers on a CPU. In: nothing. Out: torch draws its masks sooner.

torch draws a number of its Mersenne twister for each element, on one core, and much of an update's time may be that. Here NumPy
draws eight elements with each number of its SFC64, and torch's generator gives the seed of each mask: torch's seed and random
state say all, as before. Dropout itself, attention's included, stays torch's; only its masks come from here.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lib.run.kernels import replace_cpu_kernels

LEVELS = 256  # of a byte


@cache
def draw_masks_sooner() -> torch.library.Library:
    """Let torch draw Bernoulli masks on this process's CPU with `bernoulli_`, from now on."""
    return replace_cpu_kernels({"bernoulli_.float": bernoulli_})  # which lives as long


def bernoulli_(mask: Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill a mask of any shape and type with zeros and ones, each one with probability `p`; return it.

    Each element has a random byte, and is zero for the lowest of its 256 levels, of which there are as many as 1 - p allows.
    What is missing to 1 - p comes of hits: a Poisson number of them fall on places at random. Then the hits of one place are
    a Poisson number, too, independent of other places, and there are none with a probability of exp(-mean).

    Raises RuntimeError for what is no probability, as torch does.
    """
    if not 0 <= p <= 1:
        raise RuntimeError(f"a probability lies between 0 and 1, but p is {p}")
    if p in (0, 1) or not mask.numel():
        return mask.fill_(p)
    source = np.random.SFC64(int(torch.randint(2**63 - 1, (), generator=generator)))
    count, zeros = mask.numel(), int((1 - p) * LEVELS)
    drawn = source.random_raw(-(-count // 8)).view(np.uint8)[:count]
    if not zeros:  # fewer than a byte can say: hits alone
        drawn.fill(1)
    mean = max(0.0, math.log((1 - zeros / LEVELS) / p))
    rng = np.random.Generator(source)
    drawn[rng.integers(count, size=rng.poisson(count * mean))] = 0
    return torch.ge(torch.from_numpy(drawn).view(mask.shape), max(1, zeros), out=mask)
