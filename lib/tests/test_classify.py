import math
from types import SimpleNamespace

import pytest
import torch

from lib.tests.small import CPU, codec_for, model_of

LAMP = {"label": 1, "title": "my lamp", "content": "the lamp is great . it is great ."}
CABLE = {"label": 0, "title": "", "content": "poor cable ."}


class Undecided(torch.nn.Module):
    def forward(self, input_ids, **rest):
        return SimpleNamespace(logits=torch.zeros(len(input_ids), 2))


def tokens(codec, feature):
    return codec.tokenizer.convert_ids_to_tokens(feature.input_ids)


def test_bert_reads_the_content_and_keeps_its_special_tokens_when_cut():
    codec = codec_for("bert_sa_sft", max_length=6)
    assert tokens(codec, codec.encode([LAMP], training=True)[0]) == ["[CLS]", "the", "lamp", "is", "great", "[SEP]"]


def test_gpt2_reads_title_and_content_without_special_tokens():
    codec = codec_for("gpt2_sa_sft", max_length=6)
    assert tokens(codec, codec.encode([LAMP], training=True)[0]) == ["my", "Ġlamp", "Ċ", "the", "Ġlamp", "Ġis"]


def test_t5_reads_title_and_content_and_its_end_token_survives_the_cut():
    codec = codec_for("t5_sa_sft", max_length=6)
    assert tokens(codec, codec.encode([LAMP], training=True)[0]) == ["▁my", "▁lamp", "▁the", "▁lamp", "▁is", "</s>"]


def test_an_empty_title_leaves_no_line_break():
    codec = codec_for("gpt2_sa_sft")
    assert codec.text(CABLE) == "poor cable ."
    assert codec.text(LAMP) == "my lamp\nthe lamp is great . it is great ."


def test_a_short_text_is_not_padded_before_the_batch():
    codec = codec_for("bert_sa_sft")
    assert len(codec.encode([CABLE], training=True)[0].input_ids) == 5  # [CLS] poor cable . [SEP]


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
