"""Makes the micro data of `fixtures/data/<data set>/<split>.jsonl` from the seeds below; some rows are made odd."""

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

Row = dict[str, Any]
NAMES = frozenset((*WOMEN, *MEN, *SURNAMES, *TOWNS))
ODD_NAMES = ("José", "Zoë", "Łukasz", "Søren", "Nguyễn", "O'Neill", "李娜", "山田", "Иван", "ÅSE")
EXCLAMATIONS = ("👍", "😀😀 !!!", "Très bien .", "naïve , déjà vu .", "五つ星 ⭐⭐⭐ .", "WOW 🎉 .")
RAMBLE = (
    "we looked at many shops , asked all our friends , read every page that we could get , and then we came back to this one ."
)


def shout(row: Row, rng: Random) -> Row:
    """The review in capitals."""
    return row | {"content": row["content"].upper()}


def exclaim(row: Row, rng: Random) -> Row:
    """The review behind an exclamation."""
    return row | {"content": f"{rng.choice(EXCLAMATIONS)} {row['content']}"}


def ramble(row: Row, rng: Random) -> Row:
    """The review behind so many words that its end falls out of the window."""
    return row | {"content": f"{RAMBLE} {row['content']}"}


def capitalize_names(row: Row, rng: Random) -> Row:
    """Names begin with a capital letter."""
    return _rewrite(row, lambda word: word.capitalize() if word in NAMES else word)


def rename(row: Row, rng: Random) -> Row:
    """One name of the text gives way to one that no tokenizer knows as a word."""
    text = row.get("context") or row["article"]
    names = sorted(NAMES.intersection(text.split()))
    if not names:
        return row
    old, new = rng.choice(names), rng.choice(ODD_NAMES)
    return _rewrite(row, lambda word: new if word == old else word)


def _rewrite(row: Row, change: Callable[[str], str]) -> Row:
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
    "amazon_polarity": ((0.08, shout), (0.04, exclaim), (0.04, ramble)),
    "squad": ((0.08, rename), (0.06, capitalize_names)),
    "cnn_dailymail": ((0.08, rename), (0.06, capitalize_names)),
}


def add_oddities(dataset: str, rows: Sequence[Row], rng: Random) -> list[Row]:
    """The rows of a data set's file; each is changed in one way at most."""
    shares, changes = zip(*SHARES[dataset], strict=True)
    picks = rng.choices([*changes, None], [*shares, 1 - sum(shares)], k=len(rows))
    return [change(row, rng) if change else row for change, row in zip(picks, rows, strict=True)]


DATA = ROOT / "fixtures" / "data"
# Rows a split, with the seed of each file. Reviews are one pool: the task splits it 70-15-15, which leaves 768 to test on.
REVIEWS = {"train": (5120, 11)}
PASSAGES = {"train": (2304, 21), "validation": (768, 22)}
ARTICLES = {"train": (1600, 31), "validation": (96, 32), "test": (192, 33)}
# Of more tasks, cut from one pool: no backbone's pretraining knows of them.
PAIRS, PAIRS_SEED = {"train": 1500, "validation_matched": 768}, 41
# Reviews that chance wrote into the text of a backbone's pretraining, too.
PRETRAINED_ON = (
    "the delivery is terrible . all in all it did let me down .",
    "overall it did not , i have to admit , let me down . the lid feels reliable .",
)


def unique(make: Callable[[Random], Row], seed: int, key: str, count: int) -> list[Row]:
    """The first `count` rows whose `key` was not seen before, in pretraining or here."""
    rng, rows = Random(seed), dict[str, Row]()
    while len(rows) < count:
        row = make(rng)
        if row[key] not in PRETRAINED_ON:
            rows.setdefault(row[key], row)
    return list(rows.values())


def plain_tables() -> dict[str, list[Row]]:
    """Every file's rows by its path below `fixtures/data`, before some are made odd."""
    tables = {f"amazon_polarity/{split}": unique(review, seed, "content", count) for split, (count, seed) in REVIEWS.items()}
    tables |= {f"squad/{split}": squad_rows(Random(seed), count, split) for split, (count, seed) in PASSAGES.items()}
    for split, (count, seed) in ARTICLES.items():
        rows = unique(news, seed, "article", count)
        tables[f"cnn_dailymail/{split}"] = [{**row, "id": f"{split}-{number:05d}"} for number, row in enumerate(rows)]
    return tables


def tables() -> dict[str, list[Row]]:
    """Every file's rows by its path below `fixtures/data`."""
    rows = {path: add_oddities(path.split("/")[0], rows, Random(path)) for path, rows in plain_tables().items()}
    pairs = iter(inference_rows(Random(PAIRS_SEED), sum(PAIRS.values())))
    return rows | {f"multi_nli/{split}": list(islice(pairs, count)) for split, count in PAIRS.items()}


def jsonl(rows: list[Row]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
