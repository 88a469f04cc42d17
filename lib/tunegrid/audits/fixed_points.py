"""Fixed predictions with scores worked out by hand, against which an audit checks the metrics.

ROUGE (Lin 2004, as `rouge_score` documents it) lowercases the text and turns every character except
a-z and 0-9 into a space. Words of more than three letters are stemmed by Porter's algorithm. F is
the harmonic mean of the two texts' shares of matching n-grams (for ROUGE-L, of words in the longest
common subsequence). SQuAD v1.1 also lowercases, and drops punctuation and the words a, an and the.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from tunegrid.grid.tasks import Problem
from tunegrid.run.metrics import (
    classification_scores,
    rouge_examples,
    sentence_lines,
    squad_examples,
)

POINTS_APART = 1e-3  # tolerance in points


class FixedPair(NamedTuple):
    """A reference, an answer and its points: ROUGE-1, -2, -L and -Lsum, or exact match and F1."""

    reference: str
    answer: str
    points: tuple[float, ...]


THIRDS = 200 / 3
ROUGE_PAIRS = (
    # the connect dog were jump, the connect dog was jump: 4 of 5 words, 2 of 4 pairs
    FixedPair("The connected dogs were jumping", "the connection dog was jumped", (80, 50, 80, 80)),
    # intern trade report, interest trade report: stems that begin alike are still different words
    FixedPair("internal trade report", "interest trading reports", (THIRDS, 50, THIRDS, THIRDS)),
    # he see bus, he see buse: words of three letters are not stemmed
    FixedPair("he sees bus", "he see buses", (THIRDS, 50, THIRDS, THIRDS)),
    # u s gdp grew 3 5 in 2023, us gdp grew 3 5 percent in 2024: 5 of 8 words, 3 of 7 pairs
    FixedPair(
        "U.S. GDP grew 3.5% in 2023", "us gdp grew 3.5 percent in 2024", (62.5, 300 / 7, 62.5, 62.5)
    ),
    # caf m ller, cafe muller: non-ASCII letters become spaces, not unaccented letters
    FixedPair("Café Müller", "Cafe Muller", (0, 0, 0, 0)),
    FixedPair("東京 2020", "大阪 2020", (100, 0, 100, 100)),  # one shared word, no shared pair
    # The same sentences in reverse order: 4 of 5 pairs, a common subsequence of 3 of 6 words, and
    # everything when compared line by line.
    FixedPair(
        "Fire hits bridge.\nNobody was hurt.",
        "Nobody was hurt. Fire hits bridge.",
        (100, 80, 50, 100),
    ),
    # A word counts as often as it occurs in both: 2 of 4 and 2 of 3; of pairs 1 of 3 and 1 of 2
    FixedPair("the the cat", "the cat cat cat", (400 / 7, 40, 400 / 7, 400 / 7)),
    FixedPair("anna reed", "", (0, 0, 0, 0)),
)
SQUAD_PAIRS = (
    FixedPair("the Old Bridge!", "An old  bridge", (100, 100)),
    FixedPair("a theatre in the north", "theatre north", (0, 80)),  # 2 words match, of 3 and of 2
    FixedPair("1,000 men", "1000", (0, THIRDS)),  # 1 word matches, of 2 and of 1
    # A word counts as often as it occurs in both: 2 of 3 and 2 of 3
    FixedPair("red red car", "red car car", (0, THIRDS)),
    FixedPair("well-known", "well known", (0, 0)),
    FixedPair("Étienne", "etienne", (0, 0)),  # accents count
    FixedPair("“yes”", "yes", (0, 0)),  # non-ASCII quotes count as letters
    FixedPair("apple", "anapple", (0, 0)),
    FixedPair("anna", "", (0, 0)),
)
# 2 of 3 rows of class 0 are found, 1 of 2 rows of class 1, and the only row of class 2. Classes 1
# and 2 are each predicted twice, once wrongly.
CLASSES = ([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2])
CLASS_POINTS = {
    "accuracy": THIRDS,
    "precision_0": 100.0,
    "recall_0": THIRDS,
    "f1_0": 80.0,
    "precision_1": 50.0,
    "recall_1": 50.0,
    "f1_1": 50.0,
    "precision_2": 50.0,
    "recall_2": 100.0,
    "f1_2": THIRDS,
    "f1_macro": (80 + 50 + THIRDS) / 3,
}


def wrong_points(problem: Problem) -> Iterator[str]:
    """Yields a sentence for each fixed prediction's score that differs from the expected one."""
    if problem is Problem.CLASSIFY:
        scores = classification_scores(*CLASSES, 3)
        for name, expected in CLASS_POINTS.items():
            if not math.isclose(scores[name], expected, abs_tol=POINTS_APART):
                yield f"{name} of fixed predictions is {scores[name]:.2f}, not {expected:.2f}"
        return
    if problem is Problem.EXTRACT:
        pairs = SQUAD_PAIRS
        truths = [[pair.reference] for pair in pairs]
        points = squad_examples(truths, [pair.answer for pair in pairs])
    else:
        pairs = ROUGE_PAIRS
        references = [pair.reference for pair in pairs]
        points = rouge_examples(references, [sentence_lines(pair.answer) for pair in pairs])
    for i, name in enumerate(points):
        for value, pair in zip(points[name], pairs, strict=True):
            if not math.isclose(value, pair.points[i], abs_tol=POINTS_APART):
                answer = f"{name} of {pair.answer!r} for {pair.reference!r}"
                yield f"{answer} is {value:.2f}, not {pair.points[i]:.2f}"
