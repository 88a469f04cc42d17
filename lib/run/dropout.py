"""Dropout's random numbers on a CPU. In: nothing. Out: torch draws its masks sooner.

torch draws a number of its Mersenne twister for each element, on one core, and much of an update's time may be that. Here NumPy
draws four elements with each number of its SFC64, and torch's generator gives the seed of each mask: torch's seed and random
state say all, as before. Dropout itself, attention's included, stays torch's; only its masks come from here.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from lib.run.kernels import replace_cpu_kernels

STEPS = 2**16  # a probability is rounded to a whole number of them


@cache
def draw_masks_sooner() -> torch.library.Library:
    """Let torch draw Bernoulli masks on this process's CPU with `bernoulli_`, from now on."""
    return replace_cpu_kernels({"bernoulli_.float": bernoulli_})  # which lives as long


def bernoulli_(mask: Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill a mask of any shape and type with zeros and ones, these with probability `p` to 1/65536; return it.

    Raises RuntimeError for what is no probability, as torch does.
    """
    if not 0 <= p <= 1:
        raise RuntimeError(f"a probability lies between 0 and 1, but p is {p}")
    if p in (0, 1):
        return mask.fill_(p)
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    drawn = np.random.SFC64(seed).random_raw(-(-mask.numel() // 4)).view(np.int16)
    numbers = torch.from_numpy(drawn)[: mask.numel()].view(mask.shape)
    return torch.lt(numbers, round(p * STEPS) - STEPS // 2, out=mask)
