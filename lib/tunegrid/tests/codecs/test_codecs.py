"""Which codec a cell has, and which class its architecture names."""

from dataclasses import replace

import pytest

from tunegrid.codecs.architectures import architecture
from tunegrid.errors import InputError
from tunegrid.grid.backbones import Layout
from tunegrid.run.prepare import codec_of
from tunegrid.tests.small import cell_of, tokenizer_of


@pytest.mark.parametrize(
    ("cell_id", "layout", "sentence"),
    [
        ("gpt2_sum_sft", None, "no layout; for generate, a head needs Layout.ENCODER_DECODER or Layout.SEPARATED or"),
        ("gpt2_qa_sft", Layout.SEPARATED, "Layout.SEPARATED; for extract, a head needs no layout or Layout.CHAT"),
        ("bert_sa_sft", Layout.CHAT, "Layout.CHAT; for classify, a head needs no layout"),
    ],
)
def test_a_head_without_a_codec_is_one_sentence(cell_id, layout, sentence):
    cell = cell_of(cell_id)
    with pytest.raises(InputError, match=sentence):
        codec_of(replace(cell, head=replace(cell.head, layout=layout)), tokenizer_of(cell_id))


@pytest.mark.parametrize("missing", ["generation", "max_target_length"])
@pytest.mark.parametrize("cell_id", ["bert_sum_sft", "gpt2_sum_sft"])
def test_a_recipe_that_does_not_say_how_to_generate_is_refused(cell_id, missing):
    with pytest.raises(InputError, match=f"{cell_id} generates text, so its recipe needs {missing}"):
        codec_of(cell_of(cell_id, **{missing: None}), tokenizer_of(cell_id))


def test_a_causal_recipe_that_generates_more_than_it_has_room_for_is_refused():
    changes = {"max_length": 256, "max_target_length": 27}  # all of the model's positions; texts have up to 28 tokens
    with pytest.raises(InputError, match="leaves room for 27 tokens behind a source, but generates up to 28"):
        codec_of(cell_of("gpt2_sum_sft", **changes), tokenizer_of("gpt2_sum_sft"))
    codec_of(cell_of("t5_sum_sft", max_target_length=27), tokenizer_of("t5_sum_sft"))  # the source takes no room of a text


def test_an_unknown_architecture_is_refused_with_the_nearest():
    for name, words in (("LlamaForCausal", "did you mean LlamaForCausalLM"), ("zzz", "give a class"), ("pipeline", "")):
        with pytest.raises(InputError, match=f"unknown architecture '{name}'.*{words}"):  # a pipeline is no class
            architecture(name)
