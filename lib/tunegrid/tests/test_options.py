"""What the command line selects, what it changes, and how it refuses."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fixtures.options import changes_recipes, profile_from
from fixtures.planning import by_length
from tunegrid import ROOT
from tunegrid.grid.cells import STUDY, STUDY_IDS
from tunegrid.grid.profiles import FULL_CAPS, QUICK, QUICK_PROFILE
from tunegrid.grid.recipes import RECIPES
from tunegrid.tests.test_record import complete_json


def collect(*arguments):
    """pytest's own answer to these arguments, without running a cell."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def collected(*arguments):
    return re.findall(r"^benchmarks/test_finetune\.py::test_finetune\[(.+)\]$", collect(*arguments).stdout, re.MULTILINE)


def test_a_gate_over_tests_that_are_only_collected_judges_nothing():
    answer = collect("--cells", "bert_sa_lora", "--gate=reports/baselines/quick-cpu.json")
    assert answer.returncode == 0
    assert "gate" not in answer.stdout
    missing = collect("--cells", "bert_sa_lora", "--gate=missing.json")
    assert (missing.returncode, "--gate: missing.json does not exist" in missing.stderr) == (4, True)


# Selection


def test_a_bare_pytest_collects_the_quick_cells_only():
    ids = collected()
    assert len(ids) == 27
    assert not [name for name in ids if name.startswith("full")]


def test_full_cells_are_collected_where_the_mark_is_named():
    ids = collected("-m", "full")
    assert len(ids) == 27
    assert all(name.startswith("full-") for name in ids)


@pytest.mark.parametrize("word", ["_lora", "gpt2_", "_qa_"])
def test_a_word_of_the_id_selects_its_nine_cells(word):
    ids = collected("-m", "quick", "-k", word)
    assert len(ids) == 9
    assert all(word in name for name in ids)


def test_cells_are_selected_by_id():
    assert sorted(collected("--cells", "bert_sa_lora, t5_qa_sft")) == ["bert_sa_lora", "t5_qa_sft"]


@pytest.mark.parametrize("profile", ["full", "footprint"])
def test_listing_prints_the_cells_of_a_profile_and_runs_nothing(profile):
    listing = collect("--list-cells", "-m", profile, "--cells", "bert_sum_sft,t5_qa_lora").stdout.splitlines()
    assert listing[0] == f"{profile}:"
    assert [line.split()[0] for line in listing[2:-1]] == ["bert_sum_sft", "t5_qa_lora"]


def test_a_budget_keeps_what_an_earlier_run_says_will_fit(tmp_path):
    times = {"bert_sa_lora": 20.0, "bert_sa_sft": 50.0, "t5_sa_sft": 30.0}
    records = [complete_json(cell) for cell in times]
    for record in records:
        phase = record["memory"]["phases"]["train"] | {"seconds": times[record["cell"]]}
        record["memory"] = record["memory"] | {"phases": {"train": phase}}
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps({"benchmarks": [{"extra_info": record} for record in records]}))
    # 100 s less 15 s for the session: the 50 s cell first, then 30 s; 20 s no longer fit
    assert collected("--budget", "100s", f"--estimates-from={earlier}") == ["bert_sa_sft", "t5_sa_sft"]
    answer = collect("--budget", "20s", f"--estimates-from={earlier}")
    assert (
        "--budget 20s is too short for any of 27 cells; --list-cells says how long each takes" in answer.stderr + answer.stdout
    )
    assert answer.returncode == pytest.ExitCode.USAGE_ERROR


# Refusals


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--cells", "t5_qa_sft,bert_sa_lor", "unknown cell 'bert_sa_lor'; did you mean bert_sa_lora?"),
        ("--max-steps", "0", "--max-steps '0' is not a whole number of at least 1"),
        ("--train-rows", "-3", "--train-rows '-3' is not a whole number of at least 0"),
        ("--seed", "-3", "--seed '-3' is not a whole number from 0 to 4294967295"),
        ("--seed", "4294967296", "--seed '4294967296' is not a whole number from 0 to 4294967295"),
        ("--device", "mps", "--device 'mps': memory and time are measured rightly on cpu, cuda and cuda:N only"),
        ("--optim", "adamw", "unknown optimizer 'adamw'; known are adamw_bnb_8bit, adamw_torch"),
        ("--grid", "/nope.py", "--grid /nope.py is not a Python file"),
        ("--budget", "half an hour", "invalid --budget 'half an hour': expected a duration, as in 30m, 90s or 1h30m"),
        ("--estimates-from", "/nope.json", "--estimates-from /nope.json is not a file"),
        ("--learning-rate", "abc", "--learning-rate 'abc' is not a number between 0 and 1"),
        ("--learning-rate", "nan", "--learning-rate 'nan' is not a number between 0 and 1"),
        ("--data-root", "/nope", "--data-root /nope is not a folder"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_in_one_sentence(option, value, sentence):
    answer = collect(option, value)
    lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line]
    assert answer.returncode == pytest.ExitCode.USAGE_ERROR
    assert len(lines) == 1
    assert lines[0].startswith("ERROR: ")
    assert sentence in lines[0]


