import math
from dataclasses import replace
from itertools import product
from random import Random
from types import SimpleNamespace

import pytest
import torch

from tunegrid.codecs.base import SyntheticTokenizer
from tunegrid.codecs.classify import longest_first
from tunegrid.errors import InputError
from tunegrid.grid.tasks import Problem, Task
from tunegrid.run.prepare import codec_of
from tunegrid.tests.small import CPU, cell_of, codec_for, model_of, tokenizer_of

NLI = Task(
    id="nli",
    name="inference",
    problem=Problem.CLASSIFY,
    dataset="somebody/nli",
    columns={"premise": str, "hypothesis": str, "gold": int},
    text=("premise",),
    text_pair=("hypothesis",),
    target="gold",
    labels=("entailment", "neutral", "contradiction"),
    validation="validation",
    test="test",
    main_score="accuracy",
    bounded_scores=("accuracy",),
)
PAIR = {"premise": "the bridge in dover came down .", "hypothesis": "dover has a bridge .", "gold": 2}

LAMP = {"label": 1, "title": "my lamp", "content": "the lamp is great . it is great ."}
CABLE = {"label": 0, "title": "", "content": "poor cable ."}


class Undecided(torch.nn.Module):
    def forward(self, input_ids, **rest):
        return SimpleNamespace(logits=torch.zeros(len(input_ids), 2))


@pytest.mark.parametrize(
    ("cell_id", "tokens"),
    [
        ("bert_sa_sft", "[CLS] the lamp is great [SEP]"),
        ("gpt2_sa_sft", "my Ġlamp Ċ the Ġlamp Ġis"),
        ("t5_sa_sft", "▁my ▁lamp ▁the ▁lamp ▁is </s>"),
    ],
)
def test_the_studys_columns_are_read_and_special_tokens_survive_the_cut(cell_id, tokens):
    codec = codec_for(cell_id, max_length=6)
    [feature] = codec.encode([LAMP], training=True)
    assert codec.tokenizer.convert_ids_to_tokens(feature.input_ids) == tokens.split()


def test_an_empty_title_leaves_no_line_break():
    codec = codec_for("gpt2_sa_sft")
    assert codec.text(CABLE) == "poor cable ."
    assert codec.text(LAMP) == "my lamp\nthe lamp is great . it is great ."
    assert nli_codec("gpt2", prefix="dover : ").text(PAIR) == "dover : the bridge in dover came down ."


@pytest.mark.parametrize("backbone", ["bert", "gpt2", "t5"])
def test_padding_is_on_the_right_and_masked(backbone):
    codec = codec_for(f"{backbone}_sa_sft")
    batch = codec.collate(codec.encode([LAMP, CABLE], training=True))
    length = len(codec.encode([CABLE], training=True)[0].input_ids)
    assert batch["attention_mask"][1].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
    assert set(batch["input_ids"][1, length:].tolist()) == {codec.pad_id}
    assert batch["labels"].tolist() == [1, 0]


@pytest.mark.parametrize("cell_id", ["bert_sa_lora", "bert_sa_sft", "gpt2_sa_sft", "t5_sa_sft"])
def test_padding_does_not_change_the_logits(cell_id):
    codec, model = codec_for(cell_id), model_of(cell_id).eval()
    long, short = codec.encode([LAMP, CABLE], training=False)
    inputs = [{k: v for k, v in codec.collate(features).items() if k != "labels"} for features in ([long, short], [short])]
    with torch.inference_mode():
        padded, alone = (model(**batch).logits[-1] for batch in inputs)
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_the_loss_is_summed_over_rows():
    codec = codec_for("bert_sa_sft")
    batch = codec.collate(codec.encode([LAMP, CABLE, LAMP], training=True))
    assert codec.targets(batch) == 3
    assert float(codec.loss(Undecided(), batch)) == pytest.approx(3 * math.log(2))


def test_predictions_are_the_label_and_its_loss_a_row():
    codec = codec_for("gpt2_sa_sft")
    rows = [LAMP, CABLE]
    features = codec.encode(rows, training=False)
    predictions = codec.decode(rows, features, codec.predict(Undecided(), features, CPU))
    assert [p.value for p in predictions] == [0, 0]
    assert [p.loss for p in predictions] == pytest.approx([math.log(2)] * 2)


# Any task: two texts, three labels, columns of other names


