"""Recipes against their architectures at true size: parameters worked out by hand, and built on the meta device."""

import pytest
import torch
from torch import nn

from tunegrid.grid.cells import STUDY, STUDY_IDS
from tunegrid.grid.more_tasks import CHAT_CELLS, NLI_CELLS, more_tasks
from tunegrid.grid.recipes import FOOTPRINT_PROFILE, RECIPES
from tunegrid.grid.zoo import zoo
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.footprint import wrong_counts
from tunegrid.run.meter import parameter_counts

META = torch.device("meta")
GRIDS = {"study": STUDY, "tasks": more_tasks(), "zoo": zoo()}
METHODS = ("lora", "qlora", "sft")


def model_of(grid: str, cell_id: str) -> nn.Module:
    cell = GRIDS[grid].cell(cell_id, FOOTPRINT_PROFILE)
    return build(cell, load_tokenizer(cell), META)


# A LoRA of rank r beside a layer of `ins` inputs and `outs` outputs has r x (ins + outs).


def lora(r, *layers):
    return sum(r * (ins + outs) for ins, outs in layers)


def t5(d, f, layers, heads, r_sum):
    """By task; r 8 on q, k, v, o of the encoder for sa, on q and v for qa; on all three attentions for sum.

    32,128 words; a layer has four square layers, two of d x f and two norms of d, without biases; 32 distances a head. A
    decoder layer has cross-attention and its norm on top; words are shared, and the output is the embedding.
    """
    encoder, head = 32_128 * d + layers * (4 * d * d + 2 * d * f + 2 * d) + 32 * heads + d, 2 * d + 2
    sa, qa = (lora(8, *layers * count * [(d, d)]) + head for count in (4, 2))
    whole = encoder + (encoder - 32_128 * d) + layers * (4 * d * d + d)
    adapters = (lora(r, *3 * layers * 4 * [(d, d)]) for r in r_sum)
    return {"sa": (sa, sa, encoder + head), "qa": (qa, qa, encoder + head), "sum": (*adapters, whole)}


T5_SMALL = t5(512, 2048, 6, 8, (4, 8))
# SmolLM2's layer: queries and outputs of 9 heads, keys and values of 3 with 64 each; three matrices of 1,536; two norms.
SMOLLM2_LAYER, SMOLLM2 = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576, 30 * 16 * (2 * (576 + 576) + 2 * (576 + 192))
NLI = {  # three labels: the study's sentiment cells with one label more; T5's encoder has two outputs in question answering
    "bert_nli": (*2 * [12 * 2 * 8 * (768 + 768) + 3 * 768 + 3], 109_483_778 + 768 + 1),
    "gpt2_nli": (*2 * [12 * 8 * (768 + 3 * 768) + 3 * 768], 124_441_344 + 768),
    "t5_nli": (*2 * [6 * 4 * 8 * (512 + 512) + 3 * 512 + 3], 35_331_842 + 512 + 1),
}
BY_HAND = {  # parameters that train, by LoRA, QLoRA and SFT
    **{pair: tuple(RECIPES[f"{pair}_{method}"].trainable_params for method in METHODS) for pair in ("bert_sa", "gpt2_sa")},
    "bert_qa": (12 * 8 * (3 * (768 + 768) + 2 * (768 + 3072)) + 768 * 2 + 2, 2_655_746, 108_893_186),
    "bert_sum": (6_537_216, 6_537_216, 247_363_386),
    "gpt2_qa": (*2 * [12 * 8 * (768 + 3 * 768) + 768 * 2 + 2], 124_441_346),
    "gpt2_sum": (*2 * [12 * 8 * (768 + 3 * 768)], 124_440_576),
    **{f"t5_{task}": counts for task, counts in T5_SMALL.items()},
    **NLI,
    "smollm2_chat": (SMOLLM2, SMOLLM2, 49_152 * 576 + 30 * SMOLLM2_LAYER + 576),  # its output layer is its embedding
}
SUM_ROW = {"gpt2_sum": 768}  # the embedding of <sum>, which adapters train beside what the study counted
CELLS = [*(("study", name) for name in STUDY_IDS), *(("tasks", name) for name in (*NLI_CELLS, *CHAT_CELLS))]


@pytest.mark.parametrize(("grid", "cell_id"), CELLS)
def test_models_train_as_many_parameters_as_worked_out(grid, cell_id):
    pair, _, method = cell_id.rpartition("_")
    cell, model, counts = GRIDS[grid].cell(cell_id, FOOTPRINT_PROFILE), model_of(grid, cell_id), BY_HAND[pair]
    found = parameter_counts(model)
    assert found.trainable_params == counts[METHODS.index(method)] + (SUM_ROW.get(pair, 0) if method != "sft" else 0)
    assert cell.recipe.trainable_params in (None, counts[METHODS.index(method)])
    adapter = 0 if method == "sft" else sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    frozen_head = 512 * 768 + 512 - 768 * 2 - 2 + 512 * 2 + 2 if cell_id == "bert_sa_lora" else 0  # two layers, not one
    assert found.total_params == counts[2] + adapter + frozen_head
    assert cell.recipe.total_params in (None, found.total_params)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert grid != "tasks" or wrong_counts(cell, model) == []


# The zoo on BERT's classifier. Twelve layers; queries and values of 768 x 768 are adapted.
BASE_LORA = 12 * 2 * 8 * (768 + 768)
ZOO_COUNTS = {
    **dict.fromkeys(("lora", "rslora", "pissa"), BASE_LORA),
    "dora": BASE_LORA + 12 * 2 * 768,  # a magnitude an output
    "adalora": 12 * 2 * (12 * (768 + 768) + 12 + 1),  # rank 12, singular values, and how many: PEFT trains that on meta alone
    "vera": 12 * 2 * (64 + 768),  # one scale per rank and one per output
    "oft": 12 * 2 * 24 * (32 * 31 // 2),  # 24 blocks of 32 x 32, each of which has 496 angles
    "ia3": 12 * (768 + 768 + 768 + 3072),  # keys, values, and what the two layers named output.dense read
    "ln": 25 * 2 * 768,  # two norms per layer, and that of the embeddings
    "bitfit": 12 * (4 * 768 + 3072 + 768 + 2 * 768) + 768 + 768,  # the embeddings' norm and the pooler, too
}


@pytest.mark.parametrize("method", ZOO_COUNTS)
def test_the_zoos_methods_train_as_many_parameters_as_their_papers_say(method):
    assert parameter_counts(model_of("zoo", f"bert_sa_{method}")).trainable_params == ZOO_COUNTS[method] + 768 * 2 + 2
