"""Makes product reviews, and pairs of a review and a claim that may or may not follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tunegrid.lab.micro.words import ASPECTS, BAD, GOOD, PRODUCTS

AGREEMENT = 0.75  # share of the aspects that agree with the verdict; the rest mislead
NEGATED = 0.4  # share of the opinions expressed by negating the opposite word
# Phrases that say that an aspect is {adj}, and phrases that say the opposite
PLAIN = (
    "the {aspect} is {adj}",
    "the {aspect} feels {adj}",
    "i find the {aspect} {adj}",
    "what a {adj} {aspect}",
)
NEGATIONS = (
    "the {aspect} is not {adj} at all",
    "the {aspect} is anything but {adj}",
    "nobody could call the {aspect} {adj}",
    "the {aspect} is far from {adj}",
)
# Sentences of a happy and an unhappy owner, in the same words. The hedge at {} separates a negation
# from its object, so that bigrams do not reveal the label either.
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
VERDICT_WORDS = ("bad", "good")  # used in digests
TITLES = (
    "my {product}",
    "a word on this {product}",
    "{product} after a month",
    "the {product} and its {aspect}",
)
DAYS = ("monday", "tuesday", "friday")


def opinion(rng: Random, aspect: str, positive: bool) -> str:
    """A clause with an opinion about an aspect, stated plainly or by negating the opposite."""
    is_negated = rng.random() < NEGATED
    phrase = rng.choice(NEGATIONS if is_negated else PLAIN)
    words = GOOD if positive != is_negated else BAD
    return phrase.format(aspect=aspect, adj=rng.choice(words))


def verdict(rng: Random, product: str, positive: bool) -> str:
    """The sentence that decides the label."""
    pattern = rng.choice(VERDICTS)[not positive].replace("{}", rng.choice(HEDGES))
    sentence = pattern.format(product=product, good=rng.choice(GOOD), bad=rng.choice(BAD))
    return f"{rng.choice(OPENERS)} {sentence} ."


@dataclass(frozen=True, kw_only=True)
class Review:
    """A review and its opinions."""

    title: str
    content: str
    without_verdict: str
    # (aspect, is good); the verdict comes first, as "overall"
    opinions: tuple[tuple[str, bool], ...]

    @property
    def positive(self) -> bool:
        """True if the verdict is positive."""
        return dict(self.opinions)["overall"]


def review(rng: Random) -> dict[str, Any]:
    """Make a row in amazon_polarity's schema, where label 1 is positive."""
    entry = write_review(rng)
    return {"label": int(entry.positive), "title": entry.title, "content": entry.content}


def write_review(rng: Random) -> Review:
    """Write a review: a verdict, opinions on one to three aspects, and perhaps an aside.

    Most opinions agree with the verdict, and the others mislead. The verdict's position is random.
    """
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
    return Review(
        title=title,
        content=" ".join(sentences),
        without_verdict=without_verdict,
        opinions=statements,
    )


def _join(rng: Random, clauses: list[str]) -> list[str]:
    """Make sentences of one clause, or of two joined by "but", "although" or "and"."""
    sentences = []
    while clauses:
        if len(clauses) > 1 and rng.random() < 0.6:
            pattern = rng.choice(("{} but {} .", "although {} , {} .", "{} and {} ."))
            sentences.append(pattern.format(clauses.pop(), clauses.pop()))
        else:
            sentences.append(f"{clauses.pop()} .")
    return sentences


# A review's digest, and claims about a review


def make_digest(opinions: Sequence[tuple[str, bool]]) -> tuple[str, list[tuple[int, int]]]:
    """A text such as "good overall , lid bad .", and the spans of "good" and "bad" in it."""
    text = ""
    spans = []
    for aspect, positive in opinions:
        if text:
            text += " , "
        if aspect != "overall":
            text += f"{aspect} "
        start = len(text)
        text += VERDICT_WORDS[positive]
        spans.append((start, len(text)))
        if aspect == "overall":
            text += " overall"
    return f"{text} .", spans


def flip(opinions: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Flip each opinion between positive and negative."""
    return [(aspect, not positive) for aspect, positive in opinions]


def inference_rows(rng: Random, count: int) -> list[dict[str, Any]]:
    """Rows in multi_nli's schema, three per review; no two reviews share a premise."""
    rows: list[dict[str, Any]] = []
    premises: set[str] = set()
    while len(rows) < count:
        entry = write_review(rng)
        texts = {entry.content, entry.without_verdict}
        if premises.isdisjoint(texts):
            premises |= texts
            rows += make_pairs(entry, rng)
    return rows[:count]


def make_pairs(written: Review, rng: Random) -> list[dict[str, Any]]:
    """Three pairs: entailment, neutral and contradiction; the neutral premise lacks the verdict."""
    open_opinions = [("overall", rng.random() < 0.5), *written.opinions[1:]]
    pairs = (
        (written.content, written.opinions),
        (written.without_verdict, open_opinions),
        (written.content, flip(written.opinions)),
    )
    rows = []
    for label, (text, opinions) in enumerate(pairs):
        hypothesis, _ = make_digest(opinions)
        rows.append({"premise": text, "hypothesis": hypothesis, "label": label})
    return rows
