"""Builds the micro data, `fixtures/data/<data set>/<split>.jsonl`, from the seeds below."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from random import Random
from typing import Any

from tunegrid import ROOT
from tunegrid.lab.micro.passages import news, squad_rows
from tunegrid.lab.micro.reviews import inference_rows, review
from tunegrid.lab.micro.words import MEN, SURNAMES, TOWNS, WOMEN

MicroRow = dict[str, Any]
NAMES = frozenset((*WOMEN, *MEN, *SURNAMES, *TOWNS))
ODD_NAMES = ("José", "Zoë", "Łukasz", "Søren", "Nguyễn", "O'Neill", "李娜", "山田", "Иван", "ÅSE")
EXCLAMATIONS = ("👍", "😀😀 !!!", "Très bien .", "naïve , déjà vu .", "五つ星 ⭐⭐⭐ .", "WOW 🎉 .")
RAMBLE = (
    "we looked at many shops , asked all our friends , read every page that we could get , "
    "and then we came back to this one ."
)


def keep(row: MicroRow, rng: Random) -> MicroRow:
    """Return the row unchanged."""
    return row


def shout(row: MicroRow, rng: Random) -> MicroRow:
    """Put the review in capitals."""
    return row | {"content": row["content"].upper()}


def exclaim(row: MicroRow, rng: Random) -> MicroRow:
    """Insert an exclamation before the review."""
    return row | {"content": f"{rng.choice(EXCLAMATIONS)} {row['content']}"}


def ramble(row: MicroRow, rng: Random) -> MicroRow:
    """Prepend a text so long that the review is truncated."""
    return row | {"content": f"{RAMBLE} {row['content']}"}


def capitalize_names(row: MicroRow, rng: Random) -> MicroRow:
    """Capitalize the names in all texts."""
    return _rewrite(row, lambda word: word.capitalize() if word in NAMES else word)


def rename(row: MicroRow, rng: Random) -> MicroRow:
    """Replace one name in all texts with a name that no tokenizer has as a whole word."""
    text = row.get("context") or row["article"]
    names = sorted(NAMES.intersection(text.split()))
    if not names:
        return row
    old = rng.choice(names)
    new = rng.choice(ODD_NAMES)
    return _rewrite(row, lambda word: new if word == old else word)


def _rewrite(row: MicroRow, change: Callable[[str], str]) -> MicroRow:
    """Apply `change` to every word of the row's texts, and adjust the starts of answers."""

    def rewrite(text: str) -> str:
        return re.sub(r"\S+", lambda match: change(match.group()), text)

    changed = dict(row)
    for name, value in row.items():
        if name not in ("id", "title") and isinstance(value, str):
            changed[name] = rewrite(value)
    if "answers" in row:
        answers = row["answers"]
        starts = [len(rewrite(row["context"][:start])) for start in answers["answer_start"]]
        texts = [rewrite(text) for text in answers["text"]]
        changed["answers"] = {"text": texts, "answer_start": starts}
    return changed


# The share of a data set's rows that each change alters
SHARES: Mapping[str, Sequence[tuple[float, Callable[[MicroRow, Random], MicroRow]]]] = {
    "amazon_polarity": ((0.08, shout), (0.04, exclaim), (0.04, ramble)),
    "squad": ((0.08, rename), (0.06, capitalize_names)),
    "cnn_dailymail": ((0.08, rename), (0.06, capitalize_names)),
}


def add_oddities(dataset: str, rows: Sequence[MicroRow], rng: Random) -> list[MicroRow]:
    """Change some rows of a data set's file, each in one way."""
    shares, changes = zip(*SHARES[dataset], strict=True)
    picks = rng.choices([*changes, keep], [*shares, 1 - sum(shares)], k=len(rows))
    return [change(row, rng) for change, row in zip(picks, rows, strict=True)]


DATA = ROOT / "fixtures" / "data"
# Rows per split, and the seed of each file. Reviews are one pool, which the task splits 70-15-15
# and which leaves 768 for testing.
REVIEWS = {"train": (5120, 11)}
PASSAGES = {"train": (2304, 21), "validation": (768, 22)}
ARTICLES = {"train": (1600, 31), "validation": (96, 32), "test": (192, 33)}
# Rows of the additional tasks, cut from one pool. Pretraining does not exclude their texts.
PAIRS = {"train": 1500, "validation_matched": 768}
PAIRS_SEED = 41
# Reviews that happen to be in a backbone's pretraining text
PRETRAINED_ON = (
    "the delivery is terrible . all in all it did let me down .",
    "overall it did not , i have to admit , let me down . the lid feels reliable .",
)


def unique(make: Callable[[Random], MicroRow], seed: int, key: str, count: int) -> list[MicroRow]:
    """Make `count` rows with distinct values of `key`, none of which is in PRETRAINED_ON."""
    rng = Random(seed)
    rows = dict[str, MicroRow]()
    while len(rows) < count:
        row = make(rng)
        if row[key] not in PRETRAINED_ON:
            rows.setdefault(row[key], row)
    return list(rows.values())


def plain_tables() -> dict[str, list[MicroRow]]:
    """The rows of all files except multi_nli's, by path below `fixtures/data`, without oddities."""
    tables = {}
    for split, (count, seed) in REVIEWS.items():
        tables[f"amazon_polarity/{split}"] = unique(review, seed, "content", count)
    for split, (count, seed) in PASSAGES.items():
        tables[f"squad/{split}"] = squad_rows(Random(seed), count, split)
    for split, (count, seed) in ARTICLES.items():
        rows = unique(news, seed, "article", count)
        for number, row in enumerate(rows):
            row["id"] = f"{split}-{number:05d}"
        tables[f"cnn_dailymail/{split}"] = rows
    return tables


def make_tables() -> dict[str, list[MicroRow]]:
    """The rows of all files, by path below `fixtures/data` without suffix."""
    odd_tables = {}
    for path, rows in plain_tables().items():
        odd_tables[path] = add_oddities(path.split("/")[0], rows, Random(path))
    pairs = iter(inference_rows(Random(PAIRS_SEED), sum(PAIRS.values())))
    for split, count in PAIRS.items():
        odd_tables[f"multi_nli/{split}"] = list(islice(pairs, count))
    return odd_tables


def jsonl(rows: list[MicroRow]) -> str:
    """Format rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
