from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import islice
from random import Random

import pytest
import torch
import transformers as hf
from rouge_score.rouge_scorer import RougeScorer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from tunegrid.data.splits import load_splits
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.grid.tasks import SA, SUM
from tunegrid.lab.micro.corpus import Document, documents, reserved_texts
from tunegrid.lab.micro.data import (
    DATA,
    PRETRAINED_ON,
    SHARES,
    capitalized,
    jsonl,
    plain_tables,
    renamed,
    tables,
    with_oddities,
)
from tunegrid.lab.micro.objectives import IGNORED, SENTINELS, masked_lm, span_corruption, spelled_and_named
from tunegrid.lab.micro.pretrain import PLANS, SEED, card
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


def starts(row) -> list[int]:
    """Every place where the answer stands in the context as whole words."""
    text, answer = f" {row['context']} ", f" {row['answers']['text'][0]} "
    return [i for i in range(len(text)) if text.startswith(answer, i)]


# The rows that ship


def test_the_files_are_what_the_generator_writes_byte_for_byte():
    generated = {f"{name}.jsonl": jsonl(rows).encode() for name, rows in tables().items()}
    committed = {str(path.relative_to(DATA)): path.read_bytes() for path in DATA.glob("*/*.jsonl")}
    assert generated.keys() == committed.keys()
    assert [name for name in generated if generated[name] != committed[name]] == []


def test_counting_words_does_not_solve_the_reviews():
    splits = load_splits(SA, QUICK_PROFILE)
    (train, truth), (test, wanted) = (
        ([row["content"] for row in rows], [row["label"] for row in rows]) for rows in (splits.train, splits.test)
    )
    for span in ((1, 1), (1, 2)):
        model = make_pipeline(TfidfVectorizer(ngram_range=span, token_pattern=r"\S+"), LogisticRegression(max_iter=1000))
        assert model.fit(train, truth).score(test, wanted) <= 0.85


def test_counting_words_does_not_solve_the_pairs():
    (train, truth), (test, wanted) = (
        ([f"{row['premise']} ? {row['hypothesis']}" for row in rows], [row["label"] for row in rows])
        for rows in (rows_of("multi_nli/train"), rows_of("multi_nli/validation_matched"))
    )
    model = make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), LogisticRegression(max_iter=1000))
    assert model.fit(train, truth).score(test, wanted) <= 0.7  # two thirds: what has no verdict, and half of the rest


def test_a_digest_follows_from_its_review_is_undecided_without_the_verdict_or_contradicts_it():
    lid, opinions = "the lid is not bad at all .", (("overall", False), ("lid", True))
    told = Review(title="", content=f"in short i do regret it . {lid}", without_verdict=lid, opinions=opinions)
    follows, undecided, contradicts = pairs_of(told, Random(0))
    assert (follows["premise"], follows["hypothesis"], follows["label"]) == (told.content, "bad overall , lid good .", 0)
    assert (undecided["premise"], undecided["label"]) == (lid, 1)
    assert undecided["hypothesis"] in ("bad overall , lid good .", "good overall , lid good .")
    assert (contradicts["hypothesis"], contradicts["label"]) == ("good overall , lid bad .", 2)


def test_both_labels_occur_alike():
    shares = Counter(row["label"] for row in rows_of("amazon_polarity/train"))
    assert 0.45 < shares[1] / shares.total() < 0.55


def test_every_answer_start_is_right():
    for row in questions():
        [text], [start] = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text


def test_answers_repeat_and_the_annotated_one_is_often_not_the_first():
    repeated = [row for row in questions() if len(starts(row)) > 1]
    later = [row for row in repeated if row["answers"]["answer_start"][0] != starts(row)[0]]
    assert len(repeated) >= len(questions()) / 3
    assert len(later) >= len(repeated) / 4


def test_some_passages_outgrow_berts_window_and_none_the_others():
    sizes = {b: Counter() for b in ("bert", "gpt2", "t5")}
    for backbone, counts in sizes.items():
        codec = codec_for(f"{backbone}_qa_sft")
        for row in rows_of("squad/validation"):
            counts[len(codec.encode([row], training=False))] += 1
    assert sum(count for windows, count in sizes["bert"].items() if windows > 1) >= 10
    assert set(sizes["gpt2"]) == set(sizes["t5"]) == {1}


@pytest.mark.parametrize("backbone", ["bert", "gpt2", "t5"])
def test_reviews_reports_and_highlights_fit_their_lengths(backbone):
    sa, summary = codec_for(f"{backbone}_sa_sft"), codec_for(f"{backbone}_sum_sft")
    reviews, reports = (plain()[path] for path in ("amazon_polarity/train", "cnn_dailymail/train"))
    assert max(len(sa.ids(sa.text(row))) for row in reviews) <= sa.recipe.max_length - 2
    assert max(len(summary.ids(row["highlights"])) for row in reports) < summary.recipe.max_target_length
    spent = summary.recipe.max_target_length if backbone == "gpt2" else 4
    assert max(len(summary.ids(row["article"])) for row in reports) <= summary.recipe.max_length - spent


@pytest.mark.parametrize("backbone", ["bert", "gpt2", "t5"])
def test_some_reviews_outgrow_the_window(backbone):
    codec = codec_for(f"{backbone}_sa_sft")
    lengths = [len(codec.ids(codec.text(row))) for row in rows_of("amazon_polarity/train")]
    assert 0.01 < sum(length > codec.room for length in lengths) / len(lengths) < 0.15


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


def test_so_many_rows_are_odd_as_the_shares_say():
    rows = plain()["amazon_polarity/train"]
    odd = with_oddities("amazon_polarity", rows, Random(0))
    changed = sum(a != b for a, b in zip(rows, odd, strict=True)) / len(rows)
    assert changed == pytest.approx(sum(share for share, _ in SHARES["amazon_polarity"]), abs=0.02)


