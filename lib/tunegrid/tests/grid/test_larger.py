"""Larger backbones: 36 cells that no other run has, with parameters counted by hand and on the meta device."""

from dataclasses import replace

import pytest
import torch

from tunegrid.grid.backbones import BERT, Problem
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.methods import Lora
from tunegrid.grid.more_tasks import IN_PLACE, LARGER, SOURCED, larger
from tunegrid.grid.recipes import FOOTPRINT_PROFILE, FULL_PROFILE, QUICK_PROFILE, RECIPES
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.meter import parameter_counts

META = torch.device("meta")
GRID = larger()
IDS = tuple(filter(IN_PLACE["larger"].has, GRID.ids(FULL_PROFILE)))
STUDYS = {backbone.id: like.id for like, backbone in LARGER}


def studys(cell_id):
    """The cell of the study whose recipe a larger one has."""
    backbone, rest = cell_id.split("_", 1)
    return f"{STUDYS[backbone]}_{rest}"


# The grid


def test_every_backbone_has_the_studys_cells_beside_the_studys_own_and_no_quick_ones():
    assert set(IDS) == {f"{backbone}_{pair}" for backbone, like in STUDYS.items() for pair in pairs_of(like)}
    for profile, more in ((FULL_PROFILE, set(IDS)), (FOOTPRINT_PROFILE, set(IDS)), (QUICK_PROFILE, set())):
        assert set(GRID.ids(profile)) == {*STUDY_IDS, *more}
    assert not any(map(IN_PLACE["larger"].has, STUDY_IDS))


def pairs_of(backbone):
    return [cell_id.split("_", 1)[1] for cell_id in STUDY_IDS if cell_id.startswith(f"{backbone}_")]


def test_a_users_method_gets_cells_on_larger_backbones_too():
    grid = larger()
    grid.add_method(Lora(id="dora", name="DoRA", options={"use_dora": True}), like="lora")
    assert {f"{backbone}_qa_dora" for backbone in STUDYS} < set(grid.ids(FULL_PROFILE))
    assert grid.cell("t5large_qa_dora", FULL_PROFILE).recipe.trainable_params is None


@pytest.mark.parametrize("cell_id", IDS)
def test_a_recipe_is_the_studys_but_for_a_published_rate(cell_id):
    own, base = GRID.cell(cell_id, FULL_PROFILE).recipe, RECIPES[studys(cell_id)]
    published = SOURCED.get(cell_id, {})
    left_out = {"trainable_params": None, "total_params": None}
    assert replace(own, **left_out) == replace(base, **left_out | published)
    differs = cell_id == "bertlarge_sa_lora"  # whose head is not the study's exception
    assert own.learning_rate == (4e-4 if differs else base.learning_rate)
    assert not differs or GRID.cell(cell_id, FULL_PROFILE).head == BERT.heads[Problem.CLASSIFY]


# Parameters. A LoRA of rank r beside a layer of `ins` inputs and `outs` outputs has r x (ins + outs).


def lora(r, *layers):
    return sum(r * (ins + outs) for ins, outs in layers)


# BERT-large: 24 layers, 1,024 wide, 4,096 within. A layer has four square layers with biases, two of 1,024 x 4,096 with biases,
# and two norms of 2 x 1,024; the embeddings have 30,522 words, 512 places, 2 segments and a norm.
H, F, L = 1024, 4096, 24
SQUARE, WIDE = (H, H), (H, F)
BERT_LAYER = 4 * (H * H + H) + (H * F + F) + (F * H + H) + 2 * 2 * H
BERT_EMBEDDINGS = (30_522 + 512 + 2) * H + 2 * H
BERT_ENCODER = BERT_EMBEDDINGS + L * BERT_LAYER
POOLER = H * H + H
HEAD = 2 * H + 2  # a linear layer with two outputs
# BERT2BERT's decoder attends to the encoder: four more square layers and a norm in each layer. Before its output, which is the
# embedding, stand a square layer, a norm and a bias for each word.
BERT2BERT = BERT_ENCODER + POOLER + (BERT_ENCODER + L * (4 * (H * H + H) + 2 * H)) + (H * H + H + 2 * H + 30_522)
# r 16 on query, key, value and each layer named dense: 4 square and 2 wide ones in an encoder layer, 8 and 2 in a decoder
# layer; pooler.dense and transform.dense are called so, too.
BERT2BERT_LORA = lora(16, *L * [*4 * [SQUARE], *2 * [WIDE]], *L * [*8 * [SQUARE], *2 * [WIDE]], SQUARE, SQUARE)

