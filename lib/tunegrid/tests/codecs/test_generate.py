import peft
import pytest
import torch

from tunegrid.codecs.base import IGNORED
from tunegrid.errors import InputError
from tunegrid.grid.recipes import Generation
from tunegrid.run.build import build
from tunegrid.tests.small import CPU, codec_for, model_of

FIRE = {"article": "shops in dover opened late . the bridge in dover came down .", "highlights": "dover bridge collapses ."}
GIFT = {"article": "tea was served in the hall .", "highlights": "fire hits dover bridge .\npolice arrest anna reed ."}
LONG = {"article": "tea was served in the hall . " * 100, "highlights": "dover bridge collapses . " * 20}
LAYOUTS = ("bert", "gpt2", "t5")


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


def test_logits_are_kept_at_the_same_places_behind_a_learned_prompt():
    """Prompt tuning puts tokens in front of the text, so that places are counted from the end."""
    codec = codec_for("gpt2_sum_sft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = peft.get_peft_model(build(codec.cell, codec.tokenizer, CPU), config).eval()
    batch = codec.collate(codec.encode([FIRE, GIFT], training=True))
    whole, some = (codec.loss(model, rows).item() for rows in (batch, codec.placed(batch, CPU)))
    assert some == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(("backbone", "start", "end"), [("bert", "[CLS]", "[SEP]"), ("t5", "<pad>", "</s>")])
def test_decoder_inputs_are_the_labels_behind_the_start_token(backbone, start, end):
    codec = codec_for(f"{backbone}_sum_sft")
    batch = codec.collate(codec.encode([FIRE, GIFT], training=True))
    short, long = batch["labels"]  # dover bridge collapses . END, and 10 words with END
    assert (tokens(codec, batch["decoder_input_ids"][1][:1]), tokens(codec, long[-1:])) == ([start], [end])
    assert batch["decoder_input_ids"][1, 1:].tolist() == long[:-1].tolist()
    assert batch["decoder_input_ids"][0, 1:5].tolist() == short[:4].tolist()


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


def test_a_length_that_leaves_no_room_beside_the_summary_is_refused():
    with pytest.raises(InputError, match="gpt2_sum_sft: max_length 29 leaves no room for the text"):
        codec_for("gpt2_sum_sft", max_length=29, max_target_length=28)
