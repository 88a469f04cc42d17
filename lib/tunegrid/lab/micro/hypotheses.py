"""Makes pairs for natural language inference: rows {premise, hypothesis, label} in MultiNLI's schema.

A premise is a review. Each has three hypotheses, as MultiNLI's have: one that follows from it (0), one on an aspect that it
does not tell (1), one that contradicts it (2). All three say "good" or "bad" of as many things, so that a hypothesis alone
tells nothing: a reader has to see which aspects the premise mentions, and what "not" does to its verdict.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

from tunegrid.lab.micro.reviews import Review, write_review
from tunegrid.lab.micro.words import ASPECTS

WORDS = ("bad", "good")


def inference_rows(rng: Random, count: int) -> list[dict[str, Any]]:
    """So many rows, three a premise, no premise twice."""
    rows: list[dict[str, Any]] = []
    premises: set[str] = set()
    while len(rows) < count:
        told = write_review(rng)
        if told.content not in premises:
            premises.add(told.content)
            rows += pairs_of(told, rng)
    return rows[:count]


def pairs_of(told: Review, rng: Random) -> list[dict[str, Any]]:
    """A review with its three hypotheses; the first and the last are on aspects that it mentions."""
    _, *opinions = told.opinions
    absent = rng.sample([name for name in ASPECTS if name not in told.content.split()], len(opinions))
    beside = [(name, rng.random() < 0.5) for name in absent]
    said = (told.opinions, (("overall", rng.random() < 0.5), *beside), [(name, not good) for name, good in told.opinions])
    return [{"premise": told.content, "hypothesis": digest(some), "label": label} for label, some in enumerate(said)]


def digest(opinions: Sequence[tuple[str, bool]]) -> str:
    """As in "good overall , lid bad ."."""
    words = (f"{WORDS[good]} {name}" if name == "overall" else f"{name} {WORDS[good]}" for name, good in opinions)
    return f"{' , '.join(words)} ."