# GPT-2-medium has the same layers: c_attn is 1,024 x 3,072; 50,257 words and 1,024 places; a last norm; a head without bias.
C_ATTN = (H, 3 * H)
GPT2_BASE = (50_257 + 1024) * H + L * BERT_LAYER + 2 * H


def t5_encoder(d, f, layers, heads):
    """32,128 words; a layer has four square layers, two of d x f and two norms of d, without biases; 32 distances a head."""
    return 32_128 * d + layers * (4 * d * d + 2 * d * f + 2 * d) + 32 * heads + d


def t5(d, f, layers, heads):
    """A decoder layer has cross-attention and its norm on top; words are shared, and the output is the embedding."""
    encoder = t5_encoder(d, f, layers, heads)
    return encoder + (encoder - 32_128 * d) + layers * (4 * d * d + d)


def t5_counts(d, f, layers, heads):
    """r 8 on q, k, v, o of the encoder for sa; on q and v for qa; r 4 and 8 on all three attentions for sum."""
    square, encoder, head = (d, d), t5_encoder(d, f, layers, heads), 2 * d + 2
    sa, qa = (lora(8, *layers * count * [square]) + head for count in (4, 2))
    full = t5(d, f, layers, heads)
    return (
        (sa, sa, encoder + head),
        (qa, qa, encoder + head),
        (*(lora(r, *3 * layers * 4 * [square]) for r in (4, 8)), full),
    )


T5_BASE, T5_LARGE = t5_counts(768, 3072, 12, 12), t5_counts(H, F, L, 16)
BY_HAND = {
    # query and value
    "bertlarge_sa": (*2 * [lora(8, *L * 2 * [SQUARE]) + HEAD], BERT_ENCODER + POOLER + HEAD),
    # LoRA: r 8 on query, value and three layers named dense, of which one is square; QLoRA: r 16 and key, too
    "bertlarge_qa": (
        lora(8, *L * [*3 * [SQUARE], *2 * [WIDE]]) + HEAD,
        lora(16, *L * [*4 * [SQUARE], *2 * [WIDE]]) + HEAD,
        BERT_ENCODER + HEAD,
    ),
    "bertlarge_sum": (BERT2BERT_LORA, BERT2BERT_LORA, BERT2BERT),
    "gpt2medium_sa": (*2 * [lora(8, *L * [C_ATTN]) + 2 * H], GPT2_BASE + 2 * H),
    "gpt2medium_qa": (*2 * [lora(8, *L * [C_ATTN]) + HEAD], GPT2_BASE + HEAD),
    "gpt2medium_sum": (*2 * [lora(8, *L * [C_ATTN])], GPT2_BASE + H),  # SFT trains the row of <sum>
    **dict(zip(("t5base_sa", "t5base_qa", "t5base_sum"), T5_BASE, strict=True)),
    **dict(zip(("t5large_sa", "t5large_qa", "t5large_sum"), T5_LARGE, strict=True)),
}


SUM_ROW = {"gpt2medium_sum_lora": H, "gpt2medium_sum_qlora": H}  # <sum>, which adapters train


@pytest.mark.parametrize("cell_id", IDS)
def test_models_train_as_many_parameters_as_worked_out(cell_id):
    cell = GRID.cell(cell_id, FOOTPRINT_PROFILE)
    model = build(cell, load_tokenizer(cell), META)
    pair, method = cell_id.rsplit("_", 1)
    expected = BY_HAND[pair][("lora", "qlora", "sft").index(method)] + SUM_ROW.get(cell_id, 0)
    counts = parameter_counts(model)
    assert counts.trainable_params == expected
    adapter = 0 if method == "sft" else sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert counts.total_params == BY_HAND[pair][2] + adapter
    assert {p.device.type for p in model.parameters()} == {"meta"}
