"""Writes the micro data to `fixtures/data/<data set>/<split>.jsonl`, from the seeds below; some rows are made odd."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
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


def distinct(rows: Iterable[dict[str, Any]], key: str, count: int) -> list[dict[str, Any]]:
    """The first `count` rows whose `key` was not seen before, in pretraining or here."""
    seen: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row[key] not in PRETRAINED_ON:
            seen.setdefault(row[key], row)
        if len(seen) == count:
            break
    return list(seen.values())


def _stream(make: Any, seed: int) -> Iterable[dict[str, Any]]:
    rng = Random(seed)
    while True:
        yield make(rng)


def _articles(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    rows = distinct(_stream(news, seed), "article", count)
    return [{**row, "id": f"{split}-{number:05d}"} for number, row in enumerate(rows)]


def plain_tables() -> dict[str, list[dict[str, Any]]]:
    """Every file's rows by its path below `fixtures/data`, before some are made odd."""
    rows = {f"amazon_polarity/{split}": distinct(_stream(review, seed), "content", n) for split, (n, seed) in REVIEWS.items()}
    rows |= {f"squad/{split}": squad_rows(Random(seed), n, split) for split, (n, seed) in PASSAGES.items()}
    rows |= {f"cnn_dailymail/{split}": _articles(split, n, seed) for split, (n, seed) in ARTICLES.items()}
    return rows


def tables() -> dict[str, list[dict[str, Any]]]:
    """Every file's rows by its path below `fixtures/data`."""
    rows = {path: with_oddities(path.split("/")[0], rows, Random(path)) for path, rows in plain_tables().items()}
    pairs = iter(inference_rows(Random(PAIRS_SEED), sum(PAIRS.values())))
    return rows | {f"multi_nli/{split}": list(islice(pairs, count)) for split, count in PAIRS.items()}


def jsonl(rows: list[dict[str, Any]]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(root: Path = DATA) -> list[Path]:
    """Write every file below `root`; return the paths."""
    written = []
    for name, rows in tables().items():
        path = root / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(jsonl(rows), encoding="utf-8")
        written.append(path)
    return written
