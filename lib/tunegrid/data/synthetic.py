"""Rows without sense, as many as one likes. In: a task of the study, a number of rows. Out: rows in the hub's schema.

They are as long as those of the true data sets and made of the embedded rows' words, which the micro tokenizers know. What rows
cost can be measured with them.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tunegrid.data.columns import joined
from tunegrid.data.sources import Row, tables
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.grid.tasks import QA, SA, SUM, Task

SEED = 0
TITLE_ROWS = 20  # of one title: fewer than SQuAD's 200, so that a few rows have several
# Words on average: reviews of Amazon, contexts and questions of SQuAD, articles and highlights of CNN/DailyMail.
REVIEW, CONTEXT, QUESTION, ARTICLE, HIGHLIGHTS = 78, 120, 11, 690, 50
SPLITS = {
    SA.id: {"train": 1.0},
    QA.id: {"train": 1.0, "validation": 0.12},
    SUM.id: {"train": 1.0, "validation": 0.05, "test": 0.04},
}

Words = Callable[[Random, int], list[str]]


def words_of(task: Task) -> Words:
    """Draws so many words, give or take a half, from those of the embedded rows."""
    rows = tables(task, QUICK_PROFILE.data_root)["train"].take(range(500))
    pool = sorted({word for row in rows for word in joined(row, (*task.text, *task.text_pair)).split()})
    return lambda rng, count: rng.choices(pool, k=rng.randint(count // 2, count + count // 2))


def _review(rng: Random, words: Words, number: int) -> Row:
    return {
        "label": number % 2,
        "title": f"{' '.join(words(rng, 4))} {number}",
        "content": f"{' '.join(words(rng, REVIEW))} {number}",
    }


def _question(rng: Random, words: Words, number: int) -> Row:
    told = words(rng, CONTEXT)
    place = rng.randrange(len(told) - 2)
    return {
        "id": str(number),
        "title": f"title {number // TITLE_ROWS}",
        "context": " ".join(told),
        "question": f"{' '.join(words(rng, QUESTION))} {number} ?",
        "answers": {"text": [" ".join(told[place : place + 2])], "answer_start": [len(" ".join([*told[:place], ""]))]},
    }


def _article(rng: Random, words: Words, number: int) -> Row:
    return {
        "id": str(number),
        "article": f"{' '.join(words(rng, ARTICLE))} {number}",
        "highlights": " ".join(words(rng, HIGHLIGHTS)),
    }


MAKERS: dict[str, Callable[[Random, Words, int], Row]] = {SA.id: _review, QA.id: _question, SUM.id: _article}


def rows_of(task: Task, count: int, split: str = "train") -> Iterator[Row]:
    """So many rows; the same ones each time, and others in each split."""
    rng, words = Random(f"{SEED}-{split}"), words_of(task)
    return (MAKERS[task.id](rng, words, number) for number in range(count))


def write(task: Task, count: int, root: Path) -> None:
    """A folder of JSON lines as `--data-root` takes it: so many training rows, and some in other splits."""
    folder = root / task.folder
    folder.mkdir(parents=True, exist_ok=True)
    for split, share in SPLITS[task.id].items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows_of(task, max(20, round(share * count)), split))
