"""The 27 recipes against their architectures at full size: built on the meta device, without weights or a download."""

from functools import cache

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from tunegrid.grid.backbones import BACKBONES
from tunegrid.grid.cells import STUDY, STUDY_IDS
from tunegrid.grid.recipes import FOOTPRINT_PROFILE, RECIPES
from tunegrid.grid.zoo import zoo
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.meter import parameter_counts

CELLS = {cell.id: cell for cell in STUDY.cells(FOOTPRINT_PROFILE)}
QLORA = [cell_id for cell_id in STUDY_IDS if cell_id.endswith("qlora")]
META = torch.device("meta")
SUM_ROW = 768  # the embedding of <sum>, which GPT-2's adapters train beside what the study counted
# What the study gives no figure for. T5's encoder is 35,330,816: the embedding 32,128 x 512, six layers of
# 4 x 512 x 512 + 2 x 512 x 2048 + 2 x 512, one table of 32 x 8 positions, one last norm of 512. Its new linear layer has
# 512 x 2 + 2 = 1,026. Adapters on q, k, v, o of rank r: 6 layers x 4 x r x (512 + 512) = 24,576 r.
T5_ENCODER = 32_128 * 512 + 6 * (4 * 512 * 512 + 2 * 512 * 2048 + 2 * 512) + 32 * 8 + 512
UNSAID = {
    "t5_sa_lora": 24_576 * 8 + 1_026,
    "t5_sa_qlora": 24_576 * 8 + 1_026,
    "t5_sa_sft": T5_ENCODER + 1_026,
    "t5_qa_lora": 24_576 * 4 + 1_026,
    "t5_qa_qlora": 24_576 * 4 + 1_026,
}


@cache
def model_of(cell_id: str) -> nn.Module:
    return build(CELLS[cell_id], load_tokenizer(CELLS[cell_id]), META)


@pytest.fixture(scope="module", autouse=True)
def forget():
    yield
    model_of.cache_clear()


@pytest.mark.parametrize("cell_id", STUDY_IDS)
def test_trainable_parameters_are_the_recipes(cell_id):
    expected = UNSAID.get(cell_id) or RECIPES[cell_id].trainable_params
    extra = SUM_ROW if cell_id in ("gpt2_sum_lora", "gpt2_sum_qlora") else 0
    assert parameter_counts(model_of(cell_id)).trainable_params == expected + extra


@pytest.mark.parametrize("cell_id", STUDY_IDS)
def test_total_parameters_are_the_bases_and_the_adapters(cell_id):
    counts = parameter_counts(model_of(cell_id))
    if RECIPES[cell_id].total_params is not None:
        assert counts.total_params == RECIPES[cell_id].total_params
    elif cell_id.endswith("sft"):
        assert counts.total_params == counts.trainable_params
    else:  # the base of the same backbone and task, whose head and <sum> row are among the trained
        base = parameter_counts(model_of(cell_id.rsplit("_", 1)[0] + "_sft")).total_params
        adapters = sum(p.numel() for name, p in model_of(cell_id).named_parameters() if "lora_" in name)
        frozen_head = 512 * 768 + 512 - 768 * 2 - 2 + 512 * 2 + 2 if cell_id == "bert_sa_lora" else 0  # two layers, not one
        assert counts.total_params == base + adapters + frozen_head


# The zoo on BERT's classifier, whose new layer has 768 x 2 + 2. Twelve layers; queries and values of 768 x 768 are adapted.
HEAD = 768 * 2 + 2
LORA = 12 * 2 * 8 * (768 + 768)
ZOO_COUNTS = {
    "lora": LORA,
    "rslora": LORA,
    "pissa": LORA,
    "dora": LORA + 12 * 2 * 768,  # a magnitude an output
    "adalora": 12 * 2 * (12 * (768 + 768) + 12 + 1),  # rank 12, singular values, and how many: PEFT trains that on meta alone
    "vera": 12 * 2 * (64 + 768),  # one scale per rank and one per output
    "oft": 12 * 2 * 24 * (32 * 31 // 2),  # 24 blocks of 32 x 32, each of which has 496 angles
    "ia3": 12 * (768 + 768 + 768 + 3072),  # keys, values, and what the two layers named output.dense read
    "ln": 25 * 2 * 768,  # two norms per layer, and that of the embeddings
    "bitfit": 12 * (4 * 768 + 3072 + 768 + 2 * 768) + 768 + 768,  # the embeddings' norm and the pooler, too
}


@pytest.mark.parametrize("method", ZOO_COUNTS)
def test_the_zoos_methods_train_as_many_parameters_as_their_papers_say(method):
    cell = zoo().cell(f"bert_sa_{method}", FOOTPRINT_PROFILE)
    model = build(cell, load_tokenizer(cell), META)
    assert parameter_counts(model).trainable_params == ZOO_COUNTS[method] + HEAD


# Linear layers of the base: BERT has 6 a layer and a pooler, cross-attention 4 more a layer and a transform before the
# output; GPT-2 4 a layer; T5 6 an encoder layer and 10 a decoder layer, whose wo (one a layer) transformers keeps in fp32.
PACKED = {
    "bert_sa_qlora": 12 * 6 + 1,
    "bert_qa_qlora": 12 * 6,
    "bert_sum_qlora": 12 * 6 + 1 + 12 * 10 + 1,
    "gpt2_sa_qlora": 12 * 4,
    "gpt2_qa_qlora": 12 * 4,
    "gpt2_sum_qlora": 12 * 4,
    "t5_sa_qlora": 6 * 5,
    "t5_qa_qlora": 6 * 5,
    "t5_sum_qlora": 6 * 5 + 6 * 9,
}


@pytest.mark.parametrize("cell_id", QLORA)
def test_every_base_layer_is_quantized(cell_id):
    assert sum(isinstance(m, bnb.nn.Linear4bit) for m in model_of(cell_id).modules()) == PACKED[cell_id]
    assert {p.device.type for p in model_of(cell_id).parameters()} == {"meta"}


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.id)
def test_special_ids_and_vocabulary_fit_the_shape(backbone):
    assert max(backbone.special_tokens.values()) < backbone.vocabulary <= backbone.shape["vocab_size"]
    for name in backbone.special_tokens.keys() & backbone.shape.keys():
        assert backbone.special_tokens[name] == backbone.shape[name]
