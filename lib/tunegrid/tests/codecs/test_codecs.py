"""Classes and windows: rows become tokens and targets, and outputs become answers, by hand; and
cells without a codec.
"""

from dataclasses import replace

import peft
import pytest
import torch

from tunegrid.codecs.architectures import architecture
from tunegrid.codecs.base import IGNORED
from tunegrid.codecs.extract import MAX_ANSWER_TOKENS, Window, best_span
from tunegrid.errors import InputError
from tunegrid.grid.backbones import Layout
from tunegrid.grid.more_tasks import NLI
from tunegrid.grid.recipes import Generation
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.prepare import make_codec
from tunegrid.tests.chats import FIRE, TEA
from tunegrid.tests.small import CPU, get_codec, quick_cell, quick_model


def nli(backbone, **changes):
    """A review cell with the inference task."""
    return replace(quick_cell(f"{backbone}_sa_sft", text=(), **changes), task=NLI)


def cell_codec(cell):
    return make_codec(cell, load_tokenizer(cell))


# Cells without a codec


def with_head(cell_id, **changes):
    cell = quick_cell(cell_id)
    return replace(cell, head=replace(cell.head, **changes))


def with_wrap(cell_id, **changes):
    cell = quick_cell(cell_id)
    wrap = replace(cell.backbone.wrap, **changes)
    return replace(cell, backbone=replace(cell.backbone, wrap=wrap))


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (
            with_head("gpt2_sum_sft", layout=None),
            "no layout; for generate, a head needs Layout.ENCODER_DECODER or",
        ),
        (
            with_head("gpt2_qa_sft", layout=Layout.SEPARATED),
            "SEPARATED; for extract, a head needs no layout or Layout.CHAT",
        ),
        (
            with_head("bert_sa_sft", layout=Layout.CHAT),
            "Layout.CHAT; for classify, a head needs no layout",
        ),
        (
            with_wrap("gpt2_sa_sft", after="cls_token"),
            "puts cls_token around its texts, but its tokenizer has none",
        ),
        (
            quick_cell("gpt2_sum_sft", generation=None),
            "gpt2_sum_sft generates text, so its recipe needs generation",
        ),
        (
            quick_cell("gpt2_sum_sft", max_target_length=None),
            "gpt2_sum_sft generates text, so its recipe needs max_target_length",
        ),
        (
            quick_cell("gpt2_sum_sft", max_length=256, max_target_length=27),
            "room for 27 tokens .*, but generates up to 28",
        ),
        (
            quick_cell("gpt2_sum_sft", max_length=29, max_target_length=28),
            "gpt2_sum_sft: max_length 29 leaves no room for the",
        ),
        # [CLS] and two [SEP]
        (nli("bert", max_length=3), "bert_nli_sft: max_length 3 leaves no room for the text"),
    ],
)
def test_a_cell_without_a_codec_is_refused_in_a_sentence(cell, sentence):
    with pytest.raises(InputError, match=sentence):
        cell_codec(cell)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("LlamaForCausal", "did you mean LlamaForCausalLM"),
        ("zzz", "give a class"),
        ("pipeline", "did you mean \\w*Pipeline"),  # a function, not a class
    ],
)
def test_an_unknown_architecture_is_refused_with_the_nearest(name, advice):
    with pytest.raises(InputError, match=f"unknown architecture '{name}'.*{advice}"):
        architecture(name)


# Classes: of one text or two

SEVEN_WORDS = "the bridge in dover came down ."
FIVE_WORDS = "dover has a bridge ."


@pytest.mark.parametrize(
    ("premise", "hypothesis", "segments"),
    [
        # [CLS] + the premise + [SEP], then the hypothesis + [SEP]
        (SEVEN_WORDS, FIVE_WORDS, [0] * 9 + [1] * 6),
        (FIVE_WORDS, SEVEN_WORDS, [0] * 7 + [1] * 8),
    ],
)
def test_bert_reads_and_cuts_two_texts_as_its_tokenizer_does(premise, hypothesis, segments):
    row = {"premise": premise, "hypothesis": hypothesis, "label": 2}
    for length in range(5, 17):
        codec = cell_codec(nli("bert", max_length=length))
        [feature] = codec.encode([row], training=True)
        expected = codec.tokenizer(
            premise, hypothesis, truncation="longest_first", max_length=length
        )
        assert feature.input_ids == expected["input_ids"]
    batch = codec.collate([feature])
    assert batch["token_type_ids"].tolist() == [segments]
    assert batch["labels"].tolist() == [2]


