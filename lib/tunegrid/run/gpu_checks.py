"""The logic of `pytest -m gpu`: compares figures that were measured twice, and says what disagrees.

An empty list says that a check passed. No GPU is needed here.
"""

import math
from collections.abc import Mapping, Sequence

from tunegrid.run.device import GIB, LEFT_GIB

CLOCKS = 0.05  # the share by which CUDA events and the wall clock may differ over a run of updates
SAME_LOSS = 1e-2  # relative: micro-batches of other sizes round otherwise, in bf16 by up to a percent


def left_behind(before_bytes: int, after_bytes: int) -> list[str]:
    """A cell that is gone leaves no more than libraries' workspaces."""
    left = (after_bytes - before_bytes) / GIB
    return [f"a cell left {left:.2f} GiB on the device"] if left > LEFT_GIB else []


def clocks_differ(event_seconds: float, wall_seconds: float) -> list[str]:
    """Updates timed by CUDA events take as long as by the wall clock."""
    if math.isclose(event_seconds, wall_seconds, rel_tol=CLOCKS):
        return []
    return [f"CUDA events say {event_seconds:.3f} s, the wall clock {wall_seconds:.3f} s"]


def ladder_broken(fallbacks: Sequence[str], micro_batch: int, recipe_batch: int, losses: tuple[float, float]) -> list[str]:
    """Where memory ran out, smaller micro-batches made the same update; `losses` are of the same rows, whole and in pieces."""
    sentences = []
    if micro_batch >= recipe_batch or not any(sentence.startswith("out of memory at update") for sentence in fallbacks):
        sentences.append(f"memory ran out, but the micro-batch is {micro_batch} of {recipe_batch}")
    if not math.isclose(*losses, rel_tol=SAME_LOSS):
        sentences.append(f"the loss is {losses[1]:.4f} in smaller micro-batches, {losses[0]:.4f} in one")
    return sentences


def skips_miscounted(skipped: Sequence[int], halvings: float, updates: int, scheduled: int) -> list[str]:
    """Each update that fp16 lost halved the scale once, is counted once, and did not advance the schedule."""
    sentences = []
    if len(skipped) != halvings:
        sentences.append(f"{len(skipped)} updates are counted as lost, the scale was halved {halvings:g} times")
    if scheduled != updates - len(skipped):
        sentences.append(f"the schedule made {scheduled} steps in {updates} updates, {len(skipped)} of them lost")
    return sentences if halvings else [*sentences, "no update was lost, so nothing was checked"]


def not_smaller(bytes_by_name: Mapping[str, int]) -> list[str]:
    """Each takes more memory than the one before it."""
    pairs = zip(bytes_by_name.items(), list(bytes_by_name.items())[1:], strict=False)
    return [f"{one} takes {a:,} bytes, {other} {b:,}" for (one, a), (other, b) in pairs if a >= b]


def not_shared(own: bool | None, other: bool | None) -> list[str]:
    """Of two processes on one GPU the second one, and only it, knows that it came second."""
    sentences = ["a process does not see that another one holds its GPU"] if other is not True else []
    return sentences + (["a process that came first takes itself for a guest"] if own is not False else [])
