import math
from types import SimpleNamespace

import pytest
import torch

from lib.tests.small import CPU, head_for, model_of

LAMP = {"label": 1, "title": "my lamp", "content": "the lamp is great . it is great ."}
CABLE = {"label": 0, "title": "", "content": "poor cable ."}


class Undecided(torch.nn.Module):
    def forward(self, input_ids, **rest):
        return SimpleNamespace(logits=torch.zeros(len(input_ids), 2))


def tokens(head, feature):
    return head.tokenizer.convert_ids_to_tokens(feature.input_ids)


def test_bert_reads_the_content_and_keeps_its_special_tokens_when_cut():
    head = head_for("bert_sa_sft", max_length=6)
    assert tokens(head, head.encode([LAMP], training=True)[0]) == ["[CLS]", "the", "lamp", "is", "great", "[SEP]"]


def test_gpt2_reads_title_and_content_without_special_tokens():
    head = head_for("gpt2_sa_sft", max_length=6)
    assert tokens(head, head.encode([LAMP], training=True)[0]) == ["my", "Ġlamp", "Ċ", "the", "Ġlamp", "Ġis"]


def test_t5_reads_title_and_content_and_its_end_token_survives_the_cut():
    head = head_for("t5_sa_sft", max_length=6)
    assert tokens(head, head.encode([LAMP], training=True)[0]) == ["▁my", "▁lamp", "▁the", "▁lamp", "▁is", "</s>"]


def test_an_empty_title_leaves_no_line_break():
    head = head_for("gpt2_sa_sft")
    assert head.text(CABLE) == "poor cable ."
    assert head.text(LAMP) == "my lamp\nthe lamp is great . it is great ."


def test_a_short_text_is_not_padded_before_the_batch():
    head = head_for("bert_sa_sft")
    assert len(head.encode([CABLE], training=True)[0].input_ids) == 5  # [CLS] poor cable . [SEP]


@pytest.mark.parametrize("backbone", ["bert", "gpt2", "t5"])
def test_padding_is_on_the_right_and_masked(backbone):
    head = head_for(f"{backbone}_sa_sft")
    batch = head.collate(head.encode([LAMP, CABLE], training=True))
    length = len(head.encode([CABLE], training=True)[0].input_ids)
    assert batch["attention_mask"][1].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
    assert set(batch["input_ids"][1, length:].tolist()) == {head.pad_id}
    assert batch["labels"].tolist() == [1, 0]


@pytest.mark.parametrize("cell_id", ["bert_sa_lora", "bert_sa_sft", "gpt2_sa_sft", "t5_sa_sft"])
def test_padding_does_not_change_the_logits(cell_id):
    head, model = head_for(cell_id), model_of(cell_id).eval()
    long, short = head.encode([LAMP, CABLE], training=False)
    inputs = [{k: v for k, v in head.collate(features).items() if k != "labels"} for features in ([long, short], [short])]
    with torch.inference_mode():
        padded, alone = (model(**batch).logits[-1] for batch in inputs)
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_the_loss_is_summed_over_rows():
    head = head_for("bert_sa_sft")
    batch = head.collate(head.encode([LAMP, CABLE, LAMP], training=True))
    assert head.targets(batch) == 3
    assert float(head.loss(Undecided(), batch)) == pytest.approx(3 * math.log(2))


def test_predictions_are_the_label_and_its_loss_a_row():
    head = head_for("gpt2_sa_sft")
    rows = [LAMP, CABLE]
    features = head.encode(rows, training=False)
    predictions = head.decode(rows, features, head.predict(Undecided(), features, CPU))
    assert [p.value for p in predictions] == [0, 0]
    assert [p.loss for p in predictions] == pytest.approx([math.log(2)] * 2)
