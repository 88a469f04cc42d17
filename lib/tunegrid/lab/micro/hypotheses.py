"""Makes pairs for natural language inference: rows {premise, hypothesis, label} in MultiNLI's schema.

A premise is a review, a hypothesis a digest of it, as in "good overall , lid bad ." Of each review there are three pairs: the
digest follows (0), it contradicts every opinion (2), or the premise lacks the verdict that it states (1). Counting words finds
what is not told, but never what contradicts: a reader has to see what "not" does to an opinion.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

from tunegrid.lab.micro.reviews import Review, write_review

WORDS = ("bad", "good")


def inference_rows(rng: Random, count: int) -> list[dict[str, Any]]:
    """So many rows, three a review, which no other review's premises repeat."""
    rows: list[dict[str, Any]] = []
    premises: set[str] = set()
    while len(rows) < count:
        told = write_review(rng)
        if premises.isdisjoint(own := {told.content, told.without_verdict}):
            premises |= own
            rows += pairs_of(told, rng)
    return rows[:count]


def pairs_of(told: Review, rng: Random) -> list[dict[str, Any]]:
    """What follows from a review, what it does not tell without its verdict, and what contradicts it."""
    verdict, *rest = told.opinions
    untold = [("overall", rng.random() < 0.5), *rest]
    flipped = [(name, not good) for name, good in told.opinions]
    said = ((told.content, [verdict, *rest]), (told.without_verdict, untold), (told.content, flipped))
    return [{"premise": text, "hypothesis": digest(some), "label": label} for label, (text, some) in enumerate(said)]


def digest(opinions: Sequence[tuple[str, bool]]) -> str:
    """As in "good overall , lid bad ."."""
    words = (f"{WORDS[good]} {name}" if name == "overall" else f"{name} {WORDS[good]}" for name, good in opinions)
    return f"{' , '.join(words)} ."