def test_pytest_without_its_cache_plugin_still_starts():
    assert len(collected("-p", "no:cacheprovider")) == 27


def test_cells_that_name_none_are_refused():
    assert collect("--cells", ",").returncode == pytest.ExitCode.USAGE_ERROR


# The profile they make


def option_values(**options):
    """What `config.getoption` answers: these values, and the defaults."""
    named = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    return {"--own-test": False, **named}.get


def recipe_of(cell_id, profile):
    return STUDY.cell(cell_id, profile).recipe


def test_without_options_quick_is_itself():
    assert STUDY.cells(profile_from(option_values(), "quick")) == STUDY.cells(QUICK_PROFILE)


def test_options_replace_the_recipes_values_in_every_cell():
    profile = profile_from(option_values(max_steps=7, learning_rate=1e-5), "quick")
    recipes = [cell.recipe for cell in STUDY.cells(profile)]
    assert {(recipe.max_steps, recipe.learning_rate) for recipe in recipes} == {(7, 1e-5)}


def test_epochs_lift_the_quick_limit_on_updates():
    recipe = recipe_of("bert_sa_lora", profile_from(option_values(epochs=2), "quick"))
    assert QUICK["bert_sa_lora"][0] > 0
    assert (recipe.max_steps, recipe.num_train_epochs) == (0, 2)


def test_roots_and_device_are_the_full_profiles_to_choose(tmp_path):
    option = option_values(data_root=tmp_path, checkpoint_root=tmp_path, device="cuda:1", own_test=True)
    quick, full = (profile_from(option, name) for name in ("quick", "full"))
    assert (quick.data_root, quick.device, quick.own_test) == (QUICK_PROFILE.data_root, "cpu", False)
    assert (full.data_root, full.checkpoint_root, full.device, full.own_test) == (tmp_path, tmp_path, "cuda:1", True)


@pytest.mark.parametrize("limit", ["train_rows", "eval_rows", "max_steps", "epochs", "learning_rate", "optim"])
def test_a_limited_run_is_not_held_to_bounds(limit):
    assert changes_recipes(option_values(**{limit: 1}))


def test_no_limit_at_all_is_a_change_of_a_profile_with_caps():
    assert changes_recipes(option_values(train_rows=0))
    assert profile_from(option_values(train_rows=0), "full").cap("sa", "train") is None
    assert profile_from(option_values(), "full").cap("sa", "train") == FULL_CAPS["sa"].train
    assert profile_from(option_values(eval_rows=7), "full").cap("sa", "validation") == 7


def test_a_footprint_without_a_gpu_is_of_one_row_an_update():
    cpu, gpu = (profile_from(option_values(), "footprint", cuda=cuda) for cuda in (False, True))
    assert (cpu.device, gpu.device) == ("cpu", None)
    assert {recipe_of(name, cpu).per_device_train_batch_size for name in STUDY_IDS} == {1}
    sizes = {name: recipe_of(name, gpu).per_device_train_batch_size for name in STUDY_IDS}
    assert sizes == {name: RECIPES[name].per_device_train_batch_size for name in STUDY_IDS}
    assert profile_from(option_values(device="cpu"), "footprint", cuda=True) == cpu


def test_a_seed_alone_leaves_the_bounds_in_force():
    assert not changes_recipes(option_values(seed=3))


def test_workers_get_the_longest_cells_of_a_seed_first():
    def item(seed, *names):
        params = dict(zip(("backbone", "task", "method"), names, strict=True)) | {"profile": "quick", "seed": seed}
        return SimpleNamespace(callspec=SimpleNamespace(params=params), get_closest_marker=lambda name: name == "cells")

    session = SimpleNamespace(seeds=(3, 1), cells=lambda profile: STUDY.cells(QUICK_PROFILE))
    items = [item(seed, *cell) for seed in (1, 3) for cell in (("gpt2", "sa", "sft"), ("t5", "qa", "qlora"))]
    items.sort(key=by_length(session, [("quick", seed, "") for seed in (3, 1)], longest_first=True))
    # the committed baseline has several times as many seconds for t5_qa_qlora as for gpt2_sa_sft
    order = [(i.callspec.params["seed"], i.callspec.params["task"]) for i in items]
    assert order == [(3, "qa"), (3, "sa"), (1, "qa"), (1, "sa")]
