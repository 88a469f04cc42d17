"""Writes the micro data to `fixtures/data/<data set>/<split>.jsonl`, from the seeds below."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from tunegrid import ROOT
from tunegrid.lab.micro.articles import news
from tunegrid.lab.micro.hypotheses import inference_rows
from tunegrid.lab.micro.oddities import with_oddities
from tunegrid.lab.micro.passages import squad_rows
from tunegrid.lab.micro.reviews import review

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
