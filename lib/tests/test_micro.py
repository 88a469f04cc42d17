from collections import Counter
from functools import cache
from itertools import islice

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from lib.data.splits import load_splits
from lib.grid.profiles import FIXTURES, QUICK_PROFILE
from lib.grid.tasks import SA, SUM
from lib.micro.corpus import documents, reserved_texts
from lib.micro.data import DATA, jsonl, tables
from lib.micro.pretrain import PLANS, SEED
from lib.tests.small import codec_for, rows_of, tokenizer_of

SQUAD = ("squad/train", "squad/validation")
NEWS = ("cnn_dailymail/train", "cnn_dailymail/validation", "cnn_dailymail/test")
WEIGHTS = PLANS["bert"].weights


@cache
def pretraining(seed: int, count: int):
    return list(islice(documents(seed, reserved_texts(DATA), WEIGHTS), count))


def questions():
    return [row for name in SQUAD for row in rows_of(name)]


def articles():
    return [row for name in NEWS for row in rows_of(name)]


def texts():
    reviews = [f"{row['title']} {row['content']}" for row in rows_of("amazon_polarity/train")]
    return (
        reviews
        + [f"{r['question']} {r['context']}" for r in questions()]
        + [f"{r['article']} {r['highlights']}" for r in articles()]
    )


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
            longest = len(codec.ids(row["question"])) + len(codec.ids(row["context"])) + 2
            assert backbone == "bert" or longest <= codec.recipe.max_length
    assert sum(count for windows, count in sizes["bert"].items() if windows > 1) >= 10
    assert set(sizes["gpt2"]) == set(sizes["t5"]) == {1}


@pytest.mark.parametrize("backbone", ["bert", "gpt2", "t5"])
def test_reviews_reports_and_highlights_fit_their_lengths(backbone):
    sa, summary = codec_for(f"{backbone}_sa_sft"), codec_for(f"{backbone}_sum_sft")
    assert max(len(sa.ids(sa.text(row))) for row in rows_of("amazon_polarity/train")) <= sa.recipe.max_length - 2
    assert max(len(summary.ids(row["highlights"])) for row in articles()) < summary.recipe.max_target_length
    spent = summary.recipe.max_target_length if backbone == "gpt2" else 4
    assert max(len(summary.ids(row["article"])) for row in articles()) <= summary.recipe.max_length - spent


def test_articles_have_five_to_nine_sentences_and_highlights_one_to_three_lines():
    assert {row["article"].count(" .") for row in articles()} <= set(range(5, 10))
    assert {len(row["highlights"].splitlines()) for row in articles()} == {1, 2, 3}


def test_the_lead_sentence_says_little_of_the_highlights():
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    rows = load_splits(SUM, QUICK_PROFILE).test
    scores = [scorer.score(row["highlights"], row["article"].split(" .")[0])["rouge1"].fmeasure for row in rows]
    assert 100 * sum(scores) / len(scores) < 25


def test_no_text_is_in_two_splits():
    for names, key in ((SQUAD, "context"), (NEWS, "article")):
        splits = [{row[key] for row in rows_of(name)} for name in names]
        assert len(set.union(*splits)) == sum(map(len, splits))


# The text that backbones are pretrained on


def test_no_fine_tuning_text_is_pretrained_on():
    reserved = {text for row in rows_of("amazon_polarity/train") for text in (row["content"],)}
    reserved |= {row["context"] for row in questions()} | {row["article"] for row in articles()}
    assert len(pretraining(SEED, 20_000)) == 20_000
    pretrained = {text for document in pretraining(SEED, 20_000) for text in (document.first, document.second, document.foil)}
    pretrained |= {text.split("\n")[-1] for text in pretrained}  # a review without its title
    assert pretrained & reserved == set()


def test_the_stream_depends_on_its_seed_only():
    assert pretraining(SEED, 20_000)[:50] == list(islice(documents(SEED, reserved_texts(DATA), WEIGHTS), 50))
    assert pretraining(SEED, 20_000)[:50] != list(islice(documents(SEED + 1, reserved_texts(DATA), WEIGHTS), 50))


def test_documents_come_in_the_shares_asked_for():
    kinds = Counter(document.kind for document in pretraining(SEED, 20_000))
    wanted = dict(zip(("review", "reaction", "passage", "article"), WEIGHTS, strict=True))
    assert {kind: count / 20_000 for kind, count in kinds.items()} == pytest.approx(wanted, abs=0.02)


def test_the_focus_of_a_passage_is_its_answer_and_the_echo_repeats_it():
    for document in pretraining(SEED, 20_000)[:2000]:
        if document.kind == "passage":
            [focus] = document.focus
            assert document.first[slice(*document.echo)] == document.second[slice(*focus)]


def test_reserved_texts_are_those_of_all_files():
    wanted = len(rows_of("amazon_polarity/train")) + len({row["context"] for row in questions()}) + len(articles())
    assert len(reserved_texts(FIXTURES / "data")) == wanted


# Tokenizers


@pytest.mark.parametrize(("cell_id", "unknown"), [("bert_sa_sft", "[UNK]"), ("t5_sa_sft", "<unk>")])
def test_no_word_of_the_rows_is_unknown(cell_id, unknown):
    tokenizer = tokenizer_of(cell_id)
    used_ids = {i for ids in tokenizer(texts(), add_special_tokens=False)["input_ids"] for i in ids}
    assert tokenizer.convert_tokens_to_ids(unknown) not in used_ids


def test_gpt2_reads_the_rows_at_about_a_token_a_word():
    encoded = tokenizer_of("gpt2_sa_sft")(texts(), add_special_tokens=False)["input_ids"]
    assert sum(map(len, encoded)) < 1.05 * sum(len(text.split()) for text in texts())


@pytest.mark.parametrize("cell_id", ["bert_sa_sft", "t5_sa_sft"])
def test_every_word_of_the_rows_is_one_token(cell_id):
    words = sorted({word for text in texts() for word in text.split()})
    encoded = tokenizer_of(cell_id)([f"the {word}" for word in words], add_special_tokens=False)["input_ids"]
    assert [word for word, ids in zip(words, encoded, strict=True) if len(ids) != 2] == []
