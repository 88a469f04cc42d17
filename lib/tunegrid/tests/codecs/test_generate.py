"""Texts that are generated: sources and targets by hand, where logits are computed, and how a search ends."""

import peft
import pytest
import torch

from tunegrid.codecs.base import IGNORED
from tunegrid.grid.recipes import Generation
from tunegrid.run.build import build
from tunegrid.tests.small import CPU, codec_for, model_of

FIRE = {"article": "shops in dover opened late . the bridge in dover came down .", "highlights": "dover bridge collapses ."}
GIFT = {"article": "tea was served in the hall .", "highlights": "fire hits dover bridge .\npolice arrest anna reed ."}
LONG = {"article": "tea was served in the hall . " * 100, "highlights": "dover bridge collapses . " * 20}
ENDS = {"bert": "[SEP]", "gpt2": "<|endoftext|>", "t5": "</s>"}


def tokens(codec, ids):
    return codec.tokenizer.convert_ids_to_tokens(list(ids))


@pytest.mark.parametrize(
    ("backbone", "changes", "row", "source"),
    [
        ("gpt2", {"prefix": "dover . "}, GIFT, "dover Ġ. Ġtea Ġwas Ġserved Ġin Ġthe Ġhall Ġ. <sum>"),
        ("gpt2", {"max_length": 33, "max_target_length": 28}, LONG, "tea Ġwas Ġserved Ġin <sum>"),  # with room for the summary
        ("bert", {"max_length": 8}, LONG, "[CLS] tea was served in the hall [SEP]"),
        ("t5", {"max_length": 7}, LONG, "▁summarize: ▁tea ▁was ▁served ▁in ▁the </s>"),
    ],
)
def test_a_source_has_its_prefix_and_special_tokens_whatever_is_cut(backbone, changes, row, source):
    codec = codec_for(f"{backbone}_sum_sft", **changes)
    assert tokens(codec, codec.encode([row], training=False)[0].input_ids) == source.split()


@pytest.mark.parametrize("backbone", ENDS)
def test_a_cut_summary_keeps_its_end_token(backbone):
    codec = codec_for(f"{backbone}_sum_sft", max_target_length=6, generation=Generation(num_beams=1, max_new_tokens=6))
    [feature] = codec.encode([LONG], training=True)
    assert (len(feature.target), tokens(codec, feature.target[-1:])) == (6, [ENDS[backbone]])


@pytest.mark.parametrize("prompts", [0, 5], ids=["plain", "behind a learned prompt"])
def test_gpt2_computes_logits_only_where_some_row_has_something_to_learn(prompts):
    """Prompt tuning puts tokens in front of the text, so that places are counted from the end."""
    codec = codec_for("gpt2_sum_sft")
    model = build(codec.cell, codec.tokenizer, CPU)
    if prompts:
        model = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prompts))
    model.eval()
    batch = codec.collate(codec.encode([FIRE, {"article": LONG["article"], "highlights": "a bridge ."}], training=True))
    shapes = []
    handle = model.register_forward_hook(lambda module, inputs, output: shapes.append(output.logits.shape[1]))
    losses = [codec.loss(model, rows) for rows in (batch, codec.placed(batch, CPU))]
    handle.remove()
    assert shapes == [batch["labels"].shape[1] + prompts, (batch["labels"] != IGNORED).any(0).sum()]  # of both rows together
    trained = [p for p in model.parameters() if p.requires_grad]
    whole, some = (torch.autograd.grad(loss, trained) for loss in losses)
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(whole, some, strict=True))


def only(model, token):
    """The same model with an output layer that prefers one token whatever it has read."""
    old = model.get_output_embeddings()
    new = torch.nn.Linear(old.in_features, old.out_features)
    torch.nn.init.zeros_(new.weight)
    new.bias.data = torch.nn.functional.one_hot(torch.tensor(token), old.out_features).float()
    model.set_output_embeddings(new)
    return model.eval()


@pytest.mark.parametrize(("beams", "cap", "word"), [(1, 6, None), (3, 6, None), (1, 25, "dover")])
@pytest.mark.parametrize("backbone", ENDS)
def test_generation_stops_at_the_end_token_or_at_max_new_tokens_and_rows_do_not_bear_on_each_other(backbone, beams, cap, word):
    codec = codec_for(f"{backbone}_sum_sft", generation=Generation(num_beams=beams, max_new_tokens=cap))
    model, features = model_of(f"{backbone}_sum_sft").eval(), codec.encode([FIRE, GIFT], training=False)
    assert codec.predict(model, features, CPU)[1] == codec.predict(model, features[1:], CPU)[0]
    [token] = codec.ids(word) if word else [codec.end_id]
    assert codec.predict(only(model, token), features, CPU) == [[token] * (cap if word else 1)] * 2
