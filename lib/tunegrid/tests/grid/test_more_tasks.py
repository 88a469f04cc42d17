"""More tasks than the study's: their cells, and parameters counted by hand and on the meta device."""

import pytest
import torch

from tunegrid.grid.cells import STUDY, STUDY_IDS
from tunegrid.grid.more_tasks import CHAT_CELLS, IN_PLACE, NLI_CELLS, QUICK, more_tasks, words_for
from tunegrid.grid.recipes import FOOTPRINT_PROFILE, FULL_PROFILE, QUICK_PROFILE, TASKS_PROFILE
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.footprint import wrong_counts
from tunegrid.run.meter import parameter_counts

GRID = more_tasks()
# LoRA of rank 8 on a layer of `a` inputs and `b` outputs: 8 x (a + b). Three labels: a linear layer with or without bias.
BERT = 12 * 2 * 8 * (768 + 768) + 3 * 768 + 3
GPT2 = 12 * 8 * (768 + 3 * 768) + 3 * 768
T5 = 6 * 4 * 8 * (512 + 512) + 3 * 512 + 3
# Llama's layer: queries and outputs of 9 heads, keys and values of 3 with 64 each; three matrices of 1,536; two norms.
SMOLLM2_LAYER = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576
SMOLLM2 = 30 * 16 * (2 * (576 + 576) + 2 * (576 + 192))
BY_HAND = {  # SFT: the study's sentiment cells, with one label more
    "bert_nli": (BERT, BERT, 109_483_778 + 768 + 1),
    "gpt2_nli": (GPT2, GPT2, 124_441_344 + 768),
    "t5_nli": (T5, T5, 35_331_842 + 512 + 1),  # its encoder has two outputs in question answering, too
    "smollm2_chat": (SMOLLM2, SMOLLM2, 49_152 * 576 + 30 * SMOLLM2_LAYER + 576),  # its output layer is its embedding
}
CELLS = {**NLI_CELLS, **CHAT_CELLS}


def test_their_cells_are_beside_the_studys_and_some_of_them_are_quick():
    theirs = set(filter(IN_PLACE["tasks"].has, GRID.ids(FULL_PROFILE)))
    assert theirs == set(CELLS) == set(GRID.ids(FULL_PROFILE)) - set(STUDY_IDS)
    assert set(filter(IN_PLACE["tasks"].has, GRID.ids(TASKS_PROFILE))) == set(QUICK)


def test_the_study_has_its_27_quick_cells_as_they_were():
    assert set(STUDY.ids(QUICK_PROFILE)) == set(STUDY_IDS) == set(GRID.ids(QUICK_PROFILE)) - set(QUICK)
    for cell_id in STUDY_IDS:
        assert GRID.cell(cell_id, QUICK_PROFILE) == STUDY.cell(cell_id, QUICK_PROFILE)


@pytest.mark.parametrize(
    ("cell_id", "profile", "words"),
    [
        ("bert_nli_lora", "tasks", "tasks"),
        ("bert_nli_lora", "full", "full and tasks"),
        ("t5large_qa_sft", "footprint", "footprint and larger"),
        ("t5_qa_dora", "full", "full and zoo"),
        ("t5_qa_dora", "zoo", "zoo"),
        ("t5_qa_dora", "quick", "quick"),  # a user's
        ("bert_sa_lora", "quick", "quick"),
    ],
)
def test_what_m_names_for_a_cell(cell_id, profile, words):
    assert words_for(cell_id, profile) == words


@pytest.mark.parametrize("cell_id", CELLS)
def test_models_train_as_many_parameters_as_worked_out(cell_id):
    pair, method = cell_id.rsplit("_", 1)
    cell = GRID.cell(cell_id, FOOTPRINT_PROFILE)
    model = build(cell, load_tokenizer(cell), torch.device("meta"))
    expected = BY_HAND[pair][("lora", "qlora", "sft").index(method)]
    assert parameter_counts(model).trainable_params == cell.recipe.trainable_params == expected
    assert wrong_counts(cell, model) == []
