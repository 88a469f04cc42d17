from itertools import islice

from tunegrid.lab.micro.corpus import documents, reserved_texts
from tunegrid.lab.micro.data import DATA, jsonl, make_tables
from tunegrid.lab.micro.pretrain import PLANS, SEED
from tunegrid.tests.small import read_rows

SQUAD = ("squad/train", "squad/validation")
PAIRS = ("multi_nli/train", "multi_nli/validation_matched")
NEWS = ("cnn_dailymail/train", "cnn_dailymail/validation", "cnn_dailymail/test")
WEIGHTS = PLANS["bert"].stages[0].weights


def test_no_text_is_in_two_splits_or_pretrained_on_and_every_answer_start_is_right():
    for names, key in ((SQUAD, "context"), (NEWS, "article"), (PAIRS, "premise")):
        splits = [{row[key] for row in read_rows(name)} for name in names]
        assert len(set.union(*splits)) == sum(map(len, splits))
    questions, articles = (
        [row for name in names for row in read_rows(name)] for names in (SQUAD, NEWS)
    )
    for row in questions:
        [text], [start] = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
    reserved = {row["content"] for row in read_rows("amazon_polarity/train")} | {
        row["context"] for row in questions
    }
    documents_of_pretraining = islice(documents(SEED, reserved_texts(), WEIGHTS), 5000)
    pretrained = {
        text
        for document in documents_of_pretraining
        for text in (document.first, document.second, document.foil)
    }
    pretrained |= {text.split("\n")[-1] for text in pretrained}  # a review without its title
    assert pretrained & (reserved | {row["article"] for row in articles}) == set()


def test_the_files_are_what_the_generator_writes_byte_for_byte():
    generated = {f"{name}.jsonl": jsonl(rows).encode() for name, rows in make_tables().items()}
    committed = {str(path.relative_to(DATA)): path.read_bytes() for path in DATA.glob("*/*.jsonl")}
    assert generated.keys() == committed.keys()
    assert [name for name in generated if generated[name] != committed[name]] == []
