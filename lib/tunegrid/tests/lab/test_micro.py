from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import islice
from random import Random

import pytest
import torch
import transformers as hf

from tunegrid.lab.micro.corpus import Document, documents, reserved_texts
from tunegrid.lab.micro.data import DATA, PRETRAINED_ON, capitalized, jsonl, plain_tables, renamed, tables
from tunegrid.lab.micro.objectives import IGNORED, SENTINELS, masked_lm, span_corruption, spelled_and_named
from tunegrid.lab.micro.pretrain import PLANS, SEED
from tunegrid.lab.micro.reviews import Review, pairs_of
from tunegrid.tests.small import codec_for, rows_of, tokenizer_of

SQUAD = ("squad/train", "squad/validation")
PAIRS = ("multi_nli/train", "multi_nli/validation_matched")
NEWS = ("cnn_dailymail/train", "cnn_dailymail/validation", "cnn_dailymail/test")
FIRST, SECOND = PLANS["bert"].stages
WEIGHTS = FIRST.weights
plain = cache(plain_tables)


@cache
def pretraining(seed: int, count: int):
    return list(islice(documents(seed, reserved_texts(), WEIGHTS), count))


def questions():
    return [row for name in SQUAD for row in rows_of(name)]


def articles():
    return [row for name in NEWS for row in rows_of(name)]


def texts(tables=None):
    """All that the rows say: of the rows that ship, or of these."""
    of = tables.__getitem__ if tables else rows_of
    reviews = [f"{row['title']} {row['content']}" for row in of("amazon_polarity/train")]
    passages = [f"{row['question']} {row['context']}" for name in SQUAD for row in of(name)]
    return reviews + passages + [f"{row['article']} {row['highlights']}" for name in NEWS for row in of(name)]


# The rows that ship


def test_no_text_is_in_two_splits_or_pretrained_on_and_every_answer_start_is_right():
    for names, key in ((SQUAD, "context"), (NEWS, "article"), (PAIRS, "premise")):
        splits = [{row[key] for row in rows_of(name)} for name in names]
        assert len(set.union(*splits)) == sum(map(len, splits))
    for row in questions():
        [text], [start] = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
    reserved = {row["content"] for row in rows_of("amazon_polarity/train")} | {row["context"] for row in questions()}
    pretrained = {text for document in pretraining(SEED, 5000) for text in (document.first, document.second, document.foil)}
    pretrained |= {text.split("\n")[-1] for text in pretrained}  # a review without its title
    assert pretrained & (reserved | {row["article"] for row in articles()}) == set()


def test_the_files_are_what_the_generator_writes_byte_for_byte():
    generated = {f"{name}.jsonl": jsonl(rows).encode() for name, rows in tables().items()}
    committed = {str(path.relative_to(DATA)): path.read_bytes() for path in DATA.glob("*/*.jsonl")}
    assert generated.keys() == committed.keys()
    assert [name for name in generated if generated[name] != committed[name]] == []


def test_a_digest_follows_from_its_review_is_undecided_without_the_verdict_or_contradicts_it():
    lid, opinions = "the lid is not bad at all .", (("overall", False), ("lid", True))
    told = Review(title="", content=f"in short i do regret it . {lid}", without_verdict=lid, opinions=opinions)
    follows, undecided, contradicts = pairs_of(told, Random(0))
    assert (follows["premise"], follows["hypothesis"], follows["label"]) == (told.content, "bad overall , lid good .", 0)
    assert (undecided["premise"], undecided["label"]) == (lid, 1)
    assert undecided["hypothesis"] in ("bad overall , lid good .", "good overall , lid good .")
    assert (contradicts["hypothesis"], contradicts["label"]) == ("good overall , lid bad .", 2)


@pytest.mark.parametrize("backbone", ["bert", "gpt2", "t5"])
def test_reviews_reports_and_highlights_fit_their_lengths_but_for_some_odd_reviews(backbone):
    sa, summary = codec_for(f"{backbone}_sa_sft"), codec_for(f"{backbone}_sum_sft")
    lengths = [len(sa.ids(sa.text(row))) for row in rows_of("amazon_polarity/train")]
    assert 0.01 < sum(length > sa.room for length in lengths) / len(lengths) < 0.15
    reviews, reports = (plain()[path] for path in ("amazon_polarity/train", "cnn_dailymail/train"))
    assert max(len(sa.ids(sa.text(row))) for row in reviews) <= sa.recipe.max_length - 2
    assert max(len(summary.ids(row["highlights"])) for row in reports) < summary.recipe.max_target_length
    spent = summary.recipe.max_target_length if backbone == "gpt2" else 4
    assert max(len(summary.ids(row["article"])) for row in reports) <= summary.recipe.max_length - spent


def test_a_name_that_is_replaced_moves_the_answer_behind_it():
    row = {
        "context": "anna reed met tom in dover .",
        "question": "where ?",
        "answers": {"text": ["dover"], "answer_start": [21]},
    }
    odd = capitalized(row, Random(0))
    assert odd["context"] == "Anna Reed met tom in Dover ."
    assert odd["answers"] == {"text": ["Dover"], "answer_start": [21]}
    odd = renamed(row, Random(1))  # one of anna, reed and dover
    assert odd["context"] != row["context"]
    [text], [start] = odd["answers"]["text"], odd["answers"]["answer_start"]
    assert odd["context"][start : start + len(text)] == text


# The text that backbones are pretrained on