# Spans

TWICE = {
    "context": "anna was born in dover . she moved to upton . clara was born in dover .",
    "question": "where was clara born ?",
    "answers": {"text": ["dover"], "answer_start": [64]},  # the second of two
}
# The question takes 4 tokens ([CLS] when ? [SEP]), the end 1, the context 10
SHORT = {"max_length": 15, "doc_stride": 4}


def counting(tokens, answer):
    """A context of years, each one word; the answer is the year at place `answer`."""
    years = [str(1921 + i) for i in range(tokens)]
    start = len(" ".join(years[:answer])) + (answer > 0)
    return {
        "context": " ".join(years),
        "question": "when ?",
        "answers": {"text": [years[answer]], "answer_start": [start]},
    }


@pytest.mark.parametrize(
    ("tokens", "windows"),
    [
        (22, ["1921-1930", "1927-1936", "1933-1942"]),
        (24, ["1921-1930", "1927-1936", "1933-1942", "1935-1944"]),  # none is shorter
        (10, ["1921-1930"]),  # fits exactly
        (11, ["1921-1930", "1922-1931"]),
    ],
)
def test_neighbouring_windows_share_the_stride_and_the_last_reaches_the_end(tokens, windows):
    row = counting(tokens, 0)
    read = []
    for feature in get_codec("bert_qa_sft", **SHORT).encode([row], training=False):
        offsets = feature.extra.offsets
        years = row["context"][offsets[0][0] : offsets[-1][1]].split()
        assert len(years) == 10
        read.append(f"{years[0]}-{years[-1]}")
    assert read == windows


@pytest.mark.parametrize(("training", "examples"), [(True, [1]), (False, [0, 1])])
def test_rows_whose_answer_no_window_holds_are_scored_but_not_trained_on(training, examples):
    codec = get_codec("t5_qa_sft", max_length=14)  # when ? EOS + 10 years + EOS, the rest is cut
    rows = [counting(12, 11), counting(12, 9)]
    features = codec.encode(rows, training=training)
    assert [feature.example for feature in features] == examples


def test_a_question_that_leaves_no_room_for_its_context_is_refused():
    sentence = "bert_qa_sft: a question of 7 tokens leaves no room for its context in max_length 8"
    with pytest.raises(InputError, match=sentence):
        # [CLS] + 5 + [SEP], and [SEP] behind
        get_codec("bert_qa_sft", max_length=8).encode([TWICE], training=True)


def test_a_row_takes_the_best_of_its_own_windows_however_they_are_interleaved():
    codec = get_codec("bert_qa_sft", **SHORT)
    rows = [counting(16, 0), counting(16, 15)]
    # Each row: years 0-9 and 6-15, context from place 4 on
    a0, a1, b0, b1 = codec.encode(rows, training=False)
    outputs = [(1.0, 4, 4), (2.0, 13, 13), (3.0, 5, 6), (9.0, 4, 5)]
    predictions = codec.decode(rows, [b0, a0, a1, b1], outputs)
    assert [prediction.value for prediction in predictions] == ["1928 1929", "1927 1928"]


@pytest.mark.parametrize("size", [1, 2, 29, 30, 31, 70])
def test_best_span_is_what_trying_every_pair_finds(size):
    """Over contexts shorter and longer than an answer may be; of equal pairs the first one."""
    generator = torch.Generator().manual_seed(size)
    starts, ends = torch.randint(9, (2, size + 5), generator=generator).float()
    pairs = []
    for first in range(3, 3 + size):
        for last in range(first, min(first + MAX_ANSWER_TOKENS, 3 + size)):
            pairs.append((first, last))
    first, last = max(pairs, key=lambda pair: starts[pair[0]] + ends[pair[1]])
    window = Window(shift=3, offsets=[(0, 1)] * size)
    assert best_span(starts, ends, window) == (starts[first] + ends[last], first, last)


