import math
from dataclasses import replace
from types import SimpleNamespace

import peft
import pytest
import torch

from tunegrid.codecs.base import IGNORED
from tunegrid.errors import InputError
from tunegrid.grid.recipes import Generation
from tunegrid.grid.tasks import SUM
from tunegrid.run.build import build
from tunegrid.run.prepare import codec_of
from tunegrid.tests.small import CPU, cell_of, codec_for, model_of, tokenizer_of

FIRE = {"article": "shops in dover opened late . the bridge in dover came down .", "highlights": "dover bridge collapses ."}
GIFT = {"article": "tea was served in the hall .", "highlights": "fire hits dover bridge .\npolice arrest anna reed ."}
LONG = {"article": "tea was served in the hall . " * 100, "highlights": "dover bridge collapses . " * 20}
LAYOUTS = ("bert", "gpt2", "t5")


class Oracle(torch.nn.Module):
    """Gives all its weight to the true next token, at every place of the batch it was shown."""

    def __init__(self, answers, vocabulary):
        super().__init__()
        self.logits = 100.0 * torch.nn.functional.one_hot(answers, vocabulary).float()

    def forward(self, **batch):
        return SimpleNamespace(logits=self.logits)


def tokens(codec, ids):
    return codec.tokenizer.convert_ids_to_tokens(list(ids))


def only(model, token: int):
    """The same model with an output layer that prefers one token whatever it has read."""
    old = model.get_output_embeddings()
    new = torch.nn.Linear(old.in_features, old.out_features)
    torch.nn.init.zeros_(new.weight)
    new.bias.data = torch.nn.functional.one_hot(torch.tensor(token), old.out_features).float()
    model.set_output_embeddings(new)
    return model.eval()


@pytest.mark.parametrize(
    ("backbone", "changes", "row", "source"),
    [
        ("gpt2", {}, GIFT, "tea Ġwas Ġserved Ġin Ġthe Ġhall Ġ. <sum>"),
        ("gpt2", {"prefix": "dover . "}, GIFT, "dover Ġ. Ġtea Ġwas Ġserved Ġin Ġthe Ġhall Ġ. <sum>"),
        ("bert", {"max_length": 8}, LONG, "[CLS] tea was served in the hall [SEP]"),
    ],
)
def test_a_source_has_its_prefix_and_special_tokens_whatever_is_cut(backbone, changes, row, source):
    codec = codec_for(f"{backbone}_sum_sft", **changes)
    assert tokens(codec, codec.encode([row], training=False)[0].input_ids) == source.split()


def test_t5_is_told_to_summarize_whatever_is_cut():
    whole, cut = codec_for("t5_sum_sft"), codec_for("t5_sum_sft", max_length=12)
    [feature] = whole.encode([GIFT], training=True)
    assert feature.input_ids == whole.tokenizer("summarize: " + GIFT["article"])["input_ids"] + [whole.end_id]
    [feature] = cut.encode([LONG], training=False)
    assert len(feature.input_ids) == 12
    assert cut.tokenizer.decode(feature.input_ids).startswith("summarize: ")
    assert feature.input_ids[-1] == cut.end_id


@pytest.mark.parametrize("training", [True, False])
def test_gpt2_keeps_the_separator_and_room_for_the_summary_of_a_very_long_article(training):
    codec = codec_for("gpt2_sum_sft", max_length=128, max_target_length=28)
    [feature] = codec.encode([LONG], training=training)
    assert tokens(codec, feature.input_ids[-1:]) == ["<sum>"]
    assert (len(feature.input_ids), len(feature.target)) == (128 - 28, 28)


@pytest.mark.parametrize(("backbone", "end"), [("bert", "[SEP]"), ("gpt2", "<|endoftext|>"), ("t5", "</s>")])
def test_a_cut_summary_keeps_its_end_token(backbone, end):
    codec = codec_for(f"{backbone}_sum_sft", max_target_length=6, generation=Generation(num_beams=1, max_new_tokens=6))
    [feature] = codec.encode([LONG], training=True)
    assert len(feature.target) == 6
    assert tokens(codec, feature.target[-1:]) == [end]