def test_documents_come_in_the_shares_asked_for_with_their_answers_and_verdicts():
    made = pretraining(SEED, 5000)
    other = list(islice(documents(SEED + 1, reserved_texts(), WEIGHTS), 50))
    assert made[:50] == list(islice(documents(SEED, reserved_texts(), WEIGHTS), 50)) != other
    kinds = Counter(document.kind for document in made)
    wanted = dict(zip(("review", "reaction", "passage", "article"), WEIGHTS, strict=True))
    assert {kind: count / 5000 for kind, count in kinds.items()} == pytest.approx(wanted, abs=0.03)
    for document in (document for document in made if document.kind == "passage"):
        [focus] = document.focus
        assert document.first[slice(*document.echo)] == document.second[slice(*focus)]
    assert all(f"{one.verdict} overall" in one.second for one in made if one.kind == "review")
    assert {one.verdict for one in made if one.kind in ("passage", "article")} == {None}


def test_a_review_is_judged_at_each_of_its_full_stops():
    review = Document(
        kind="review", first="the lid is bad . i can recommend it .", second="", foil="", focus=(), verdict="good"
    )
    tokenizer = tokenizer_of("bert_sa_sft")
    stop, good = tokenizer.convert_tokens_to_ids([".", "good"])

    def named_at_stops(document):
        batch = masked_lm([document], tokenizer, Random(0), judged=True)  # hides none of these words
        return batch["labels"][batch["input_ids"] == stop].tolist()

    assert named_at_stops(review) == [good, good]
    assert named_at_stops(replace(review, verdict=None)) == [IGNORED, IGNORED]
    first, second = (stage.batch([review] * 8, tokenizer, Random(0))["labels"] for stage in (FIRST, SECOND))
    assert [int((labels == good).sum()) >= 8 for labels in (first, second)] == [False, True]  # the second stage's alone


def test_a_passages_answer_is_pointed_at_and_so_is_every_other_value():
    tokenizer = tokenizer_of("t5_qa_sft")
    text = "anna reed saved 30 pounds in dover ."  # one token per word
    person, amount, town = (
        (text.index(value), text.index(value) + len(value)) for value in ("anna reed", "30 pounds", "dover")
    )

    def named(answer, *others):
        passage = Document(kind="asked", first="how much ?", second=text, foil="", focus=(answer,), others=others)
        [names] = span_corruption([passage], tokenizer, Random(0))["named"].tolist()  # hides none of these words
        begin = len(tokenizer(passage.first)["input_ids"]) + 1  # an end token stands between the two
        return {i - begin: tokenizer.convert_ids_to_tokens(token) for i, token in enumerate(names) if token != IGNORED}

    assert named(amount, person, town) == {0: "-", 1: "-", 3: "(", 4: ")", 6: "-"}
    assert named(town, person) == {0: "-", 1: "-", 6: "*"}


def test_t5_has_a_target_wherever_something_is_hidden_and_names_only_what_it_can_read():
    tokenizer = tokenizer_of("t5_sum_sft")
    batch = span_corruption(list(islice(documents(3, frozenset(), (0.3, 0.0, 0.4, 0.3)), 64)), tokenizer, Random(0))
    sentinels = set(tokenizer.convert_tokens_to_ids(list(SENTINELS)))
    for source, names, target in zip(*(batch[key].tolist() for key in ("input_ids", "named", "labels")), strict=True):
        hidden = [token for token in target if token in sentinels]
        assert [token for token in source if token in sentinels] == hidden
        assert (set(target) == {IGNORED}) == (not hidden)
        assert {name for token, name in zip(source, names, strict=True) if token in sentinels} <= {IGNORED}


def test_what_t5_names_is_read_off_its_encoder_with_its_own_output_layer():
    torch.manual_seed(0)
    model = hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.0, decoder_start_token_id=0
        )
    )
    ids, labels = torch.tensor([[3, 4, 5, 1]]), torch.tensor([[6, 1]])
    named = torch.tensor([[IGNORED, 7, IGNORED, IGNORED]])
    with torch.no_grad():
        state = model.encoder(input_ids=ids).last_hidden_state[0, 1]
        scores = model.lm_head.weight @ state / 8**0.5
        name_loss = scores.logsumexp(0) - scores[7]
        own = model(input_ids=ids, labels=labels).loss
        total = spelled_and_named(model, {"input_ids": ids, "labels": labels, "named": named})
        unnamed = spelled_and_named(model, {"input_ids": ids, "labels": labels, "named": torch.full_like(ids, IGNORED)})
    assert float(total) == pytest.approx(float(own + name_loss), rel=1e-5)
    assert float(unnamed) == float(own)


def test_reserved_texts_are_those_of_all_rows_before_some_were_made_odd():
    rows = [row for table in plain().values() for row in table]
    bodies = {row.get("content") or row.get("context") or row["article"] for row in rows}
    assert reserved_texts() == bodies
    assert bodies.isdisjoint(PRETRAINED_ON)


@pytest.mark.parametrize(("cell_id", "unknown"), [("bert_sa_sft", "[UNK]"), ("t5_sa_sft", "<unk>")])
def test_no_word_but_an_odd_one_is_unknown(cell_id, unknown):
    tokenizer = tokenizer_of(cell_id)
    unknown_id = tokenizer.convert_tokens_to_ids(unknown)

    def readable(rows):
        encoded = tokenizer(rows, add_special_tokens=False)["input_ids"]
        return [unknown_id not in ids for ids in encoded]

    assert all(readable(texts(plain())))
    assert 0.01 < readable(texts()).count(False) / len(texts()) < 0.1
