"""Recipes against their architectures at true size, which are built on the meta device."""

import pytest
import torch
from torch import nn

from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.more_tasks import CHAT_CELLS, NLI_CELLS, more_tasks
from tunegrid.grid.recipes import FOOTPRINT_PROFILE
from tunegrid.grid.zoo import zoo
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.footprint import wrong_counts
from tunegrid.run.meter import parameter_counts

META = torch.device("meta")
TASKS = more_tasks()
ZOO = zoo()
CELLS = [
    *STUDY.cells(FOOTPRINT_PROFILE),
    *(TASKS.cell(cell_id, FOOTPRINT_PROFILE) for cell_id in (*NLI_CELLS, *CHAT_CELLS)),
]


def make_model(cell: Cell) -> nn.Module:
    return build(cell, load_tokenizer(cell), META)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.id)
def test_models_train_as_many_parameters_as_the_study_or_a_hand_counted(cell):
    model = make_model(cell)
    assert wrong_counts(cell, model) == []
    assert cell.recipe.total_params in (None, parameter_counts(model).total_params)


# The zoo on BERT's classifier. Twelve layers; queries and values of 768 x 768 are adapted.
BASE_LORA = 12 * 2 * 8 * (768 + 768)
ZOO_COUNTS = {
    **dict.fromkeys(("lora", "rslora", "pissa"), BASE_LORA),
    "dora": BASE_LORA + 12 * 2 * 768,  # a magnitude an output
    # Rank 12, singular values, and how many: PEFT trains that on meta alone
    "adalora": 12 * 2 * (12 * (768 + 768) + 12 + 1),
    "vera": 12 * 2 * (64 + 768),  # one scale per rank and one per output
    "oft": 12 * 2 * 24 * (32 * 31 // 2),  # 24 blocks of 32 x 32, each of which has 496 angles
    # keys, values, and what the two layers named output.dense read
    "ia3": 12 * (768 + 768 + 768 + 3072),
    "ln": 25 * 2 * 768,  # two norms per layer, and that of the embeddings
    # The embeddings' norm and the pooler, too
    "bitfit": 12 * (4 * 768 + 3072 + 768 + 2 * 768) + 768 + 768,
}


HEAD = 768 * 2 + 2  # weights and biases of two labels


@pytest.mark.parametrize(("method", "count"), ZOO_COUNTS.items())
def test_the_zoos_methods_train_as_many_parameters_as_their_papers_say(method, count):
    model = make_model(ZOO.cell(f"bert_sa_{method}", FOOTPRINT_PROFILE))
    assert parameter_counts(model).trainable_params == count + HEAD