def nli_codec(backbone, **changes):
    """The codec of a review cell, given the inference task."""
    cell_id = f"{backbone}_sa_sft"
    return codec_of(replace(cell_of(cell_id, text=(), **changes), task=NLI), tokenizer_of(cell_id))


def test_bert_reads_two_texts_as_its_tokenizer_writes_them():
    codec = nli_codec("bert")
    [feature] = codec.encode([PAIR], training=True)
    assert feature.input_ids == codec.tokenizer(PAIR["premise"], PAIR["hypothesis"])["input_ids"]
    # [CLS] + 7 + [SEP], then 5 + [SEP]
    assert codec.collate([feature])["token_type_ids"].tolist() == [[0] * 9 + [1] * 6]
    assert codec.collate([feature])["labels"].tolist() == [2]


@pytest.mark.parametrize(("backbone", "wanted"), [("gpt2", "dover<|endoftext|>bridge"), ("t5", "dover</s>bridge</s>")])
def test_backbones_without_segments_tell_two_texts_apart_by_the_separator(backbone, wanted):
    codec = nli_codec(backbone)
    [feature] = codec.encode([{"premise": "dover", "hypothesis": "bridge", "gold": 0}], training=True)
    assert codec.tokenizer.decode(feature.input_ids, skip_special_tokens=False).replace(" ", "") == wanted
    assert "token_type_ids" not in codec.collate([feature])


@pytest.mark.parametrize("max_length", range(5, 17))
@pytest.mark.parametrize("swapped", [False, True])
def test_two_texts_are_cut_as_the_tokenizer_cuts_them(max_length, swapped):
    codec = nli_codec("bert", max_length=max_length)
    pair = [PAIR["premise"], PAIR["hypothesis"]][:: -1 if swapped else 1]
    [feature] = codec.encode([{"premise": pair[0], "hypothesis": pair[1], "gold": 0}], training=False)
    assert feature.input_ids == codec.tokenizer(*pair, truncation="longest_first", max_length=max_length)["input_ids"]


def test_the_longer_text_is_cut_first_and_no_room_is_wasted():
    for first, second, room, kept in (
        (3, 4, 7, (3, 4)),
        (3, 9, 8, (3, 5)),
        (9, 3, 8, (5, 3)),
        (9, 8, 7, (4, 3)),
        (8, 9, 7, (3, 4)),
    ):
        assert longest_first(first, second, room) == kept
    for first, second, room in product(range(8), range(8), range(1, 14)):
        kept, other = longest_first(first, second, room)
        assert kept + other == min(room, first + second)
        assert (kept <= first, other <= second) == (True, True)


def test_padding_two_texts_does_not_change_the_logits_of_three_labels():
    codec, model = nli_codec("bert"), model_of("bert_sa_sft").eval()
    model.classifier = torch.nn.Linear(model.config.hidden_size, 3)
    longer = PAIR | {"premise": PAIR["premise"] * 2, "gold": 1}
    rows = [longer, PAIR]
    features = codec.encode(rows, training=False)
    beside = codec.decode(rows, features, codec.predict(model, features, CPU))[1]
    alone = codec.decode(rows[1:], features[1:], codec.predict(model, features[1:], CPU))[0]
    assert beside.value == alone.value in range(3)
    assert beside.loss == pytest.approx(alone.loss, abs=1e-5)


def test_synthetic_pairs_fill_the_length_and_have_every_label():
    cell = replace(cell_of("bert_sa_sft", text=(), max_length=21), task=NLI)
    codec, rng = codec_of(cell, SyntheticTokenizer(cell.backbone)), Random(0)
    features = [codec.synthetic(rng) for _ in range(30)]
    assert {len(feature.input_ids) for feature in features} == {21}
    assert {feature.extra for feature in features} == {1 + 9 + 1}  # [CLS], half of 18, [SEP]
    assert {feature.target for feature in features} == {0, 1, 2}


def test_what_a_text_cannot_be_put_into_is_refused():
    with pytest.raises(InputError, match="bert_nli_sft: max_length 3 leaves no room for the text"):
        nli_codec("bert", max_length=3)  # [CLS] and two [SEP]
    cell = cell_of("gpt2_sa_sft")
    cell = replace(cell, backbone=replace(cell.backbone, wrap=replace(cell.backbone.wrap, after="cls_token")))
    with pytest.raises(InputError, match="puts cls_token around its texts, but its tokenizer has none"):
        codec_of(cell, tokenizer_of("gpt2_sa_sft"))
