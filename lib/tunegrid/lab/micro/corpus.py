"""Generates the pretraining text of micro backbones: an endless stream of `Document`s.

Each document pairs a text with what people write about it: a review with a digest or a reaction, a
passage with a question and its answer, a report with its gist. From these pairs a backbone learns
negation, looking up facts and copying, so a cell needs few updates. A cell still has to learn its
own format: a new head over labels or spans, or `<sum>` or `summarize: ` before a summary. Without
training, or from random weights, it misses its bounds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random

from tunegrid.lab.micro.data import plain_tables
from tunegrid.lab.micro.passages import news, passage, questions
from tunegrid.lab.micro.reviews import VERDICT_WORDS, flip, make_digest, write_review

# to an unhappy review, to a happy review
REACTIONS = ("i will look elsewhere .", "i want one too .")


@dataclass(frozen=True, kw_only=True)
class Document:
    """Two texts that belong together; spans are (start, end) in characters."""

    kind: str
    first: str
    second: str
    foil: str  # could replace `second`, but does not fit `first`
    focus: tuple[tuple[int, int], ...]  # words of `second` that follow only from `first`
    echo: tuple[int, int] | None = None  # the same words in `first`
    others: tuple[tuple[int, int], ...] = ()  # words of `second` of the same sort as the focus
    verdict: str | None = None  # of a review: one of `VERDICT_WORDS`


def digested_reviews(rng: Random) -> Document:
    """A review and its digest, such as "good overall , lid bad , cable good"."""
    review = write_review(rng)
    text = review.content
    if rng.random() < 0.7:
        text = f"{review.title}\n{review.content}"
    second, focus = make_digest(review.opinions)
    foil, _ = make_digest(flip(review.opinions))
    return Document(
        kind="review",
        first=text,
        second=second,
        foil=foil,
        focus=tuple(focus),
        verdict=VERDICT_WORDS[review.positive],
    )


def answered_reviews(rng: Random) -> Document:
    """A review and a reader's reaction to its verdict; the other reaction is the foil."""
    review = write_review(rng)
    second = REACTIONS[review.positive]
    return Document(
        kind="reaction",
        first=review.content,
        second=second,
        foil=REACTIONS[not review.positive],
        focus=((0, len(second)),),
        verdict=VERDICT_WORDS[review.positive],
    )


def questioned_passages(rng: Random) -> Document:
    """A question with its answer, and the passage; `focus` is the answer's span in the passage."""
    while True:
        text = passage(rng)
        pairs = questions(rng, text)
        if pairs:
            break
    question, fact = rng.choice(pairs)
    start = len(question) + 1
    return Document(
        kind="passage",
        first=f"{question} {fact.value}",
        second=text.text,
        foil=passage(rng).text,
        focus=(fact.span,),
        echo=(start, start + len(fact.value)),
        others=tuple(other.span for other in text.facts if other is not fact),
    )


def summed_up_reports(rng: Random) -> Document:
    """A report and its gist."""
    row = news(rng)
    gist = row["highlights"]
    return Document(
        kind="article",
        first=row["article"],
        second=gist,
        foil=news(rng)["highlights"],
        focus=((0, len(gist)),),
    )


DOCUMENT_KINDS = (digested_reviews, answered_reviews, questioned_passages, summed_up_reports)


def reserved_texts() -> frozenset[str]:
    """The reviews, passages and articles of `plain_tables`, which pretraining must not see."""
    rows = chain.from_iterable(plain_tables().values())
    return frozenset(row.get("content") or row.get("context") or row["article"] for row in rows)


def documents(seed: int, reserved: frozenset[str], weights: Sequence[float]) -> Iterator[Document]:
    """Yield documents endlessly, without reserved texts; `weights` are shares of DOCUMENT_KINDS."""
    rng = Random(seed)
    while True:
        document = rng.choices(DOCUMENT_KINDS, weights)[0](rng)
        body = document.first.split("\n")[-1]  # a review without its title
        if document.kind == "passage":
            body = document.second
        if body not in reserved:
            yield document
