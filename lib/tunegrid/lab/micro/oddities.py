"""What real text has and the micro-world lacks: capitals, accents, other scripts, emoji, texts that outgrow the window.

Some rows of a data set become odd. No backbone saw the like when it was pretrained: tokenizers fall back on pieces, bytes or
their unknown token, so that a library that treats these differently shows.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from tunegrid.lab.micro.words import MEN, SURNAMES, TOWNS, WOMEN

Row = dict[str, Any]
NAMES = frozenset((*WOMEN, *MEN, *SURNAMES, *TOWNS))
ODD_NAMES = ("José", "Zoë", "Łukasz", "Søren", "Nguyễn", "O'Neill", "李娜", "山田", "Иван", "ÅSE")
EXCLAMATIONS = ("👍", "😀😀 !!!", "Très bien .", "naïve , déjà vu .", "五つ星 ⭐⭐⭐ .", "WOW 🎉 .")
RAMBLE = (
    "we looked at many shops , asked all our friends , read every page that we could get , and then we came back to this one ."
)


def shouted(row: Row, rng: Random) -> Row:
    """The review in capitals."""
    return row | {"content": row["content"].upper()}


def exclaimed(row: Row, rng: Random) -> Row:
    """The review behind an exclamation."""
    return row | {"content": f"{rng.choice(EXCLAMATIONS)} {row['content']}"}


def rambling(row: Row, rng: Random) -> Row:
    """The review behind so many words that its end falls out of the window."""
    return row | {"content": f"{RAMBLE} {row['content']}"}


def capitalized(row: Row, rng: Random) -> Row:
    """Names begin with a capital letter."""
    return _rewritten(row, lambda word: word.capitalize() if word in NAMES else word)


def renamed(row: Row, rng: Random) -> Row:
    """One name of the text gives way to one that no tokenizer knows as a word."""
    text = row.get("context") or row["article"]
    names = sorted(NAMES.intersection(text.split()))
    if not names:
        return row
    old, new = rng.choice(names), rng.choice(ODD_NAMES)
    return _rewritten(row, lambda word: new if word == old else word)


def _rewritten(row: Row, change: Callable[[str], str]) -> Row:
    """The row with every word changed in all its texts; an answer's start follows."""

    def changed(text: str) -> str:
        return re.sub(r"\S+", lambda match: change(match.group()), text)

    texts = {name: changed(value) for name, value in row.items() if name not in ("id", "title") and isinstance(value, str)}
    if "answers" not in row:
        return row | texts
    starts = [len(changed(row["context"][:start])) for start in row["answers"]["answer_start"]]
    return row | texts | {"answers": {"text": [changed(text) for text in row["answers"]["text"]], "answer_start": starts}}


# Of each data set's rows, the share that each of these changes.
SHARES: Mapping[str, Sequence[tuple[float, Callable[[Row, Random], Row]]]] = {
    "amazon_polarity": ((0.08, shouted), (0.04, exclaimed), (0.04, rambling)),
    "squad": ((0.08, renamed), (0.06, capitalized)),
    "cnn_dailymail": ((0.08, renamed), (0.06, capitalized)),
}


def with_oddities(dataset: str, rows: Sequence[Row], rng: Random) -> list[Row]:
    """The rows of a data set's file; each is changed in one way at most."""
    changes: list[Callable[[Row, Random], Row]] = [change for _, change in SHARES[dataset]]
    shares = [share for share, _ in SHARES[dataset]]
    drawn = rng.choices([*changes, None], [*shares, 1 - sum(shares)], k=len(rows))
    return [change(row, rng) if change else row for change, row in zip(drawn, rows, strict=True)]
