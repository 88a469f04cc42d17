"""The grid is the study's, and says so when it is asked for something else."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from lib.errors import InputError
from lib.grid.backbones import BACKBONES, BERT, GPT2, HEAD_EXCEPTIONS, T5
from lib.grid.cells import CELL_IDS, Cell, checked_ids, grid
from lib.grid.methods import LORA, METHODS, NF4, SFT
from lib.grid.profiles import FULL_PROFILE, QUICK, QUICK_PROFILE, Profile
from lib.grid.recipes import GPT2_C_ATTN, RECIPES, Recipe
from lib.grid.tasks import QA, SA, TASKS, Problem

FULL = {cell.id: cell for cell in grid(FULL_PROFILE)}
STUDY = Path(__file__).parents[3] / "shared" / "spec" / "cells.json"

# The study's words for what libraries call otherwise.
OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}
REMARKS = {"head", "reported", "trust", "note", "from_notebook", "ours"}
COMPARED = {
    *("adapter", "quantization", "optimizer", "lr", "weight_decay", "schedule", "warmup_ratio", "warmup_steps", "epochs"),
    *("batch", "accumulation", "clip", "precision", "max_length", "stride", "target_length", "text", "prefix"),
    *("generation", "trainable", "total"),
}


@pytest.fixture(scope="module")
def study():
    if not STUDY.is_file():
        pytest.skip("the study's own table, shared/spec/cells.json beside this checkout, is not here to compare with")
    return json.loads(STUDY.read_text())


def as_recipe(told):
    """The study's words for one cell as `Recipe` fields; what it leaves out takes the value that means "none"."""
    return {
        "adapter": told["adapter"] and as_adapter(told["adapter"]),
        "optim": OPTIMIZERS[told["optimizer"]],
        "learning_rate": told["lr"],
        "weight_decay": told["weight_decay"],
        "lr_scheduler_type": told["schedule"],
        "warmup_ratio": told.get("warmup_ratio", 0.0),
        "warmup_steps": told.get("warmup_steps", 0),
        "num_train_epochs": told["epochs"],
        "max_steps": 0,
        "per_device_train_batch_size": told["batch"],
        "gradient_accumulation_steps": told["accumulation"],
        "max_grad_norm": told["clip"],
        "precision": told["precision"],
        "max_length": told["max_length"],
        "doc_stride": told.get("stride"),
        "max_target_length": told.get("target_length"),
        "text": tuple(told["text"].split("+")) if "text" in told else (),
        "prefix": told.get("prefix", ""),
        "generation": as_generation(told["generation"]) if "generation" in told else None,
        "trainable_params": told.get("trainable"),
        "total_params": told.get("total"),
    }


def as_adapter(told):
    names = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "targets": "target_modules"}
    return {names[key]: tuple(value) if key == "targets" else value for key, value in told.items()}


def as_generation(told):
    names = {"beams": "num_beams", "max_length": "max_new_tokens", "no_repeat_ngram": "no_repeat_ngram_size"}
    unsaid = {"min_length": 0, "length_penalty": 1.0}
    return unsaid | {names.get(key, key): value for key, value in told.items()}


def test_27_cells_each_with_its_own_id():
    assert len(CELL_IDS) == len(set(CELL_IDS)) == len(BACKBONES) * len(TASKS) * len(METHODS) == 27


@pytest.mark.parametrize("profile", [QUICK_PROFILE, FULL_PROFILE], ids=lambda profile: profile.id)
def test_both_profiles_have_the_same_cells_in_the_same_order(profile):
    assert tuple(cell.id for cell in grid(profile)) == CELL_IDS


def test_heaviest_task_comes_first_and_the_methods_of_a_pair_stand_together():
    assert CELL_IDS[:3] == ("bert_sum_lora", "bert_sum_qlora", "bert_sum_sft")
    assert CELL_IDS[-3:] == ("t5_sa_lora", "t5_sa_qlora", "t5_sa_sft")
    assert [name.split("_")[1] for name in CELL_IDS] == ["sum"] * 9 + ["qa"] * 9 + ["sa"] * 9


def test_recipes_and_quick_rows_cover_the_grid_and_nothing_else():
    assert set(RECIPES) == set(QUICK) == set(CELL_IDS)


def test_the_study_says_nothing_that_is_not_compared(study):
    assert set(study) == set(CELL_IDS)
    assert {key for told in study.values() for key in told} == COMPARED | REMARKS


@pytest.mark.parametrize("cell_id", CELL_IDS)
def test_a_recipe_is_the_studys(study, cell_id):
    found = asdict(FULL[cell_id].recipe)
    assert {name: found[name] for name in found if name not in ("from_notebook", "ours")} == as_recipe(study[cell_id])


