import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from tunegrid.codecs.classify import longest_first
from tunegrid.errors import InputError
from tunegrid.grid.tasks import Problem, Task
from tunegrid.run.prepare import codec_of
from tunegrid.tests.small import CPU, cell_of, codec_for, tokenizer_of

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


@pytest.mark.parametrize("backbone", ["bert", "gpt2", "t5"])
def test_padding_is_on_the_right_and_masked(backbone):
    codec = codec_for(f"{backbone}_sa_sft")
    batch = codec.collate(codec.encode([LAMP, CABLE], training=True))
    length = len(codec.encode([CABLE], training=True)[0].input_ids)
    assert batch["attention_mask"][1].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
    assert set(batch["input_ids"][1, length:].tolist()) == {codec.pad_id}
    assert batch["labels"].tolist() == [1, 0]


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


def test_what_a_text_cannot_be_put_into_is_refused():
    with pytest.raises(InputError, match="bert_nli_sft: max_length 3 leaves no room for the text"):
        nli_codec("bert", max_length=3)  # [CLS] and two [SEP]
    cell = cell_of("gpt2_sa_sft")
    cell = replace(cell, backbone=replace(cell.backbone, wrap=replace(cell.backbone.wrap, after="cls_token")))
    with pytest.raises(InputError, match="puts cls_token around its texts, but its tokenizer has none"):
        codec_of(cell, tokenizer_of("gpt2_sa_sft"))
