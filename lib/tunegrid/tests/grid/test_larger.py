"""Larger backbones: 36 cells that no other run has, with parameters counted by hand and on the meta device."""

from dataclasses import replace

import pytest
import torch

from tunegrid.grid.backbones import BERT, Problem
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.methods import Lora
from tunegrid.grid.more_tasks import LARGER, SOURCED, TRAINED, is_larger, larger
from tunegrid.grid.profiles import FOOTPRINT_PROFILE, FULL_PROFILE, QUICK_PROFILE
from tunegrid.grid.recipes import RECIPES
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.footprint import wrong_counts
from tunegrid.run.meter import ledger, parameter_counts

META = torch.device("meta")
GRID = larger()
IDS = tuple(filter(is_larger, GRID.ids(FULL_PROFILE)))
STUDYS = {backbone.id: like.id for like, backbone in LARGER}


def studys(cell_id):
    """The cell of the study whose recipe a larger one has."""
    backbone, rest = cell_id.split("_", 1)
    return f"{STUDYS[backbone]}_{rest}"


# The grid


def test_four_backbones_have_36_cells_beside_the_studys_27():
    assert len(IDS) == len(set(IDS)) == 4 * 3 * 3 == 36
    assert GRID.ids(FULL_PROFILE) == GRID.ids(FOOTPRINT_PROFILE)
    assert set(GRID.ids(FULL_PROFILE)) - set(IDS) == set(STUDY_IDS)
    assert not any(map(is_larger, STUDY_IDS))


def test_the_quick_profile_has_none_of_them():
    assert set(GRID.ids(QUICK_PROFILE)) == set(STUDY_IDS)


def test_a_users_method_gets_cells_on_larger_backbones_too():
    grid = larger()
    grid.add_method(Lora(id="dora", name="DoRA", options={"use_dora": True}), like="lora")
    assert {f"{backbone}_qa_dora" for backbone in STUDYS} < set(grid.ids(FULL_PROFILE))
    assert grid.cell("t5large_qa_dora", FULL_PROFILE).recipe.trainable_params is None


@pytest.mark.parametrize("cell_id", IDS)
def test_a_recipe_is_the_studys_but_for_a_published_rate_and_the_count(cell_id):
    own, base = GRID.cell(cell_id, FULL_PROFILE).recipe, RECIPES[studys(cell_id)]
    published = SOURCED.get(cell_id, {})
    assert own.ours == (() if cell_id in SOURCED else ("learning_rate",))
    left_out = {"trainable_params": None, "total_params": None, "from_notebook": (), "ours": ()}
    assert replace(own, **left_out) == replace(base, **left_out | published)


def test_one_rate_differs_from_the_studys_where_the_study_has_none_to_take_over():
    rates = {cell_id: GRID.cell(cell_id, FULL_PROFILE).recipe.learning_rate for cell_id in IDS}
    assert {cell_id: rate for cell_id, rate in rates.items() if rate != RECIPES[studys(cell_id)].learning_rate} == {
        "bertlarge_sa_lora": 4e-4
    }
    assert GRID.cell("bertlarge_sa_lora", FULL_PROFILE).head == BERT.heads[Problem.CLASSIFY]


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


@pytest.mark.parametrize("pair", TRAINED)
def test_trainable_parameters_worked_out_from_the_layers(pair):
    assert TRAINED[pair] == BY_HAND[pair]


def model_of(cell_id):
    cell = GRID.cell(cell_id, FOOTPRINT_PROFILE)
    return cell, build(cell, load_tokenizer(cell), META)


SUM_ROW = {"gpt2medium_sum_lora": H, "gpt2medium_sum_qlora": H}  # <sum>, which adapters train and recipes do not count


@pytest.mark.parametrize("cell_id", IDS)
def test_models_train_as_many_parameters_as_worked_out(cell_id):
    cell, model = model_of(cell_id)
    pair, method = cell_id.rsplit("_", 1)
    expected = BY_HAND[pair][("lora", "qlora", "sft").index(method)] + SUM_ROW.get(cell_id, 0)
    counts = parameter_counts(model)
    assert counts.trainable_params == expected
    assert wrong_counts(cell, model) == []
    adapter = 0 if method == "sft" else sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert counts.total_params == BY_HAND[pair][2] + adapter
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.slow
def test_models_train_the_numbers_that_were_measured_before():
    seen = {  # by an earlier prototype, with a user's file
        "bertlarge_qa": (3_147_778, 7_079_938, 334_094_338),
        "gpt2medium_sum": (787_456, 787_456, 354_824_192),
        "t5large_sum": (2_359_296, 4_718_592, 737_668_096),
    }
    methods = ("lora", "qlora", "sft")
    for pair, counts in seen.items():
        models = (model_of(f"{pair}_{method}")[1] for method in methods)
        assert tuple(parameter_counts(model).trainable_params for model in models) == counts


# Bytes. Weights that are not packed take four. NF4 packs a weight into half a byte, 64 of them have a scale of one byte, and
# 256 scales one of four bytes. Models of two layers keep the test short; at full size the first three take 312,247,888,
# 369,940,864 and 405,669,792 bytes (measured once, within 0.1 % of the formula).

TWO = {"bert": {"num_hidden_layers": 2}, "gpt2": {"n_layer": 2}, "t5": {"num_layers": 2, "num_decoder_layers": 2}}
PACKED = {  # square and wide layers of the base, but for T5's wo, which transformers keeps in fp32
    "bertlarge_qa_qlora": 2 * (4 * H * H + 2 * H * F),
    "gpt2medium_sum_qlora": 2 * (4 * H * H + 2 * H * F),
    "t5base_sum_qlora": 2 * (3 * 4 * 768 * 768 + 2 * 768 * 3072),
    "t5large_sum_qlora": 2 * (3 * 4 * H * H + 2 * H * F),
}


def packed_bytes(count):
    return count / 2 + count / 64 + 4 * count / 64 / 256


@pytest.mark.parametrize("cell_id", PACKED)
@pytest.mark.slow
def test_bytes_of_packed_weights_are_the_formulas_within_ten_percent(cell_id):
    cell = GRID.cell(cell_id, FOOTPRINT_PROFILE)
    shape = {**cell.backbone.shape, **TWO[studys(cell_id).split("_")[0]]}
    cell = replace(cell, backbone=replace(cell.backbone, shape=shape))
    model = build(cell, load_tokenizer(cell), torch.device("cpu"))
    counts, measured = parameter_counts(model), ledger(model, None, None)
    expected = packed_bytes(PACKED[cell_id]) + 4 * (counts.total_params - PACKED[cell_id])
    assert measured.weights_bytes == pytest.approx(expected, rel=0.1)
    assert measured.weights_bytes < 0.85 * 4 * counts.total_params  # the formula of weights that are not packed is another
    assert measured.checkpoint_bytes == 4 * counts.trainable_params
