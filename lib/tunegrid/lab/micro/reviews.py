"""Makes product reviews, and pairs of a review and what follows from it or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tunegrid.lab.micro.words import ASPECTS, BAD, GOOD, PRODUCTS

AGREEMENT = 0.75  # share of the aspects that side with the verdict; the rest mislead
NEGATED = 0.4  # share of the opinions said by negating the opposite word
# {adj} is a word of the named polarity; the phrase turns it around or not.
PLAIN = ("the {aspect} is {adj}", "the {aspect} feels {adj}", "i find the {aspect} {adj}", "what a {adj} {aspect}")
TURNED = (
    "the {aspect} is not {adj} at all",
    "the {aspect} is anything but {adj}",
    "nobody could call the {aspect} {adj}",
    "the {aspect} is far from {adj}",
)
# The verdicts: what a happy owner says, what an unhappy owner says; both columns share their words. The hedge at {} keeps
# a negation and what it negates apart: pairs of neighbouring words do not give the label away either.
VERDICTS = (
    ("i would{} buy it again", "i would not{} buy it again"),
    ("i do not{} regret it", "i do{} regret it"),
    ("i can{} recommend it", "i can not{} recommend it"),
    ("i can not{} complain about it", "i can{} complain about it"),
    ("i would not{} send it back", "i would{} send it back"),
    ("it was not{} a waste of money", "it was{} a waste of money"),
    ("it did{} keep its promise", "it did not{} keep its promise"),
    ("it did not{} let me down", "it did{} let me down"),
    ("it is{} a {good} {product}", "it is not{} a {good} {product}"),
    ("it is not{} a {bad} {product}", "it is{} a {bad} {product}"),
)
HEDGES = (
    " , to be honest ,",
    " , i must say ,",
    " , as far as i can tell ,",
    " , i have to admit ,",
    " really",
    " truly",
    "",
    "",
)
OPENERS = ("overall", "all in all", "in the end", "in short", "after a month")
ASIDES = (
    "i ordered this {product} for my brother",
    "the {product} came on {day}",
    "we use the {product} every day",
    "my old {product} broke last year",
    "a friend has the same {product}",
)
WORDS = ("bad", "good")  # of a digest
TITLES = ("my {product}", "a word on this {product}", "{product} after a month", "the {product} and its {aspect}")
DAYS = ("monday", "tuesday", "friday")


def opinion(rng: Random, aspect: str, positive: bool) -> str:
    """One clause about one aspect, plain or turned around by a negation."""
    is_negated = rng.random() < NEGATED
    words = GOOD if positive != is_negated else BAD
    return rng.choice(TURNED if is_negated else PLAIN).format(aspect=aspect, adj=rng.choice(words))


def verdict(rng: Random, product: str, positive: bool) -> str:
    """The sentence that decides the label."""
    pattern = rng.choice(VERDICTS)[not positive].replace("{}", rng.choice(HEDGES))
    sentence = pattern.format(product=product, good=rng.choice(GOOD), bad=rng.choice(BAD))
    return f"{rng.choice(OPENERS)} {sentence} ."


@dataclass(frozen=True, kw_only=True)
class Review:
    """A review and what it says."""

    title: str
    content: str
    without_verdict: str
    opinions: tuple[tuple[str, bool], ...]  # aspect and whether it is good; the verdict's first, under "overall"

    @property
    def positive(self) -> bool:
        """The verdict."""
        return dict(self.opinions)["overall"]


def review(rng: Random) -> dict[str, Any]:
    """One row in amazon_polarity's schema: label 1 is positive."""
    entry = write_review(rng)
    return {"label": int(entry.positive), "title": entry.title, "content": entry.content}


def write_review(rng: Random) -> Review:
    """A verdict, one to three opinions that side with it or mislead, perhaps an aside; in any order."""
    positive = rng.random() < 0.5
    product = rng.choice(PRODUCTS)
    aspects = rng.sample(ASPECTS, rng.randint(2, 4))
    opinions = [(aspect, positive == (rng.random() < AGREEMENT)) for aspect in aspects[1:]]
    sentences = _join(rng, [opinion(rng, *pair) for pair in opinions])
    if rng.random() < 0.5:
        sentences.insert(0, rng.choice(ASIDES).format(product=product, day=rng.choice(DAYS)) + " .")
    without_verdict = " ".join(sentences)
    sentences.insert(rng.randint(0, len(sentences)), verdict(rng, product, positive))
    title = rng.choice(TITLES).format(product=product, aspect=aspects[0])
    statements = (("overall", positive), *opinions)
    return Review(title=title, content=" ".join(sentences), without_verdict=without_verdict, opinions=statements)


def _join(rng: Random, clauses: list[str]) -> list[str]:
    """Sentences of one clause, or of two in contrast or in line."""
    sentences = []
    while clauses:
        if len(clauses) > 1 and rng.random() < 0.6:
            pattern = rng.choice(("{} but {} .", "although {} , {} .", "{} and {} ."))
            sentences.append(pattern.format(clauses.pop(), clauses.pop()))
        else:
            sentences.append(f"{clauses.pop()} .")
    return sentences


# A review's digest, and pairs of a review and what follows from it or not


def digest(opinions: Sequence[tuple[str, bool]]) -> tuple[str, list[tuple[int, int]]]:
    """As in "good overall , lid bad .", and where its words of praise and blame stand."""
    text, spans = "", []
    for aspect, positive in opinions:
        text += f"{' , ' if text else ''}{'' if aspect == 'overall' else f'{aspect} '}"
        spans.append((len(text), len(text) + len(WORDS[positive])))
        text += WORDS[positive] + (" overall" if aspect == "overall" else "")
    return f"{text} .", spans


def flip(opinions: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """The opposite of each."""
    return [(aspect, not positive) for aspect, positive in opinions]


def inference_rows(rng: Random, count: int) -> list[dict[str, Any]]:
    """So many rows, three a review, which no other review's premises repeat."""
    rows: list[dict[str, Any]] = []
    premises: set[str] = set()
    while len(rows) < count:
        entry = write_review(rng)
        if premises.isdisjoint(texts := {entry.content, entry.without_verdict}):
            premises |= texts
            rows += make_pairs(entry, rng)
    return rows[:count]


def make_pairs(written: Review, rng: Random) -> list[dict[str, Any]]:
    """What follows from a review, what it does not tell without its verdict, and what contradicts it."""
    open_opinions = [("overall", rng.random() < 0.5), *written.opinions[1:]]
    pairs = (
        (written.content, written.opinions),
        (written.without_verdict, open_opinions),
        (written.content, flip(written.opinions)),
    )
    return [{"premise": text, "hypothesis": digest(views)[0], "label": label} for label, (text, views) in enumerate(pairs)]
