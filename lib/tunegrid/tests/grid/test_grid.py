"""The grid is the study's, and says so when it is asked for something else."""

import json
import re
from dataclasses import asdict, replace

import pytest

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid import recipes
from tunegrid.grid.backbones import BACKBONES, BERT, GPT2, HEAD_EXCEPTIONS, T5, Head
from tunegrid.grid.cells import STUDY, STUDY_IDS, study
from tunegrid.grid.methods import LORA, METHODS, NF4, Lora, Method
from tunegrid.grid.recipes import (
    FOOTPRINT_PROFILE,
    FULL_PROFILE,
    GPT2_C_ATTN,
    QUICK,
    QUICK_PROFILE,
    RECIPES,
    TARGETS_WITHOUT_EXCEPTION,
    merged,
)
from tunegrid.grid.tasks import SA, TASKS, Problem

FULL = {cell.id: cell for cell in STUDY.cells(FULL_PROFILE)}
SPECIFICATION = next(ROOT.parent.glob("*/spec/cells.json"), ROOT / "cells.json")

# The study's words for what libraries call something else.
OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}
REMARKS = {"head", "reported", "trust", "note", "from_notebook", "ours"}
COMPARED = {
    *("adapter", "quantization", "optimizer", "lr", "weight_decay", "schedule", "warmup_ratio", "warmup_steps", "epochs"),
    *("batch", "accumulation", "clip", "precision", "max_length", "stride", "target_length", "text", "prefix"),
    *("generation", "trainable", "total"),
}


@pytest.fixture(scope="module")
def specification():
    if not SPECIFICATION.is_file():
        pytest.skip("the study's own table, spec/cells.json in a folder beside this checkout, is not here to compare with")
    return json.loads(SPECIFICATION.read_text())


def as_recipe(words):
    """The study's words for one cell as `Recipe` fields; a word that is missing takes the value that means "none"."""
    return {
        "adapter": words["adapter"] and as_adapter(words["adapter"]),
        "optim": OPTIMIZERS[words["optimizer"]],
        "learning_rate": words["lr"],
        "head_learning_rate": None,  # the study trains all at one rate
        "weight_decay": words["weight_decay"],
        "lr_scheduler_type": words["schedule"],
        "warmup_ratio": words.get("warmup_ratio", 0.0),
        "warmup_steps": words.get("warmup_steps", 0),
        "num_train_epochs": words["epochs"],
        "max_steps": 0,
        "per_device_train_batch_size": words["batch"],
        "gradient_accumulation_steps": words["accumulation"],
        "max_grad_norm": words["clip"],
        "precision": words["precision"],
        "max_length": words["max_length"],
        "doc_stride": words.get("stride"),
        "max_target_length": words.get("target_length"),
        "text": tuple(words["text"].split("+")) if "text" in words else (),
        "prefix": words.get("prefix", ""),
        "generation": as_generation(words["generation"]) if "generation" in words else None,
        "trainable_params": words.get("trainable"),
        "total_params": words.get("total"),
    }


def as_adapter(words):
    names = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "targets": "target_modules"}
    return {names[key]: tuple(value) if key == "targets" else value for key, value in words.items()}


def as_generation(words):
    names = {"beams": "num_beams", "max_length": "max_new_tokens", "no_repeat_ngram": "no_repeat_ngram_size"}
    defaults = {"min_length": 0, "length_penalty": 1.0}
    return defaults | {names.get(key, key): value for key, value in words.items()}


def test_the_grid_is_the_studys_in_each_profile_the_heaviest_task_first():
    assert set(RECIPES) == set(QUICK) == set(STUDY_IDS)
    for profile in (QUICK_PROFILE, FULL_PROFILE):
        assert tuple(cell.id for cell in STUDY.cells(profile)) == STUDY_IDS
    assert STUDY_IDS[:3] == ("bert_sum_lora", "bert_sum_qlora", "bert_sum_sft")
    assert [name.split("_")[1] for name in STUDY_IDS] == ["sum"] * 9 + ["qa"] * 9 + ["sa"] * 9


