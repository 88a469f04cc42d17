"""The grid is the study's, users add to it, and it says what is wrong with what they add."""

import re
from dataclasses import replace

import pytest

from tunegrid.errors import InputError
from tunegrid.grid.backbones import BERT
from tunegrid.grid.cells import HEADS, STUDY, STUDY_IDS, Grid, add_file, study
from tunegrid.grid.methods import LORA
from tunegrid.grid.recipes import (
    FOOTPRINT_PROFILE,
    FULL_PROFILE,
    GPT2_C_ATTN,
    QUICK,
    QUICK_PROFILE,
    RECIPES,
    merge,
    quick_changes,
)
from tunegrid.grid.tasks import SA, Problem

PLAIN = BERT.heads[Problem.CLASSIFY]


@pytest.fixture
def grid():
    return study()


def test_the_grid_is_the_studys_in_each_profile_the_heaviest_task_first():
    assert set(RECIPES) == set(QUICK) == set(STUDY_IDS)
    full_cells = STUDY.cells(FULL_PROFILE)
    for cells in (full_cells, STUDY.cells(QUICK_PROFILE)):
        assert tuple(cell.id for cell in cells) == STUDY_IDS
    assert [cell.task.id for cell in full_cells] == ["sum"] * 9 + ["qa"] * 9 + ["sa"] * 9
    assert {cell.method.id for cell in full_cells if cell.quantization} == {"qlora"}
    assert HEADS.keys() == {"bert_sa_lora"}
    assert STUDY.cell("bert_sa_lora", FULL_PROFILE).head.architecture == "BertMLPClassifier"


def test_a_narrower_line_overrides_a_wider_one_and_a_cells_row_overrides_them_all():
    shared = {
        "sa": {"max_length": 1, "text": 1, "prefix": 1, "optim": 1, "precision": 1},
        "lora": {"max_length": 2, "text": 2, "prefix": 2, "optim": 2},
        "t5": {"max_length": 3, "text": 3, "prefix": 3},
        "t5_sa": {"max_length": 4, "text": 4},
    }
    row = {"t5_sa_lora": {"max_length": 5}}
    assert merge("t5_sa_lora", shared, row) == {
        "max_length": 5,
        "text": 4,
        "prefix": 3,
        "optim": 2,
        "precision": 1,
    }


# What users add


@pytest.mark.parametrize(
    ("add", "entry", "like", "cell_id"),
    [
        (Grid.add_task, replace(SA, id="sst2"), "sa", "bert_sst2_lora"),
        (Grid.add_method, replace(LORA, id="dora"), "lora", "bert_sa_dora"),
        (Grid.add_backbone, replace(BERT, id="bertlarge"), "bert", "bertlarge_sa_lora"),
    ],
    ids=["task", "method", "backbone"],
)
def test_an_entry_like_another_gets_its_recipes_but_not_the_studys_exceptional_head_and_counts(
    grid, add, entry, like, cell_id
):
    add(grid, entry, like=like, weight_decay=0.5)
    assert len(grid.ids(FULL_PROFILE)) == 36
    cell = grid.cell(cell_id, FULL_PROFILE)
    original = STUDY.cell("bert_sa_lora", FULL_PROFILE)
    assert cell.head == PLAIN
    assert cell.recipe == replace(
        original.recipe,
        adapter=replace(original.recipe.adapter, target_modules=("query", "value")),
        text=() if like == "sa" else original.recipe.text,  # another task's columns are its own
        weight_decay=0.5,
        trainable_params=None,
        total_params=None,
    )
    assert grid.cell("bert_sa_lora", FULL_PROFILE) == original
    assert len(STUDY.ids(FULL_PROFILE)) == 27


