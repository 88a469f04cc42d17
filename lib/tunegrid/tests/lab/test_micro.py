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
        known = set()
        for name in names:
            texts = {row[key] for row in read_rows(name)}
            assert not texts & known
            known |= texts
    questions = [*read_rows("squad/train"), *read_rows("squad/validation")]
    for row in questions:
        [text] = row["answers"]["text"]
        [start] = row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
    reserved = {row["content"] for row in read_rows("amazon_polarity/train")}
    reserved |= {row["context"] for row in questions}
    for name in NEWS:
        reserved |= {row["article"] for row in read_rows(name)}
    pretrained = set()
    for document in islice(documents(SEED, reserved_texts(), WEIGHTS), 5000):
        pretrained |= {document.first, document.second, document.foil}
    pretrained |= {text.split("\n")[-1] for text in pretrained}  # a review without its title
    assert pretrained & reserved == set()


def test_the_files_are_what_the_generator_writes_byte_for_byte():
    generated = {f"{name}.jsonl": jsonl(rows).encode() for name, rows in make_tables().items()}
    committed = {str(path.relative_to(DATA)): path.read_bytes() for path in DATA.glob("*/*.jsonl")}
    assert generated.keys() == committed.keys()
    assert [name for name in generated if generated[name] != committed[name]] == []