def test_a_narrower_line_overrides_a_wider_one_and_a_cells_row_overrides_them_all():
    shared = {
        "sa": {"max_length": 1, "text": 1, "prefix": 1, "optim": 1, "precision": 1},
        "lora": {"max_length": 2, "text": 2, "prefix": 2, "optim": 2},
        "t5": {"max_length": 3, "text": 3, "prefix": 3},
        "t5_sa": {"max_length": 4, "text": 4},
        "t5_qa": {"max_length": 6},
    }
    rows = {"t5_sa_lora": {"max_length": 5}, "t5_qa_lora": {}}
    assert merged("t5_sa_lora", shared, rows) == {"max_length": 5, "text": 4, "prefix": 3, "optim": 2, "precision": 1}
    assert merged("t5_qa_lora", shared, rows) == {"max_length": 6, "text": 3, "prefix": 3, "optim": 2}


TABLES = {"study": (recipes.SHARED, recipes.CELLS), "quick": (recipes.QUICK_SHARED, QUICK)}


@pytest.mark.parametrize("shared", [shared for shared, _ in TABLES.values()], ids=TABLES)
def test_what_cells_share_is_named_for_a_task_a_method_a_backbone_or_a_backbones_task(shared):
    ids = [{entry.id for entry in entries} for entries in (BACKBONES, TASKS, METHODS)]
    assert shared.keys() <= {*ids[0], *ids[1], *ids[2], *(f"{backbone}_{task}" for backbone in ids[0] for task in ids[1])}


@pytest.mark.parametrize(("shared", "cells"), TABLES.values(), ids=TABLES)
def test_a_cells_row_repeats_nothing_that_it_shares(shared, cells):
    common = {cell_id: merged(cell_id, shared, {cell_id: {}}) for cell_id in cells}
    repeated = [
        (cell_id, name)
        for cell_id, row in cells.items()
        for name in row.keys() & common[cell_id]
        if row[name] == common[cell_id][name]
    ]
    assert repeated == []


@pytest.mark.parametrize("cell_id", STUDY_IDS)
def test_a_recipe_is_the_studys(specification, cell_id):
    words, recipe = specification[cell_id], asdict(FULL[cell_id].recipe)
    assert words.keys() <= COMPARED | REMARKS
    assert {name: recipe[name] for name in recipe if name != "gradient_checkpointing"} == as_recipe(words)
    nf4 = {"bits": 4, "quant_type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
    assert words["quantization"] == (nf4 if FULL[cell_id].quantization else None)


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


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["t5_qa_sft", "bert_sa_lorra"], r"unknown cell 'bert_sa_lorra'; did you mean bert_sa_lora\? .*lists them"),
        (["zzz"], "unknown cell 'zzz'; `pytest -m full --list-cells` lists them"),
    ],
)
def test_an_unknown_cell_gets_the_nearest_known_one_and_the_command_that_lists_them(asked, words):
    assert STUDY.checked_ids(name for name in ("t5_qa_sft", "bert_sa_lora")) == ("t5_qa_sft", "bert_sa_lora")
    with pytest.raises(InputError, match=words):
        STUDY.checked_ids(asked)


# What users add


@pytest.fixture
def grid():
    return study()


def test_a_method_like_another_gets_its_recipes_without_the_studys_counts(grid):
    grid.add_method(Lora(id="dora", name="DoRA", options={"use_dora": True}), like="lora", learning_rate=1e-3)
    assert len(grid.ids(QUICK_PROFILE)) == len(grid.ids(FULL_PROFILE)) == 36
    cell = grid.cell("bert_qa_dora", FULL_PROFILE)
    assert cell.recipe == replace(RECIPES["bert_qa_lora"], learning_rate=1e-3, trainable_params=None)
    assert grid.cell("gpt2_qa_dora", QUICK_PROFILE).recipe.max_steps == QUICK["gpt2_qa_lora"]["max_steps"]
    assert len(STUDY.ids(FULL_PROFILE)) == 27


LIKE = {
    "bert_sst2_lora": lambda grid, **changes: grid.add_task(replace(SA, id="sst2"), like="sa", **changes),
    "bert_sa_dora": lambda grid, **changes: grid.add_method(replace(LORA, id="dora"), like="lora", **changes),
    "bertlarge_sa_lora": lambda grid, **changes: grid.add_backbone(replace(BERT, id="bertlarge"), like="bert", **changes),
}