def test_gpt2_labels_are_summary_and_end_right_behind_the_separator_and_nothing_else():
    codec, rows = codec_for("gpt2_sum_sft"), [FIRE, GIFT]
    batch = codec.collate(codec.encode(rows, training=True))
    counted = batch["labels"] != IGNORED
    for row, labels in zip(rows, batch["labels"], strict=True):
        assert codec.tokenizer.decode(labels[labels != IGNORED]) == " " + row["highlights"] + "<|endoftext|>"
    assert torch.equal(batch["labels"][counted], batch["input_ids"][counted])
    assert int(batch["input_ids"][1][counted[1].nonzero()[0] - 1]) == codec.tokenizer.convert_tokens_to_ids("<sum>")


def test_gpt2_learns_the_token_after_the_separator_first():
    codec = codec_for("gpt2_sum_sft")
    batch = codec.collate(codec.encode([FIRE, GIFT], training=True))
    oracle = Oracle(batch["input_ids"].roll(-1, dims=1), len(codec.tokenizer))
    assert float(codec.loss(oracle, batch)) == pytest.approx(0, abs=1e-4)


def test_gpt2_computes_logits_only_where_some_row_has_something_to_learn():
    codec, model = codec_for("gpt2_sum_sft"), model_of("gpt2_sum_sft").eval()
    batch = codec.collate(codec.encode([FIRE, {"article": LONG["article"], "highlights": "a bridge ."}], training=True))
    placed = codec.placed(batch, CPU)
    positions = (batch["labels"] != IGNORED).any(0).sum()  # of both rows together
    shapes = []
    handle = model.register_forward_hook(lambda module, inputs, output: shapes.append(output.logits.shape[1]))
    losses = [codec.loss(model, rows) for rows in (batch, placed)]
    handle.remove()
    assert shapes == [batch["labels"].shape[1], positions]
    whole, some = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(whole, some, strict=True))


def test_the_logits_that_are_kept_are_those_of_the_labels_whoever_set_them():
    """Labels that stand in the prompt, too, are learned: a fault may set them, and must not be mended unseen."""
    codec, model = codec_for("gpt2_sum_sft"), model_of("gpt2_sum_sft").eval()
    batch = codec.collate(codec.encode([FIRE, GIFT], training=True))
    batch["labels"] = batch["input_ids"].clone()
    losses = [codec.loss(model, rows).item() for rows in (batch, codec.placed(batch, CPU))]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_logits_are_kept_at_the_same_places_behind_a_learned_prompt(kind):
    """Prompt tuning puts tokens in front of the text, so that places are counted from the end."""
    codec = codec_for("gpt2_sum_sft")
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = peft.get_peft_model(build(codec.cell, codec.tokenizer, CPU), config).eval()
    batch = codec.collate(codec.encode([FIRE, GIFT], training=True))
    whole, some = (codec.loss(model, rows).item() for rows in (batch, codec.placed(batch, CPU)))
    assert some == pytest.approx(whole, rel=1e-5)


def test_a_model_that_computes_all_logits_has_the_same_loss():
    codec = codec_for("gpt2_sum_sft")
    placed = codec.placed(codec.collate(codec.encode([FIRE, GIFT], training=True)), CPU)
    oracle = Oracle(placed["input_ids"].roll(-1, dims=1), len(codec.tokenizer))
    assert float(codec.loss(oracle, placed)) == pytest.approx(0, abs=1e-4)


def test_gpt2_prompts_are_padded_on_the_left():
    codec = codec_for("gpt2_sum_sft")
    batch = codec.prompt(codec.encode([{"article": GIFT["article"] * 2, "highlights": ""}, GIFT], training=False))
    gap = batch["input_ids"].shape[1] - 8  # 7 words and <sum>
    assert batch["attention_mask"][1].tolist() == [0] * gap + [1] * 8
    assert set(tokens(codec, batch["input_ids"][:, -1])) == {"<sum>"}


@pytest.mark.parametrize(("backbone", "start", "end"), [("bert", "[CLS]", "[SEP]"), ("t5", "<pad>", "</s>")])
def test_decoder_inputs_are_the_labels_behind_the_start_token(backbone, start, end):
    codec = codec_for(f"{backbone}_sum_sft")
    batch = codec.collate(codec.encode([FIRE, GIFT], training=True))
    short, long = batch["labels"]  # dover bridge collapses . END, and 10 words with END
    assert (tokens(codec, batch["decoder_input_ids"][1][:1]), tokens(codec, long[-1:])) == ([start], [end])
    assert batch["decoder_input_ids"][1, 1:].tolist() == long[:-1].tolist()
    assert batch["decoder_input_ids"][0, 1:5].tolist() == short[:4].tolist()


