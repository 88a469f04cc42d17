"""The search for a text as it is defined: one row, no cache, none of a library's code.

It is made to be held against a text that was found: wherever another token is better by no more than the gap, the text has
the benefit of the doubt. What it defines is transformers' search with `early_stopping=False`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunegrid.grid.recipes import Generation

Scores = Callable[[Sequence[Sequence[int]]], Tensor]  # of the next token (N, V), in nats, of texts of one length


@dataclass(frozen=True)
class Beam:
    """A text, perhaps not at its end yet, and the sum of its tokens' scores."""

    score: float
    ids: tuple[int, ...]

    def normalized(self, penalty: float) -> float:
        """What finished texts are compared by."""
        return self.score / math.pow(len(self.ids), penalty)


def shortfall(text: Sequence[int], scores: Scores, search: Generation, end: int) -> float:
    """How many nats a search would have to be off, at most in one of its decisions, to find this text; 0 where it does find it.

    Args:
        text: with its end token, or as long as the search lets one be.
        scores: of next tokens, where those that the search forbids are minus infinity.
        search: how many beams, how long, and at which penalty; a search without beams knows no penalty.
        end: the token that ends a text.
    """
    penalty, most = search.length_penalty if search.num_beams > 1 else 0.0, search.num_beams
    running, finished, gaps, found = [Beam(0.0, ())], list[Beam](), [0.0], None
    for length in range(1, search.max_new_tokens + 1):
        own = tuple(text[:length]) if found is None else ()
        candidates, follow = _continued(running, scores([beam.ids for beam in running]), 2 * most, own)
        over = [beam for beam in candidates[:most] if _is_over(beam, search, end)]
        running = [beam for beam in candidates if not _is_over(beam, search, end)][:most]
        if follow and _is_over(follow, search, end):
            found = follow
            gaps += _let_in(follow, over, candidates[most - 1], most)
        elif follow:
            gaps += _let_in(follow, running, running[-1], most)
        finished = sorted([*finished, *over], key=lambda beam: -beam.normalized(penalty))[:most]
        best, worst = running[0].normalized(penalty) if running else -math.inf, finished[-1] if len(finished) == most else None
        if worst is None or (most > 1 and best > worst.normalized(penalty)):  # as transformers guesses it: by the length so far
            continue
        if found:
            break
        gaps.append((worst.normalized(penalty) - best) * math.pow(length, penalty))  # the search ends, and the text has not
    if found is None:
        return math.inf
    if most == 1:
        return max(gaps)
    return max(*gaps, (finished[0].normalized(penalty) - found.normalized(penalty)) * math.pow(len(text), penalty))


def _let_in(beam: Beam, kept: list[Beam], weakest: Beam, most: int) -> list[float]:
    """By how much a beam misses its place among those that are kept; it takes that of the last one then."""
    if beam in kept:
        return []
    kept[:] = [*kept[: most - 1], beam]
    return [weakest.score - beam.score]


def _continued(running: Sequence[Beam], scores: Tensor, count: int, own: tuple[int, ...]) -> tuple[list[Beam], Beam | None]:
    """So many continuations of the running texts, best first, and the one that is `own`, however good it is."""
    totals = scores + torch.tensor([beam.score for beam in running], device=scores.device).unsqueeze(1)
    best, indices = totals.flatten().topk(min(count, totals.numel()))
    pairs = [(score, *divmod(index, totals.shape[1])) for score, index in zip(best.tolist(), indices.tolist(), strict=True)]
    candidates = [Beam(score, (*running[beam].ids, token)) for score, beam, token in pairs]
    parent = next((i for i, beam in enumerate(running) if own and beam.ids == own[:-1]), None)
    return candidates, None if parent is None else Beam(float(totals[parent, own[-1]]), own)


def _is_over(beam: Beam, search: Generation, end: int) -> bool:
    return beam.ids[-1] == end or len(beam.ids) == search.max_new_tokens


def repeating(tokens: Sequence[int], size: int) -> set[int]:
    """The tokens that would make an n-gram of this size stand twice; none for size 0."""
    if not size or len(tokens) < size:
        return set()
    tail = tuple(tokens[len(tokens) - size + 1 :])
    starts = range(len(tokens) - size + 1)
    return {tokens[i + size - 1] for i in starts if tuple(tokens[i : i + size - 1]) == tail}