@pytest.mark.parametrize("cell_id", LIKE)
def test_an_exceptional_head_of_the_studys_is_inherited_by_no_cell_of_a_user(grid, cell_id):
    LIKE[cell_id](grid, weight_decay=0.5)
    cell, study_cell = grid.cell(cell_id, FULL_PROFILE), FULL["bert_sa_lora"]
    assert cell.head == BERT.heads[Problem.CLASSIFY]
    assert cell.recipe.adapter == replace(study_cell.recipe.adapter, target_modules=("query", "value"))
    assert cell.recipe.weight_decay == 0.5
    columns = () if cell_id == "bert_sst2_lora" else study_cell.recipe.text  # another task's columns are its own
    assert (cell.recipe.learning_rate, cell.recipe.text) == (study_cell.recipe.learning_rate, columns)
    assert grid.cell("bert_sa_lora", FULL_PROFILE) == study_cell
    assert HEAD_EXCEPTIONS.keys() == TARGETS_WITHOUT_EXCEPTION.keys()


def test_a_recipe_like_another_cells_has_its_quick_form_and_not_the_studys_counts(grid):
    grid.add_recipe("bert_sa_lora", like="bert_sa_qlora", weight_decay=0.5, quick={"max_steps": 7})
    recipe = grid.cell("bert_sa_lora", FULL_PROFILE).recipe
    assert recipe == replace(RECIPES["bert_sa_qlora"], weight_decay=0.5, trainable_params=None)
    assert grid.cell("bert_sa_lora", FULL_PROFILE).head == BERT.heads[Problem.CLASSIFY]  # as the other's, not the study's own
    quick = grid.cell("bert_sa_lora", QUICK_PROFILE).recipe
    assert (quick.max_steps, quick.learning_rate) == (7, QUICK["bert_sa_qlora"]["learning_rate"])
    grid.add_recipe("t5_qa_lora", like="t5_qa_lora", weight_decay=0.5)  # itself, changed
    assert grid.cell("t5_qa_lora", FULL_PROFILE).recipe == replace(RECIPES["t5_qa_lora"], weight_decay=0.5)
    assert grid.cell("t5_qa_lora", QUICK_PROFILE).recipe.max_steps == QUICK["t5_qa_lora"]["max_steps"]


def test_a_task_with_files_of_its_own_has_quick_cells(grid, tmp_path):
    grid.add_task(replace(SA, id="sst2", files={"train": tmp_path / "a.csv"}), like="sa")
    grid.add_task(replace(SA, id="other", files={"train": "a.csv"}), like="sa")
    own = [name for name in grid.ids(QUICK_PROFILE) if "sst2" in name or "other" in name]
    assert own[:2] == ["bert_sst2_lora", "bert_sst2_qlora"]
    assert len(own) == 9
    assert {"bert_sst2_lora", "bert_other_lora"} <= set(grid.ids(FULL_PROFILE))
    assert grid.cell("bert_sst2_sft", QUICK_PROFILE).recipe.max_steps == QUICK["bert_sa_sft"]["max_steps"]


def test_a_head_that_a_user_gave_a_cell_is_inherited(grid):
    own = replace(BERT.heads[Problem.CLASSIFY], start_token="sep_token")
    grid.add_recipe("bert_sa_lora", RECIPES["bert_sa_qlora"], head=own)
    LIKE["bert_sst2_lora"](grid)
    cell = grid.cell("bert_sst2_lora", FULL_PROFILE)
    assert (cell.head, cell.recipe.adapter) == (own, RECIPES["bert_sa_qlora"].adapter)


@pytest.mark.parametrize(
    ("cell_id", "add"),
    [
        ("t5_sa_dora", lambda grid, **changes: grid.add_method(replace(LORA, id="dora"), like="lora", **changes)),
        ("t5base_sa_lora", lambda grid, **changes: grid.add_backbone(replace(T5, id="t5base"), like="t5", **changes)),
    ],
)
def test_a_heads_rate_of_the_studys_is_inherited_by_no_cell_of_a_user(grid, cell_id, add):
    add(grid, quick={"max_steps": 7})
    assert grid.cell("t5_sa_lora", QUICK_PROFILE).recipe.head_learning_rate == 4e-4
    recipe = grid.cell(cell_id, QUICK_PROFILE).recipe
    assert (recipe.head_learning_rate, recipe.learning_rate, recipe.max_steps) == (None, 4e-3, 7)


