"""Recipes against their architectures at true size, which are built on the meta device."""

import pytest
import torch
from torch import nn

from tunegrid.grid.cells import STUDY, STUDY_IDS
from tunegrid.grid.more_tasks import CHAT_CELLS, NLI_CELLS, more_tasks
from tunegrid.grid.recipes import FOOTPRINT_PROFILE
from tunegrid.grid.zoo import zoo
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.footprint import wrong_counts
from tunegrid.run.meter import parameter_counts

META = torch.device("meta")
GRIDS = {"study": STUDY, "tasks": more_tasks(), "zoo": zoo()}


def make_model(grid: str, cell_id: str) -> nn.Module:
    cell = GRIDS[grid].cell(cell_id, FOOTPRINT_PROFILE)
    return build(cell, load_tokenizer(cell), META)


CELLS = [
    *(("study", name) for name in STUDY_IDS),
    *(("tasks", name) for name in (*NLI_CELLS, *CHAT_CELLS)),
]


@pytest.mark.parametrize(("grid", "cell_id"), CELLS)
def test_models_train_as_many_parameters_as_the_study_or_a_hand_counted(grid, cell_id):
    cell = GRIDS[grid].cell(cell_id, FOOTPRINT_PROFILE)
    model = make_model(grid, cell_id)
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


@pytest.mark.parametrize("method", ZOO_COUNTS)
def test_the_zoos_methods_train_as_many_parameters_as_their_papers_say(method):
    assert (
        parameter_counts(make_model("zoo", f"bert_sa_{method}")).trainable_params
        == ZOO_COUNTS[method] + 768 * 2 + 2
    )