def test_articles_have_five_to_nine_sentences_and_highlights_one_to_three_lines():
    assert {row["article"].count(" .") for row in articles()} <= set(range(5, 10))
    assert {len(row["highlights"].splitlines()) for row in articles()} == {1, 2, 3}


def test_the_lead_sentence_says_little_of_the_highlights():
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    rows = load_splits(SUM, QUICK_PROFILE).test
    scores = [scorer.score(row["highlights"], row["article"].split(" .")[0])["rouge1"].fmeasure for row in rows]
    assert 100 * sum(scores) / len(scores) < 25


def test_no_text_is_in_two_splits():
    for names, key in ((SQUAD, "context"), (NEWS, "article"), (PAIRS, "premise")):
        splits = [{row[key] for row in rows_of(name)} for name in names]
        assert len(set.union(*splits)) == sum(map(len, splits))


# The text that backbones are pretrained on


@pytest.mark.slow
def test_no_fine_tuning_text_is_pretrained_on():
    reserved = {text for row in rows_of("amazon_polarity/train") for text in (row["content"],)}
    reserved |= {row["context"] for row in questions()} | {row["article"] for row in articles()}
    assert len(pretraining(SEED, 20_000)) == 20_000
    later = islice(documents(SEED + 1, reserved_texts(), SECOND.weights), 5000)
    seen = [*pretraining(SEED, 20_000), *later]
    pretrained = {text for document in seen for text in (document.first, document.second, document.foil)}
    pretrained |= {text.split("\n")[-1] for text in pretrained}  # a review without its title
    assert pretrained & reserved == set()


def test_the_stream_depends_on_its_seed_only():
    assert pretraining(SEED, 20_000)[:50] == list(islice(documents(SEED, reserved_texts(), WEIGHTS), 50))
    assert pretraining(SEED, 20_000)[:50] != list(islice(documents(SEED + 1, reserved_texts(), WEIGHTS), 50))


def test_documents_come_in_the_shares_asked_for():
    kinds = Counter(document.kind for document in pretraining(SEED, 20_000))
    wanted = dict(zip(("review", "reaction", "passage", "article"), WEIGHTS, strict=True))
    assert {kind: count / 20_000 for kind, count in kinds.items()} == pytest.approx(wanted, abs=0.02)


def test_the_focus_of_a_passage_is_its_answer_and_the_echo_repeats_it():
    for document in pretraining(SEED, 20_000)[:2000]:
        if document.kind == "passage":
            [focus] = document.focus
            assert document.first[slice(*document.echo)] == document.second[slice(*focus)]


def test_a_review_comes_to_what_its_digest_says_overall():
    reviews = [document for document in pretraining(SEED, 20_000)[:2000] if document.kind == "review"]
    assert {document.verdict for document in reviews} == {"bad", "good"}
    assert all(f"{document.verdict} overall" in document.second for document in reviews)
    assert {document.verdict for document in pretraining(SEED, 20_000) if document.kind in ("passage", "article")} == {None}


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


def test_berts_second_stage_names_verdicts_and_its_first_one_does_not():
    tokenizer = tokenizer_of("bert_sa_sft")
    reviews = list(islice(documents(3, frozenset(), (1.0, 0.0, 0.0, 0.0)), 32))
    stop, verdicts = tokenizer.convert_tokens_to_ids("."), set(tokenizer.convert_tokens_to_ids(["bad", "good"]))

    def named_at_stops(stage):
        batch = stage.batch(reviews, tokenizer, Random(0))
        return set(batch["labels"][batch["input_ids"] == stop].tolist()) & verdicts

    assert named_at_stops(SECOND) == verdicts
    assert named_at_stops(FIRST) == set()


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


def test_a_model_card_tells_each_stage_and_the_updates_that_were_made():
    assert "| 2 | the same, and a review's verdict" in card("bert", 1, [0.5])
    assert "| 2,000 | 0.001 |" in card("bert", 1, [0.5])
    untrained = card("bert", 1, [], steps=0)
    assert "| 0 | 0.001 |" in untrained
    assert "Loss at the end: not trained." in untrained


# Tokenizers


@pytest.mark.parametrize(("cell_id", "unknown"), [("bert_sa_sft", "[UNK]"), ("t5_sa_sft", "<unk>")])
def test_no_word_but_an_odd_one_is_unknown(cell_id, unknown):
    tokenizer = tokenizer_of(cell_id)
    unknown_id = tokenizer.convert_tokens_to_ids(unknown)

    def readable(rows):
        encoded = tokenizer(rows, add_special_tokens=False)["input_ids"]
        return [unknown_id not in ids for ids in encoded]

    assert all(readable(texts(plain())))
    assert 0.01 < readable(texts()).count(False) / len(texts()) < 0.1


def test_gpt2_reads_the_rows_at_about_a_token_a_word():
    rows = texts(plain())
    encoded = tokenizer_of("gpt2_sa_sft")(rows, add_special_tokens=False)["input_ids"]
    assert sum(map(len, encoded)) < 1.05 * sum(len(text.split()) for text in rows)


@pytest.mark.parametrize("cell_id", ["bert_sa_sft", "t5_sa_sft"])
def test_every_word_but_an_odd_one_is_one_token(cell_id):
    words = sorted({word for text in texts(plain()) for word in text.split()})
    encoded = tokenizer_of(cell_id)([f"the {word}" for word in words], add_special_tokens=False)["input_ids"]
    assert [word for word, ids in zip(words, encoded, strict=True) if len(ids) != 2] == []