def test_a_heads_rate_that_a_user_gave_a_cell_is_inherited(grid):
    grid.add_recipe("t5_sa_lora", RECIPES["t5_sa_lora"], quick={"head_learning_rate": 4e-4})
    grid.add_method(replace(LORA, id="dora"), like="lora")
    grid.add_method(replace(LORA, id="fast"), like="lora", quick={"head_learning_rate": 1e-2})
    assert grid.cell("t5_sa_dora", QUICK_PROFILE).recipe.head_learning_rate == 4e-4
    assert grid.cell("t5_qa_fast", QUICK_PROFILE).recipe.head_learning_rate == 1e-2


def test_a_backbone_without_a_micro_one_has_no_quick_cells(grid):
    grid.add_backbone(replace(BERT, id="bertlarge", micro=None), like="bert")
    assert len(grid.ids(FULL_PROFILE)) == len(grid.ids(FOOTPRINT_PROFILE)) == 36
    assert len(grid.ids(QUICK_PROFILE)) == 27
    with pytest.raises(InputError, match="bertlarge_sa_sft has no quick recipe, so it runs with -m full and -m footprint only"):
        grid.cell("bertlarge_sa_sft", QUICK_PROFILE)


def test_a_combination_without_a_recipe_gets_a_sentence(grid):
    grid.add_method(Method(id="full", name="full"))
    with pytest.raises(InputError, match=r"bert_sa_full has no recipe, so it does not exist; .* grid.add_recipe"):
        grid.cell("bert_sa_full", FULL_PROFILE)
    grid.add_recipe("bert_sa_full", RECIPES["bert_sa_sft"])
    assert grid.cell("bert_sa_full", FULL_PROFILE).recipe == RECIPES["bert_sa_sft"]


