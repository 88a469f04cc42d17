"""The micro data: no row is in two splits or was pretrained on, and the generator makes each
file.
"""

from itertools import islice

import pytest

from tunegrid.lab.micro.corpus import documents, reserved_texts
from tunegrid.lab.micro.data import DATA, jsonl, make_tables
from tunegrid.lab.micro.pretrain import PLANS, SEED
from tunegrid.tests.small import read_rows

SPLITS = {
    "content": ("amazon_polarity/train",),
    "context": ("squad/train", "squad/validation"),
    "article": ("cnn_dailymail/train", "cnn_dailymail/validation", "cnn_dailymail/test"),
    "premise": ("multi_nli/train", "multi_nli/validation_matched"),
}


def split_texts(column):
    """The texts of each split that has this column."""
    return [{row[column] for row in read_rows(name)} for name in SPLITS[column]]


@pytest.mark.parametrize("column", ["context", "article", "premise"])
def test_no_text_is_in_two_splits(column):
    known = set()
    for texts in split_texts(column):
        assert not texts & known
        known |= texts


@pytest.mark.parametrize("name", SPLITS["context"])
def test_every_answer_starts_where_its_row_says(name):
    for row in read_rows(name):
        [text] = row["answers"]["text"]
        [start] = row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text


def test_no_text_was_pretrained_on():
    pretrained = set()
    weights = PLANS["bert"].stages[0].weights
    for document in islice(documents(SEED, reserved_texts(), weights), 5000):
        pretrained |= {document.first, document.second, document.foil}
    pretrained |= {text.split("\n")[-1] for text in pretrained}  # a review without its title
    for column in ("content", "context", "article"):
        for texts in split_texts(column):
            assert not pretrained & texts


def test_the_files_are_what_the_generator_writes_byte_for_byte():
    generated = {f"{name}.jsonl": jsonl(rows).encode() for name, rows in make_tables().items()}
    committed = {str(path.relative_to(DATA)): path.read_bytes() for path in DATA.glob("*/*.jsonl")}
    assert generated.keys() == committed.keys()
    assert [name for name in generated if generated[name] != committed[name]] == []