def test_a_recipe_like_another_cells_has_its_quick_form_and_head(grid):
    grid.add_recipe("bert_sa_lora", like="bert_sa_qlora", weight_decay=0.5, quick={"max_steps": 7})
    cell = grid.cell("bert_sa_lora", FULL_PROFILE)
    quick = grid.cell("bert_sa_lora", QUICK_PROFILE).recipe
    assert cell.recipe == replace(RECIPES["bert_sa_qlora"], weight_decay=0.5, trainable_params=None)
    assert cell.head == PLAIN
    assert quick.max_steps == 7
    assert quick.learning_rate == QUICK["bert_sa_qlora"]["learning_rate"]
    own_head = replace(PLAIN, start_token="sep_token")
    grid.add_recipe("bert_sa_lora", RECIPES["bert_sa_qlora"], head=own_head)
    grid.add_task(replace(SA, id="sst2"), like="sa")
    assert grid.cell("bert_sst2_lora", FULL_PROFILE).head == own_head


def test_a_task_has_quick_cells_if_it_names_its_files_and_a_backbone_if_it_has_a_micro_one(
    grid, tmp_path
):
    grid.add_task(replace(SA, id="sst2", files={"train": tmp_path / "a.csv"}), like="sa")
    grid.add_task(replace(SA, id="other", files={"train": "a.csv"}), like="sa")
    grid.add_backbone(replace(BERT, id="bertlarge", micro=None), like="bert")
    new_ids = set(grid.ids(QUICK_PROFILE)) - set(STUDY_IDS)
    assert new_ids == {name.replace("_sa_", "_sst2_") for name in STUDY_IDS if "_sa_" in name}
    for profile in (FULL_PROFILE, FOOTPRINT_PROFILE):
        assert {"bert_other_lora", "bertlarge_sst2_lora"} < set(grid.ids(profile))
    with pytest.raises(InputError, match="bertlarge_sa_sft has no quick recipe"):
        grid.cell("bertlarge_sa_sft", QUICK_PROFILE)


GRID_FILE = """
from dataclasses import replace
from tunegrid.grid.tasks import SA

def pytest_tunegrid_grid(grid):
    grid.add_task(replace(SA, id="here", files={"train": "rows/a.csv"}), like="sa")
    grid.add_task(replace(SA, id="below", files={"train": "other.csv"}), like="sa")
"""


def test_relative_files_of_a_task_are_those_beside_the_grid_file(grid, tmp_path):
    rows = tmp_path / "rows" / "a.csv"
    rows.parent.mkdir()
    rows.touch()
    grid_file = tmp_path / "own.py"
    grid_file.write_text(GRID_FILE)
    add_file(grid_file, grid)
    assert grid.tasks["here"].files == {"train": rows}
    assert grid.tasks["below"].files == {"train": "other.csv"}  # from a folder below --data-root
    assert "bert_here_lora" in grid.ids(QUICK_PROFILE)
    assert "bert_below_lora" in grid.ids(FULL_PROFILE)
    with pytest.raises(InputError, match=rf"its files \(other.csv\) is .* in {tmp_path};"):
        grid.cell("bert_below_lora", QUICK_PROFILE)


def test_copies_of_recipes_for_another_kind_of_problem_are_remarked_until_they_are_replaced(grid):
    grid.add_task(replace(SA, id="fits"), like="sa")
    grid.add_task(replace(SA, id="odd"), like="sum")
    assert len(grid.remarks) == 9
    assert grid.remarks["bert_odd_lora"].endswith('write like="sa"')
    grid.add_recipe("bert_odd_lora", like="bert_sa_lora")
    grid.add_recipe("t5_odd_lora", RECIPES["t5_sa_lora"])
    grid.add_recipe("gpt2_odd_lora", like="gpt2_qa_lora")
    assert {"bert_odd_lora", "t5_odd_lora"}.isdisjoint(grid.remarks)
    assert "'qa'" in grid.remarks["gpt2_odd_lora"]


