import pytest
import torch

from tunegrid.codecs.extract import MAX_ANSWER_TOKENS, Window, best_span
from tunegrid.errors import InputError
from tunegrid.tests.small import codec_for

TWICE = {
    "context": "anna was born in dover . she moved to upton . clara was born in dover .",
    "question": "where was clara born ?",
    "answers": {"text": ["dover"], "answer_start": [64]},  # the second of two
}
TOWN = {
    "context": "dover is old .",
    "question": "what is old ?",
    "answers": {"text": ["dover"], "answer_start": [0]},
}


def counting(tokens: int, answer: int) -> dict:
    """A context of `tokens` years, each one word; the answer is the year at place `answer`."""
    years = [str(1921 + i) for i in range(tokens)]
    start = len(" ".join(years[:answer])) + (answer > 0)
    return {"context": " ".join(years), "question": "when ?", "answers": {"text": [years[answer]], "answer_start": [start]}}


def windows(row, **changes):
    """The row encoded for BERT: the question takes 4 tokens here ([CLS] when ? [SEP]) and the end takes 1."""
    return codec_for("bert_qa_sft", **changes).encode([row], training=False)


def text(row, window):
    return row["context"][window.offsets[0][0] : window.offsets[-1][1]].split()


# "dover" is word 15 of the context, counted from 0; the question has 5 words.
@pytest.mark.parametrize(("backbone", "position"), [("bert", 1 + 5 + 1 + 15), ("gpt2", 5 + 1 + 15), ("t5", 5 + 1 + 15)])
def test_the_annotated_occurrence_is_the_target_not_the_first(backbone, position):
    codec = codec_for(f"{backbone}_qa_sft")
    [feature] = codec.encode([TWICE], training=True)
    assert feature.target == (position, position)
    assert codec.tokenizer.decode([feature.input_ids[position]]).strip() == "dover"
    assert feature.extra.offsets[15][1] == 69


@pytest.mark.parametrize(
    ("backbone", "start", "between", "end"),
    [("bert", "[CLS]", "[SEP]", "[SEP]"), ("gpt2", "where", "<|endoftext|>", "Ġ."), ("t5", "▁where", "</s>", "</s>")],
)
def test_question_separator_context(backbone, start, between, end):
    codec = codec_for(f"{backbone}_qa_sft")
    [feature] = codec.encode([TWICE], training=True)
    tokens = codec.tokenizer.convert_ids_to_tokens(feature.input_ids)
    assert (tokens[0], tokens[feature.extra.shift - 1], tokens[-1]) == (start, between, end)


def test_bert_tells_question_and_context_apart_by_segment():
    codec = codec_for("bert_qa_sft")
    batch = codec.collate(codec.encode([TWICE, TOWN], training=True))
    assert batch["token_type_ids"][1].tolist() == [0] * 6 + [1] * 5 + [0] * 14  # 25 tokens in the longer one
    assert "token_type_ids" not in codec_for("t5_qa_sft").collate(codec_for("t5_qa_sft").encode([TOWN], training=True))


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        (22, [(1921, 1930), (1927, 1936), (1933, 1942)]),
        (24, [(1921, 1930), (1927, 1936), (1933, 1942), (1935, 1944)]),  # none is shorter
        (10, [(1921, 1930)]),  # fits exactly
        (11, [(1921, 1930), (1922, 1931)]),
    ],
)
def test_neighbouring_windows_share_the_stride_and_the_last_reaches_the_end(tokens, ends):
    row = counting(tokens, 0)
    parts = [text(row, feature.extra) for feature in windows(row, max_length=15, doc_stride=4)]  # 10 of context in each
    assert [(int(part[0]), int(part[-1])) for part in parts] == ends
    assert {len(part) for part in parts} == {10}


CUT_BY_AN_EDGE = counting(22, 9) | {"answers": {"text": ["1930 1931"], "answer_start": [45]}}


@pytest.mark.parametrize(
    ("row", "targets"),
    [
        # years 0-9, 6-15 and 12-21: year 8 is in the first two, 4 tokens behind the start; in the third is none
        (counting(22, 8), [(12, 12), (6, 6), (0, 0)]),
        (CUT_BY_AN_EDGE, [(0, 0), (7, 8), (0, 0)]),
    ],
)
def test_a_window_points_to_the_whole_answer_or_to_its_first_token(row, targets):
    codec = codec_for("bert_qa_sft", max_length=15, doc_stride=4)
    for training in (True, False):  # windows without the answer train where another of the row holds it
        assert [feature.target for feature in codec.encode([row], training=training)] == targets


def test_rows_whose_answer_no_window_holds_are_scored_but_not_trained_on():
    codec = codec_for("t5_qa_sft", max_length=14)  # when ? EOS + 10 years + EOS, the rest is cut
    rows = [counting(12, 11), counting(12, 9)]
    assert [feature.example for feature in codec.encode(rows, training=True)] == [1]
    assert [feature.example for feature in codec.encode(rows, training=False)] == [0, 1]


def test_a_row_takes_the_best_of_its_own_windows_however_they_are_interleaved():
    codec = codec_for("bert_qa_sft", max_length=15, doc_stride=4)
    rows = [counting(16, 0), counting(16, 15)]
    a0, a1, b0, b1 = codec.encode(rows, training=False)  # each row: years 0-9 and 6-15, context from place 4 on
    outputs = [(1.0, 4, 4), (2.0, 13, 13), (3.0, 5, 6), (9.0, 4, 5)]
    predictions = codec.decode(rows, [b0, a0, a1, b1], outputs)
    assert [prediction.value for prediction in predictions] == ["1928 1929", "1927 1928"]


def test_best_span_is_what_trying_every_pair_finds():
    """Over contexts shorter and longer than an answer may be; of equal pairs the first one."""
    for size in (1, 2, 29, 30, 31, 70):
        starts, ends = torch.randint(9, (2, size + 5), generator=torch.Generator().manual_seed(size)).float()
        pairs = [(i, j) for i in range(3, 3 + size) for j in range(i, min(i + MAX_ANSWER_TOKENS, 3 + size))]
        first, last = max(pairs, key=lambda pair: starts[pair[0]] + ends[pair[1]])
        window = Window(shift=3, offsets=[(0, 1)] * size)
        assert best_span(starts, ends, window) == (starts[first] + ends[last], first, last)


def test_a_question_that_fills_the_whole_length_is_refused():
    with pytest.raises(InputError, match="bert_qa_sft: a question of 7 tokens leaves no room for its context in max_length 8"):
        codec_for("bert_qa_sft", max_length=8).encode([TWICE], training=True)  # [CLS] + 5 + [SEP], and [SEP] behind