RECIPE = RECIPES["bert_sa_lora"]


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (lambda grid: grid.add_method(Method(id="sft", name="x")), "method 'sft' is in the grid already"),
        (lambda grid: grid.add_method(Method(id="my_m", name="x")), "id of method 'my_m': expected lower-case letters"),
        (lambda grid: grid.add_optimizer("adamw_torch", None), "optimizer 'adamw_torch' is in the grid already"),
        (
            lambda grid: grid.add_method(Lora(id="x", name="x"), like="lorra"),
            "cannot be like 'lorra', which has no recipes to copy",
        ),
        (lambda grid: grid.add_method(Lora(id="x", name="x"), like="lora", lr=1), "a recipe has no field 'lr'"),
        (lambda grid: grid.add_method(Lora(id="x", name="x"), learning_rate=1), "'x': learning_rate would change copied"),
        (
            lambda grid: [grid.add_method(Method(id=i, name=i), like=like) for i, like in (("a", None), ("b", "a"))],
            "no recipes to",
        ),
        (lambda grid: grid.add_recipe("bert_nli_lora", RECIPE), "unknown cell 'bert_nli_lora'; did you mean"),
        (lambda grid: grid.add_recipe("bert_sa_lora", like="bert_sa_x"), "unknown cell 'bert_sa_x'; did you mean bert_sa_"),
        (lambda grid: grid.add_recipe("bert_sa_lora", RECIPE, like="bert_sa_sft"), "give a recipe, or like=CELL"),
        (lambda grid: grid.add_recipe("bert_sa_lora", "text"), "expected a Recipe, got 'text'"),
        (lambda grid: grid.add_recipe("bert_sa_lora", RECIPE, quick={"lr": 1}), "a recipe has no field 'lr'"),
        (lambda grid: replace(SA, labels=("one",)), "only a classification names labels, and at least two"),
        (lambda grid: replace(SA, text=("body",)), "it reads 'body', which is not among its columns (label, title, content)"),
        (lambda grid: replace(SA, text=()), "reads no column; write text=(...,) with those of label, title, content"),
        (
            lambda grid: replace(SA, columns=("title", "content")),
            'columns must say the type of each; write columns={"title": str',
        ),
        (lambda grid: replace(SA, text="title"), 'text is a text, not several; write text=("title",)'),
        (lambda grid: replace(SA, files={"train": "a.txt"}), "a.txt of split 'train' is none of .jsonl, .parquet, .csv"),
        (lambda grid: replace(SA, files={"train": "a.csv"}, test="dev"), "no file of split 'dev'; add it to files"),
        (lambda grid: replace(SA, main_score="f1"), "main_score 'f1' is not among its bounded_scores"),
        (lambda grid: replace(SA, main_score="acuracy", bounded_scores=("acuracy",)), "unknown score 'acuracy'"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused(grid, add, words):
    with pytest.raises(InputError, match=re.escape(words)):
        add(grid)


@pytest.mark.parametrize(
    ("cell_id", "changes", "words"),
    [
        ("bert_sa_sft", {"adapter": GPT2_C_ATTN}, "method 'sft' trains every parameter, but the recipe has an adapter"),
        ("bert_sa_sft", {"text": ("body",)}, "reads column 'body', but task 'sa' has label, title, content"),
        ("t5_qa_lora", {"adapter": None}, "t5_qa_lora: method 'lora' needs an adapter in the recipe"),
        ("t5_qa_lora", {"optim": "adam"}, "unknown optimizer 'adam'; known are adamw_bnb_8bit, adamw_torch"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(grid, cell_id, changes, words):
    grid.add_recipe(cell_id, replace(RECIPES[cell_id], **changes))
    with pytest.raises(InputError, match=words):
        grid.cell(cell_id, FULL_PROFILE)


def test_a_head_that_generates_without_a_layout_has_no_cells(grid):
    grid.add_backbone(replace(BERT, id="enc", heads={Problem.GENERATE: Head(architecture="BertToBert")}), like="bert")
    with pytest.raises(InputError, match="a head with no layout cannot generate; its layout must be one of"):
        grid.cell("enc_sum_sft", FULL_PROFILE)


def test_a_backbone_without_a_head_for_a_problem_has_no_cells_of_it(grid):
    grid.add_backbone(replace(BERT, id="enc", heads={Problem.CLASSIFY: BERT.heads[Problem.CLASSIFY]}), like="bert")
    assert [name for name in grid.ids(FULL_PROFILE) if name.startswith("enc_")] == ["enc_sa_lora", "enc_sa_qlora", "enc_sa_sft"]
    with pytest.raises(InputError, match="enc_qa_sft: backbone 'enc' declares no head for extract, which task 'qa' needs"):
        grid.cell("enc_qa_sft", FULL_PROFILE)


@pytest.mark.parametrize("cell_id", STUDY_IDS)
def test_quick_keeps_the_adapter_and_the_optimizer_of_the_study(cell_id):
    quick, full = STUDY.cell(cell_id, QUICK_PROFILE).recipe, RECIPES[cell_id]
    assert (quick.adapter, quick.optim, quick.text, quick.prefix) == (full.adapter, full.optim, full.text, full.prefix)


def test_quick_trains_by_updates_once_over_the_rows_and_in_fp32_but_for_one_cell():
    recipes = {cell.id: cell.recipe for cell in STUDY.cells(QUICK_PROFILE)}
    assert {recipe.num_train_epochs for recipe in recipes.values()} == {1}
    assert [cell_id for cell_id, recipe in recipes.items() if recipe.precision != "fp32"] == ["gpt2_sa_lora"]
    assert all(recipe.max_steps == QUICK[cell_id]["max_steps"] > 0 for cell_id, recipe in recipes.items())


def test_a_head_is_looked_up_by_problem_unless_the_cell_is_an_exception():
    assert FULL["bert_sa_lora"].head.architecture == "BertMLPClassifier"
    assert FULL["bert_sa_qlora"].head == BERT.heads[Problem.CLASSIFY]
    assert FULL["gpt2_qa_sft"].head == GPT2.heads[Problem.EXTRACT]
    assert HEAD_EXCEPTIONS.keys() <= set(STUDY_IDS)
