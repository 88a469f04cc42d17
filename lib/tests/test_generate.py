import math
from types import SimpleNamespace

import pytest
import torch

from lib.grid.profiles import Generation
from lib.heads.base import IGNORED
from lib.tests.small import CPU, head_for, model_of

FIRE = {"article": "shops in dover opened late . the bridge in dover came down .", "highlights": "dover bridge collapses ."}
GIFT = {"article": "tea was served in the hall .", "highlights": "fire hits dover bridge .\npolice arrest anna reed ."}
LONG = {"article": "tea was served in the hall . " * 100, "highlights": "dover bridge collapses . " * 20}
LAYOUTS = ("bert", "gpt2", "t5")


class Oracle(torch.nn.Module):
    """Knows every next token of the batch it was shown, and says so with all its weight."""

    def __init__(self, answers, vocabulary):
        super().__init__()
        self.logits = 100.0 * torch.nn.functional.one_hot(answers, vocabulary).float()

    def forward(self, **batch):
        return SimpleNamespace(logits=self.logits)


def tokens(head, ids):
    return head.tokenizer.convert_ids_to_tokens(list(ids))


def only(model, token: int):
    """The same model, whose output layer prefers one token whatever it has read."""
    old = model.get_output_embeddings()
    new = torch.nn.Linear(old.in_features, old.out_features)
    torch.nn.init.zeros_(new.weight)
    new.bias.data = torch.nn.functional.one_hot(torch.tensor(token), old.out_features).float()
    model.set_output_embeddings(new)
    return model.eval()


def test_gpt2_puts_the_separator_behind_the_article():
    head = head_for("gpt2_sum_sft")
    [feature] = head.encode([GIFT], training=True)
    assert tokens(head, feature.input_ids) == ["tea", "Ġwas", "Ġserved", "Ġin", "Ġthe", "Ġhall", "Ġ.", "<sum>"]


@pytest.mark.parametrize("training", [True, False])
def test_gpt2_keeps_the_separator_and_room_for_the_summary_of_a_very_long_article(training):
    head = head_for("gpt2_sum_sft", max_length=128, max_target_length=28)
    [feature] = head.encode([LONG], training=training)
    assert tokens(head, feature.input_ids[-1:]) == ["<sum>"]
    assert (len(feature.input_ids), len(feature.target)) == (128 - 28, 28)


@pytest.mark.parametrize(("backbone", "end"), [("bert", "[SEP]"), ("gpt2", "<|endoftext|>"), ("t5", "</s>")])
def test_a_cut_summary_keeps_its_end_token(backbone, end):
    head = head_for(f"{backbone}_sum_sft", max_target_length=6)
    [feature] = head.encode([LONG], training=True)
    assert len(feature.target) == 6
    assert tokens(head, feature.target[-1:]) == [end]


def test_gpt2_labels_are_summary_and_end_and_nothing_else():
    head = head_for("gpt2_sum_sft")
    rows = [FIRE, GIFT]
    batch = head.collate(head.encode(rows, training=True))
    for row, labels in zip(rows, batch["labels"], strict=True):
        assert head.tokenizer.decode(labels[labels != IGNORED]) == " " + row["highlights"] + "<|endoftext|>"


def test_gpt2_labels_stand_where_their_tokens_stand_right_behind_the_separator():
    head = head_for("gpt2_sum_sft")
    batch = head.collate(head.encode([FIRE, GIFT], training=True))
    counted = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][counted], batch["input_ids"][counted])
    assert int(batch["input_ids"][1][counted[1].nonzero()[0] - 1]) == head.tokenizer.convert_tokens_to_ids("<sum>")


def test_gpt2_learns_the_token_after_the_separator_first():
    head = head_for("gpt2_sum_sft")
    batch = head.collate(head.encode([FIRE, GIFT], training=True))
    oracle = Oracle(batch["input_ids"].roll(-1, dims=1), len(head.tokenizer))
    assert float(head.loss(oracle, batch)) == pytest.approx(0, abs=1e-4)


def test_gpt2_prompts_are_padded_on_the_left():
    head = head_for("gpt2_sum_sft")
    batch = head.prompt(head.encode([{"article": GIFT["article"] * 2, "highlights": ""}, GIFT], training=False))
    gap = batch["input_ids"].shape[1] - 8  # 7 words and <sum>
    assert batch["attention_mask"][1].tolist() == [0] * gap + [1] * 8
    assert set(tokens(head, batch["input_ids"][:, -1])) == {"<sum>"}