# Texts that are generated


LONG = {
    "article": "tea was served in the hall . " * 100,
    "highlights": "dover bridge collapses . " * 20,
}


@pytest.mark.parametrize(
    ("backbone", "changes", "row", "source"),
    [
        (
            "gpt2",
            {"prefix": "dover . "},
            TEA,
            "dover Ġ. Ġtea Ġwas Ġserved Ġin Ġthe Ġhall Ġ. <sum>",
        ),
        # With room for the summary
        ("gpt2", {"max_length": 33, "max_target_length": 28}, LONG, "tea Ġwas Ġserved Ġin <sum>"),
        ("bert", {"max_length": 8}, LONG, "[CLS] tea was served in the hall [SEP]"),
        ("t5", {"max_length": 7}, LONG, "▁summarize: ▁tea ▁was ▁served ▁in ▁the </s>"),
    ],
)
def test_a_source_has_its_prefix_and_special_tokens_whatever_is_cut(backbone, changes, row, source):
    codec = get_codec(f"{backbone}_sum_sft", **changes)
    [feature] = codec.encode([row], training=False)
    assert codec.tokenizer.convert_ids_to_tokens(feature.input_ids) == source.split()


@pytest.mark.parametrize("prompts", [0, 5], ids=["plain", "behind a learned prompt"])
def test_gpt2_computes_logits_only_where_some_row_has_something_to_learn(prompts):
    """Prompt tuning puts tokens in front of the text, so that places are counted from the end."""
    codec = get_codec("gpt2_sum_sft")
    model = build(codec.cell, codec.tokenizer, CPU)
    if prompts:
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prompts)
        model = peft.get_peft_model(model, config)
    model.eval()
    rows = [FIRE, LONG | {"highlights": "a bridge ."}]
    batch = codec.collate(codec.encode(rows, training=True))
    lengths = []
    model.register_forward_hook(
        lambda module, inputs, output: lengths.append(output.logits.shape[1])
    )
    whole_loss = codec.loss(model, batch)
    loss = codec.loss(model, codec.to_device(batch, CPU))
    learned_places = (batch["labels"] != IGNORED).any(0).sum()  # of both rows together
    assert lengths == [batch["labels"].shape[1] + prompts, learned_places]
    assert loss.item() == pytest.approx(whole_loss.item(), rel=1e-5)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, trained)
    whole_gradients = torch.autograd.grad(whole_loss, trained)
    torch.testing.assert_close(gradients, whole_gradients, rtol=1e-5, atol=1e-5)


def only(model, token):
    """The same model with an output layer that prefers one token whatever it has read."""
    old = model.get_output_embeddings()
    new = torch.nn.Linear(old.in_features, old.out_features)
    torch.nn.init.zeros_(new.weight)
    new.bias.data = torch.nn.functional.one_hot(torch.tensor(token), old.out_features).float()
    model.set_output_embeddings(new)
    return model.eval()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("backbone", ["bert", "gpt2", "t5"])
def test_generation_stops_at_the_end_token_or_at_max_new_tokens_and_rows_do_not_bear_on_each_other(
    backbone, beams
):
    generation = Generation(num_beams=beams, max_new_tokens=25)
    codec = get_codec(f"{backbone}_sum_sft", generation=generation)
    model = quick_model(f"{backbone}_sum_sft").eval()
    features = codec.encode([FIRE, TEA], training=False)
    [alone] = codec.predict(model, features[1:], CPU)
    assert codec.predict(model, features, CPU)[1] == alone
    end = codec.end_id
    assert codec.predict(only(model, end), features, CPU) == [[end], [end]]
    [word] = codec.ids("dover")
    assert codec.predict(only(model, word), features, CPU) == [[word] * 25] * 2
