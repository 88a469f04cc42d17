"""transformers computes "gelu_new" in eight operations; torch does it in one kernel."""

import sys
from collections.abc import Callable
from statistics import median
from timeit import timeit

import torch
import transformers as hf
from torch.nn.functional import gelu
from transformers.activations import NewGELUActivation

QUICK = "--quick" in sys.argv
ALIKE = 1e-5  # for fp32: far above rounding, far below the gap to another formula (erf: 5e-4)


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


def both_passes(
    activation: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor
) -> list[torch.Tensor]:
    """The activation's values, and the gradients of their sum."""
    leaf = given.detach().requires_grad_()
    values = activation(leaf)
    values.sum().backward()
    return [values.detach(), leaf.grad]


def proposed(given: torch.Tensor) -> torch.Tensor:
    """The activation that transformers calls "gelu_pytorch_tanh"."""
    return gelu(given, approximate="tanh")


library = NewGELUActivation()
print(
    f"transformers {hf.__version__}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
)
torch.manual_seed(0)
points = torch.linspace(-10, 10, 20_001)
exact = both_passes(proposed, points.double())
for name, activation in {"library": library, "proposed": proposed}.items():
    errors = [
        float((one - true).abs().max())
        for one, true in zip(both_passes(activation, points), exact, strict=True)
    ]
    print(f"{name}: values differ from fp64 by up to {errors[0]:.1e}, gradients by {errors[1]:.1e}")
    if max(errors) > ALIKE:
        sys.exit(f"{name}: more than rounding")
hidden = torch.randn(8, 32 if QUICK else 256, 3072)
race("values", lambda: library(hidden), lambda: proposed(hidden))
race(
    "values and gradients",
    lambda: both_passes(library, hidden),
    lambda: both_passes(proposed, hidden),
)