@pytest.mark.parametrize(("backbone", "start", "end"), [("bert", "[CLS]", "[SEP]"), ("t5", "<pad>", "</s>")])
def test_decoder_inputs_are_the_labels_behind_the_start_token(backbone, start, end):
    head = head_for(f"{backbone}_sum_sft")
    batch = head.collate(head.encode([FIRE, GIFT], training=True))
    short, long = batch["labels"]  # dover bridge collapses . END, and 10 words with END
    assert (tokens(head, batch["decoder_input_ids"][1][:1]), tokens(head, long[-1:])) == ([start], [end])
    assert batch["decoder_input_ids"][1, 1:].tolist() == long[:-1].tolist()
    assert batch["decoder_input_ids"][0, 1:5].tolist() == short[:4].tolist()


@pytest.mark.parametrize("backbone", ["bert", "t5"])
def test_padded_labels_are_ignored_and_the_start_token_is_not_padding(backbone):
    head = head_for(f"{backbone}_sum_sft")
    batch = head.collate(head.encode([FIRE, GIFT], training=True))
    assert batch["labels"][0, 5:].tolist() == [IGNORED] * (batch["labels"].shape[1] - 5)
    assert batch["decoder_attention_mask"][0].tolist() == [1] * 5 + [0] * (batch["labels"].shape[1] - 5)
    assert head.targets(batch) == 5 + 11


@pytest.mark.parametrize("backbone", ["bert", "t5"])
def test_the_loss_counts_every_target_token_once_and_no_padding(backbone):
    head = head_for(f"{backbone}_sum_sft")
    batch = head.collate(head.encode([FIRE, GIFT], training=True))
    size = len(head.tokenizer)
    assert float(head.loss(Oracle(batch["labels"].clamp(min=0), size), batch)) == pytest.approx(0, abs=1e-4)
    even = lambda **_: SimpleNamespace(logits=torch.zeros(*batch["labels"].shape, size))  # noqa: E731
    assert float(head.loss(even, batch)) == pytest.approx(16 * math.log(size), rel=1e-5)


def test_t5_is_told_to_summarize_whatever_is_cut():
    head = head_for("t5_sum_sft", max_length=12)
    [feature] = head.encode([LONG], training=False)
    assert len(feature.input_ids) == 12
    assert head.tokenizer.decode(feature.input_ids).startswith("summarize: ")
    assert tokens(head, feature.input_ids[-1:]) == ["</s>"]


def test_t5_reads_prefix_and_article_as_one_text():
    head = head_for("t5_sum_sft")
    [feature] = head.encode([GIFT], training=True)
    assert feature.input_ids == head.tokenizer("summarize: " + GIFT["article"])["input_ids"] + [head.end_id]


def test_bert_sources_stand_between_cls_and_sep_whatever_is_cut():
    head = head_for("bert_sum_sft", max_length=8)
    found = tokens(head, head.encode([LONG], training=False)[0].input_ids)
    assert found == ["[CLS]", "tea", "was", "served", "in", "the", "hall", "[SEP]"]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("backbone", LAYOUTS)
def test_generation_stops_at_the_end_token(backbone, beams):
    head = head_for(f"{backbone}_sum_sft", generation=Generation(num_beams=beams, max_new_tokens=6))
    model = only(model_of(f"{backbone}_sum_sft"), head.end_id)
    assert head.predict(model, head.encode([FIRE, GIFT], training=False), CPU) == [[head.end_id]] * 2


@pytest.mark.parametrize("backbone", LAYOUTS)
def test_generation_stops_at_max_new_tokens_and_not_before(backbone):
    head = head_for(f"{backbone}_sum_sft", generation=Generation(num_beams=1, max_new_tokens=25))
    [word] = head.ids("dover")
    model = only(model_of(f"{backbone}_sum_sft"), word)
    assert head.predict(model, head.encode([FIRE, GIFT], training=False), CPU) == [[word] * 25] * 2


@pytest.mark.parametrize("backbone", LAYOUTS)
def test_a_row_is_summarized_alike_alone_and_beside_a_longer_one(backbone):
    head, model = head_for(f"{backbone}_sum_sft"), model_of(f"{backbone}_sum_sft").eval()
    features = head.encode([FIRE, GIFT], training=False)
    assert head.predict(model, features, CPU)[1] == head.predict(model, features[1:], CPU)[0]


def test_summaries_are_text_without_special_tokens():
    head = head_for("t5_sum_sft")
    features = head.encode([FIRE], training=True)
    assert head.decode([FIRE], features, [features[0].target])[0].value == "dover bridge collapses ."