@pytest.mark.parametrize("backbone", ["bert", "t5"])
def test_padded_labels_are_ignored_and_the_start_token_is_not_padding(backbone):
    codec = codec_for(f"{backbone}_sum_sft")
    batch = codec.collate(codec.encode([FIRE, GIFT], training=True))
    assert batch["labels"][0, 5:].tolist() == [IGNORED] * (batch["labels"].shape[1] - 5)
    assert batch["decoder_attention_mask"][0].tolist() == [1] * 5 + [0] * (batch["labels"].shape[1] - 5)
    assert codec.targets(batch) == 5 + 11


@pytest.mark.parametrize("backbone", ["bert", "t5"])
def test_the_loss_counts_every_target_token_once_and_no_padding(backbone):
    codec = codec_for(f"{backbone}_sum_sft")
    batch = codec.collate(codec.encode([FIRE, GIFT], training=True))
    size = len(codec.tokenizer)
    assert float(codec.loss(Oracle(batch["labels"].clamp(min=0), size), batch)) == pytest.approx(0, abs=1e-4)
    even = lambda **_: SimpleNamespace(logits=torch.zeros(*batch["labels"].shape, size))  # noqa: E731
    assert float(codec.loss(even, batch)) == pytest.approx(16 * math.log(size), rel=1e-5)


@pytest.mark.parametrize(("beams", "cap", "word"), [(1, 6, None), (3, 6, None), (1, 25, "dover")])
@pytest.mark.parametrize("backbone", LAYOUTS)
def test_generation_stops_at_the_end_token_or_at_max_new_tokens(backbone, beams, cap, word):
    codec = codec_for(f"{backbone}_sum_sft", generation=Generation(num_beams=beams, max_new_tokens=cap))
    [token] = codec.ids(word) if word else [codec.end_id]
    texts = codec.predict(only(model_of(f"{backbone}_sum_sft"), token), codec.encode([FIRE, GIFT], training=False), CPU)
    assert texts == [[token] * (cap if word else 1)] * 2


@pytest.mark.parametrize("backbone", LAYOUTS)
def test_a_row_is_summarized_alike_alone_and_beside_a_longer_one(backbone):
    codec, model = codec_for(f"{backbone}_sum_sft"), model_of(f"{backbone}_sum_sft").eval()
    features = codec.encode([FIRE, GIFT], training=False)
    assert codec.predict(model, features, CPU)[1] == codec.predict(model, features[1:], CPU)[0]


def test_summaries_are_text_without_special_tokens():
    codec = codec_for("t5_sum_sft")
    features = codec.encode([FIRE], training=True)
    assert codec.decode([FIRE], features, [features[0].target])[0].value == "dover bridge collapses ."


@pytest.mark.parametrize("backbone", LAYOUTS)
def test_any_columns_may_hold_text_and_target(backbone):
    columns = {"head": str, "body": str, "gist": str}
    task, cell_id = replace(SUM, columns=columns, text=("head", "body"), target="gist"), f"{backbone}_sum_sft"
    codec = codec_of(replace(cell_of(cell_id), task=task), tokenizer_of(cell_id))
    [feature] = codec.encode([{"head": "dover", "body": FIRE["article"], "gist": FIRE["highlights"]}], training=True)
    [wanted] = codec_for(cell_id).encode([FIRE | {"article": "dover\n" + FIRE["article"]}], training=True)
    assert feature == wanted


def test_a_length_that_leaves_no_room_beside_the_summary_is_refused():
    with pytest.raises(InputError, match="gpt2_sum_sft: max_length 29 leaves no room for the text"):
        codec_for("gpt2_sum_sft", max_length=29, max_target_length=28)


@pytest.mark.parametrize("backbone", LAYOUTS)
def test_an_output_that_stopped_at_the_limit_has_not_ended(backbone):
    codec = codec_for(f"{backbone}_sum_sft")
    word = codec.ids("dover")
    assert [codec.ended(output) for output in ([*word, codec.end_id], word, [])] == [True, False, False]