@pytest.mark.parametrize("cell_id", CELL_IDS)
def test_the_base_is_stored_as_the_study_says(study, cell_id):
    nf4 = {"bits": 4, "quant_type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
    assert study[cell_id]["quantization"] == (nf4 if FULL[cell_id].quantization else None)


def test_qlora_is_nf4_with_double_quantization():
    assert asdict(NF4) == {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    assert {cell.method.id for cell in FULL.values() if cell.quantization} == {"qlora"}


@pytest.mark.parametrize(
    ("cell_id", "expected"),
    [
        ("bert_sa_lora", 8 * (768 + 512) + 8 * (512 + 2)),  # fc1, fc2
        ("bert_sa_qlora", 12 * 2 * 8 * (768 + 768) + 768 * 2 + 2),  # query, value; classifier
        ("bert_qa_lora", 12 * 8 * (3 * (768 + 768) + 2 * (768 + 3072)) + 768 * 2 + 2),  # query, value, 3 dense; qa_outputs
        ("gpt2_sa_lora", 12 * 8 * (768 + 3 * 768) + 768 * 2),  # c_attn; score has no bias
        ("gpt2_qa_lora", 12 * 8 * (768 + 3 * 768) + 768 * 2 + 2),  # c_attn; qa_outputs
        ("gpt2_sum_lora", 12 * 8 * (768 + 3 * 768)),  # c_attn
        ("t5_sum_lora", 3 * 6 * 4 * 4 * (512 + 512)),  # q, k, v, o of encoder, decoder and cross-attention
    ],
)
def test_trainable_parameters_worked_out_from_the_layers(cell_id, expected):
    assert RECIPES[cell_id].trainable_params == expected


def test_an_unknown_cell_gets_the_nearest_known_one():
    with pytest.raises(InputError, match=r"unknown cell 'bert_sa_lorra'; did you mean bert_sa_lora\? .*lists all 27"):
        checked_ids(["t5_qa_sft", "bert_sa_lorra"])


def test_a_cell_like_no_other_gets_the_command_that_lists_them():
    with pytest.raises(InputError, match="unknown cell 'zzz'; `pytest --collect-only -q -m quick` lists all 27"):
        checked_ids(["zzz"])


def test_known_cells_come_back_in_the_order_asked_for():
    assert checked_ids(name for name in ("t5_qa_sft", "bert_sa_lora")) == ("t5_qa_sft", "bert_sa_lora")


def test_full_fine_tuning_with_an_adapter_is_refused():
    profile = Profile(id="full", overrides={"bert_sa_sft": {"adapter": GPT2_C_ATTN}})
    with pytest.raises(ValueError, match=r"bert_sa_sft: method sft and the recipe's adapter .* disagree"):
        Cell(backbone=BERT, task=SA, method=SFT, profile=profile)


def test_an_adapter_method_without_an_adapter_is_refused():
    profile = Profile(id="full", overrides={"t5_qa_lora": {"adapter": None}})
    with pytest.raises(ValueError, match="t5_qa_lora: method lora and the recipe's adapter None disagree"):
        Cell(backbone=T5, task=QA, method=LORA, profile=profile)


@pytest.mark.parametrize("cell_id", CELL_IDS)
def test_quick_changes_only_what_a_recipe_has(cell_id):
    assert QUICK_PROFILE.overrides[cell_id].keys() <= {field.name for field in fields(Recipe)}


@pytest.mark.parametrize("cell_id", CELL_IDS)
def test_quick_keeps_the_adapter_and_the_optimizer_of_the_study(cell_id):
    quick, full = QUICK_PROFILE.recipe(cell_id), FULL_PROFILE.recipe(cell_id)
    assert (quick.adapter, quick.optim, quick.text, quick.prefix) == (full.adapter, full.optim, full.text, full.prefix)


def test_quick_trains_by_updates_once_over_the_rows_in_fp32():
    assert {(recipe.num_train_epochs, recipe.precision) for recipe in map(QUICK_PROFILE.recipe, CELL_IDS)} == {(1, "fp32")}
    assert all(QUICK_PROFILE.recipe(cell_id).max_steps == QUICK[cell_id][0] > 0 for cell_id in CELL_IDS)


def test_a_head_is_looked_up_by_problem_unless_the_cell_is_an_exception():
    assert FULL["bert_sa_lora"].head.architecture == "BertMLPClassifier"
    assert FULL["bert_sa_qlora"].head == BERT.heads[Problem.CLASSIFY]
    assert FULL["gpt2_qa_sft"].head == GPT2.heads[Problem.EXTRACT]
    assert HEAD_EXCEPTIONS.keys() <= set(CELL_IDS)