def test_a_quick_copy_for_another_tasks_rows_makes_updates_by_its_rows_and_labels(grid, tmp_path):
    task = replace(SA, id="tickets", files={"train": tmp_path / "a.csv"}, labels=tuple("abcd"))
    grid.add_task(task, like="sa")
    recipe = grid.cell("bert_tickets_lora", QUICK_PROFILE).recipe  # rows in batches of 16
    # 100 for each of four labels; 500 batches are one pass over 7,990 rows; no more than 600
    assert [recipe.planned_updates(rows) for rows in (1, 7_990, 100_000)] == [400, 500, 600]
    changes = {"max_steps": 50, "learning_rate": 1e-3}
    grid.add_task(replace(task, id="more"), like="sa", quick=changes)
    changed_recipe = grid.cell("bert_more_lora", QUICK_PROFILE).recipe
    assert changed_recipe.planned_updates(7_990) == 50
    assert changed_recipe.learning_rate == 1e-3
    grid.add_task(replace(task, id="many", labels=tuple("abcdefgh")), like="sa")
    assert grid.cell("bert_many_lora", QUICK_PROFILE).recipe.planned_updates(1) == 600
    command_line = replace(QUICK_PROFILE, changes={"max_steps": 7})
    assert grid.cell("bert_tickets_lora", command_line).recipe.planned_updates(7_990) == 7


def test_the_studys_quick_recipes_make_the_updates_of_their_rows(grid):
    for cell in grid.cells(QUICK_PROFILE):
        assert cell.recipe == replace(RECIPES[cell.id], **quick_changes(cell.id))
        for rows in (1, 10**6):
            assert cell.recipe.planned_updates(rows) == QUICK[cell.id]["max_steps"]


RECIPE = RECIPES["bert_sa_lora"]
DORA = replace(LORA, id="dora")


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (lambda grid: grid.add_method(replace(LORA, id="my_m")), "expected lower-case letters"),
        (lambda grid: grid.add_method(DORA, like="lorra"), "no recipes to copy"),
        (lambda grid: grid.add_method(DORA, like="lora", lr=1), "no field 'lr'"),
        (lambda grid: grid.add_method(DORA, learning_rate=1), "would change copied"),
        (lambda grid: grid.add_recipe("bert_nli_lora", RECIPE), "unknown cell 'bert_nli_lora'"),
        (
            lambda grid: grid.add_recipe("bert_sa_lora", like="bert_sa_x"),
            "unknown cell 'bert_sa_x'",
        ),
        (
            lambda grid: grid.add_recipe("bert_sa_lora", RECIPE, like="bert_sa_sft"),
            "either a Recipe or like=",
        ),
    ],
)
def test_an_entry_that_cannot_be_added_is_rejected(grid, add, words):
    with pytest.raises(InputError, match=words):
        add(grid)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("labels", ("one",), "at least two"),
        ("text", ("body",), "'body', which is not among its columns"),
        ("text", "title", 'write text=("title",)'),
        ("columns", ("title", "content"), "columns must say the type of each"),
        ("files", {"train": "a.txt"}, "is not one of .jsonl, .json, .csv, .tsv, .parquet"),
        ("bounded_scores", ("accuracy", "acuracy"), "unknown score 'acuracy'"),
    ],
)
def test_a_task_that_cannot_be_used_is_rejected(field, value, words):
    with pytest.raises(InputError, match=re.escape(words)):
        replace(SA, **{field: value})


@pytest.mark.parametrize(
    ("cell_id", "changes", "words"),
    [
        (
            "bert_sa_sft",
            {"adapter": GPT2_C_ATTN},
            "trains every parameter, but the recipe has an adapter",
        ),
        ("bert_sa_sft", {"text": ("body",)}, "reads column 'body'"),
        ("t5_qa_lora", {"adapter": None}, "needs an adapter"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_rejected(grid, cell_id, changes, words):
    grid.add_recipe(cell_id, replace(RECIPES[cell_id], **changes))
    with pytest.raises(InputError, match=words):
        grid.cell(cell_id, FULL_PROFILE)
