"""Makes the text that micro backbones are pretrained on: an endless stream of `Document`s, clear of given texts.

Texts come with what people add to them: a review with a digest or a reaction, a passage with a question that somebody
answers or a teacher grades, a report with its gist. That is where a backbone learns negation, looking a fact up and copying,
so that a cell needs few updates. What a cell still has to learn is its own form: a new head over labels or spans, `<sum>` or
`summarize: ` before a summary. Untrained, or from random weights, it misses its bounds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from tunegrid.lab.micro.data import plain_tables
from tunegrid.lab.micro.passages import news, passage, questions
from tunegrid.lab.micro.reviews import WORDS, digest, flip, write_review

REACTIONS = ("i will look elsewhere .", "i want one too .")  # to an unhappy review, to a happy one


@dataclass(frozen=True, kw_only=True)
class Document:
    """Two texts that belong together; spans are of characters, (start, end)."""

    kind: str
    first: str
    second: str
    foil: str  # could stand in the second's place, but does not fit the first
    focus: tuple[tuple[int, int], ...]  # what of `second` only somebody who understood `first` can fill in
    echo: tuple[int, int] | None = None  # the same words in `first`
    others: tuple[tuple[int, int], ...] = ()  # words of `second` of the same sort as the focus
    verdict: str | None = None  # what a review comes to, one of `WORDS`


def digested_reviews(rng: Random) -> Document:
    """A review and its digest, as in "good overall , lid bad , cable good"."""
    review = write_review(rng)
    text = f"{review.title}\n{review.content}" if rng.random() < 0.7 else review.content
    (second, focus), (foil, _) = digest(review.opinions), digest(flip(review.opinions))
    verdict = WORDS[review.positive]
    return Document(kind="review", first=text, second=second, foil=foil, focus=tuple(focus), verdict=verdict)


def answered_reviews(rng: Random) -> Document:
    """A review and what a reader says to it; the pair is torn where the happy reaction follows an unhappy review."""
    review = write_review(rng)
    second, foil = REACTIONS[review.positive], REACTIONS[not review.positive]
    focus, verdict = ((0, len(second)),), WORDS[review.positive]
    return Document(kind="reaction", first=review.content, second=second, foil=foil, focus=focus, verdict=verdict)


def questioned_passages(rng: Random) -> Document:
    """A question with its answer, and the passage that holds it: `focus` is the answer there, `echo` the repetition."""
    while not (pairs := questions(rng, text := passage(rng))):
        continue
    question, fact = rng.choice(pairs)
    return Document(
        kind="passage",
        first=f"{question} {fact.value}",
        second=text.text,
        foil=passage(rng).text,
        focus=(fact.span,),
        echo=(len(question) + 1, len(question) + 1 + len(fact.value)),
        others=tuple(other.span for other in text.facts if other is not fact),
    )


def summed_up_reports(rng: Random) -> Document:
    """A report and its gist."""
    row, foil = news(rng), news(rng)["highlights"]
    gist = row["highlights"]
    return Document(kind="article", first=row["article"], second=gist, foil=foil, focus=((0, len(gist)),))


KINDS = (digested_reviews, answered_reviews, questioned_passages, summed_up_reports)


def reserved_texts() -> frozenset[str]:
    """Every review, passage and article of the fine-tuning rows, as it was before some were made odd."""
    rows = [row for table in plain_tables().values() for row in table]
    return frozenset(row.get("content") or row.get("context") or row["article"] for row in rows)


def documents(seed: int, reserved: frozenset[str], weights: Sequence[float]) -> Iterator[Document]:
    """An endless stream without any reserved text; `weights` are the shares of `KINDS`."""
    rng = Random(seed)
    while True:
        document = rng.choices(KINDS, weights)[0](rng)
        body = document.second if document.kind == "passage" else document.first.split("\n")[-1]
        if body not in reserved:
            yield document
