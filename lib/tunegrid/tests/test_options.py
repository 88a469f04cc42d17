"""What the command line selects, what it changes, and how it refuses."""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest

from fixtures.child import Child, read
from fixtures.old_options import REPLACED
from fixtures.options import profile_from, pytest_addoption, settings_of
from fixtures.planning import by_length
from fixtures.settings import known_fields, setting
from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY, STUDY_IDS
from tunegrid.grid.profiles import FULL_CAPS, QUICK, QUICK_PROFILE
from tunegrid.grid.recipes import RECIPES, Adapter, Generation, Recipe
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
        ("--set", "max_step=4", "invalid --set 'max_step=4': unknown field 'max_step'; did you mean max_steps?"),
        ("--set", "train_rows=-3", "invalid --set 'train_rows=-3': expected a whole number of at least 0"),
        ("--set", "optim=adamw", "unknown optimizer 'adamw'; known are adamw_bnb_8bit, adamw_torch"),
        ("--set", "adapter.r=4", "--set adapter.r changes nothing: no recipe of these cells has adapter settings"),
        ("--isolate", "maybe", "invalid --isolate 'maybe': expected one of auto, yes, no"),
        ("--isolate", "--list-cells", "--isolate takes a value: write --isolate=yes"),
        ("--child", "/nope.json", "--child /nope.json is not a file that this suite wrote: leave the option to it"),
        ("--device", "mps", "invalid --device 'mps': expected cpu, cuda or cuda:N, where memory and time are measured rightly"),
        ("--grid", "/nope.py", "--grid /nope.py is not a Python file"),
        ("--budget", "half an hour", "--budget 'half an hour' is no duration; write it as in 30m, 90s or 1h30m"),
        ("--estimates-from", "/nope.json", "--estimates-from /nope.json is not a file"),
        ("--data-root", "/nope", "--data-root /nope is not a folder"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_in_one_sentence(option, value, sentence):
    answer = collect(option, value, *(("--cells", "bert_sa_sft") if "adapter" in value else ()))
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
    """What `config.getoption` answers: these values, and the defaults; `settings` are those of `--set`."""
    settings = tuple(options.pop("settings", {}).items())
    named = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    return {"--set": settings, "--child": Child(), **named}.get


def recipe_of(cell_id, profile):
    return STUDY.cell(cell_id, profile).recipe


def test_without_options_quick_is_itself():
    assert STUDY.cells(profile_from(option_values(), "quick")) == STUDY.cells(QUICK_PROFILE)


def test_options_replace_the_recipes_values_in_every_cell():
    profile = profile_from(option_values(settings={"max_steps": 7, "learning_rate": 1e-5}), "quick")
    recipes = [cell.recipe for cell in STUDY.cells(profile)]
    assert {(recipe.max_steps, recipe.learning_rate) for recipe in recipes} == {(7, 1e-5)}


def test_epochs_lift_the_quick_limit_on_updates():
    recipe = recipe_of("bert_sa_lora", profile_from(option_values(settings={"num_train_epochs": 2}), "quick"))
    assert QUICK["bert_sa_lora"][0] > 0
    assert (recipe.max_steps, recipe.num_train_epochs) == (0, 2)


def test_roots_and_device_are_the_full_profiles_to_choose(tmp_path):
    option = option_values(data_root=tmp_path, checkpoint_root=tmp_path, device="cuda:1", settings={"own_test": True})
    quick, full = (profile_from(option, name) for name in ("quick", "full"))
    assert (quick.data_root, quick.device, quick.own_test) == (QUICK_PROFILE.data_root, "cpu", False)
    assert (full.data_root, full.checkpoint_root, full.device, full.own_test) == (tmp_path, tmp_path, "cuda:1", True)


def test_no_limit_at_all_is_a_change_of_a_profile_with_caps():
    assert settings_of(option_values(settings={"train_rows": 0}))
    assert profile_from(option_values(settings={"train_rows": 0}), "full").cap("sa", "train") is None
    assert profile_from(option_values(), "full").cap("sa", "train") == FULL_CAPS["sa"].train
    assert profile_from(option_values(settings={"eval_rows": 7}), "full").cap("sa", "validation") == 7


def test_a_part_of_a_recipe_is_set_where_the_recipe_has_it():
    profile = profile_from(option_values(settings={"adapter.r": 3, "generation.num_beams": 5}), "full")
    adapted, whole = recipe_of("t5_sum_lora", profile), recipe_of("t5_sa_sft", profile)
    assert (adapted.adapter.r, adapted.adapter.lora_alpha) == (3, RECIPES["t5_sum_lora"].adapter.lora_alpha)
    assert adapted.generation.num_beams == 5
    assert whole == RECIPES["t5_sa_sft"]


def test_another_adapter_has_no_count_of_parameters_from_the_study():
    def changed(field, value):
        return recipe_of("bert_sa_qlora", profile_from(option_values(settings={field: value}), "full"))

    assert changed("adapter.r", 3).trainable_params is None
    assert changed("weight_decay", 0.5).trainable_params == RECIPES["bert_sa_qlora"].trainable_params > 0


# Settings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("max_steps=4", 4),
        ("learning_rate=5e-5", 5e-5),
        ("head_learning_rate=none", None),
        ("gradient_checkpointing=yes", True),
        ("own_test=false", False),
        ("prefix=none", "none"),
        ("prefix=summarize: a=b", "summarize: a=b"),
        ("text=title, content", ("title", "content")),
        ("adapter.target_modules=q,v", ("q", "v")),
        ("generation.length_penalty=-1.5", -1.5),
    ],
)
def test_a_setting_has_the_type_of_its_field(text, value):
    assert setting(text) == (text.partition("=")[0], value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_steps", "expected FIELD=VALUE, as in max_steps=4"),
        ("max_steps=1.5", "expected a whole number of at least 0"),
        ("num_train_epochs=0", "expected a whole number of at least 1"),
        ("learning_rate=nan", "expected a number above 0"),
        ("learning_rate=none", "expected a number above 0"),
        ("max_grad_norm=x", "expected a number of at least 0 or none"),
        ("warmup_ratio=2", "expected a number of at least 0 and of at most 1"),
        ("precision=fp8", "expected one of fp32, fp16, bf16"),
        ("own_test=perhaps", "expected true or false"),
        ("adapter.r=0", "expected a whole number of at least 1"),
        ("generation.beams=2", "unknown field 'generation.beams'; did you mean generation.num_beams?"),
        ("trainable_params=5", "unknown field 'trainable_params'; fields are optim, learning_rate, "),
    ],
)
def test_a_setting_that_cannot_be_used_says_what_was_expected(text, expected):
    with pytest.raises(InputError) as refused:
        setting(text)
    assert str(refused.value).startswith(f"invalid --set {text!r}: {expected}")


def test_every_field_of_how_a_cell_trains_can_be_set():
    def names(part):
        return {field.name for field in fields(part)}

    own = names(Recipe) - {"adapter", "generation", "trainable_params", "total_params", "from_notebook", "ours"}
    inside = {f"adapter.{name}" for name in names(Adapter)} | {f"generation.{name}" for name in names(Generation)}
    assert set(known_fields()) == own | inside | {"train_rows", "eval_rows", "own_test"}


# Options of old


@pytest.mark.parametrize("old", REPLACED)
@pytest.mark.parametrize("form", ["apart", "together", "bare"])
def test_an_option_of_old_says_what_to_write_now(parse, old, form):
    given = {"apart": (old, "7"), "together": (f"{old}=7",), "bare": (old,)}[form]
    new = REPLACED[old].format("VALUE" if form == "bare" else "7")
    with pytest.raises(pytest.UsageError) as refused:
        parse(given)
    assert str(refused.value) == f"{old} was replaced: write {new}"


def test_what_an_option_of_old_names_is_taken(parse):
    for new in REPLACED.values():
        words = new.format("7").replace("optim=7", "optim=adamw_torch").partition(" in the environment")[0].split()
        if not words[0].startswith("RAY_ADDRESS"):
            parse(words)


@pytest.fixture
def parse(request):
    """Reads a command line of the suite's own options."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    group = SimpleNamespace(addoption=parser.add_argument)
    pytest_addoption(SimpleNamespace(getgroup=lambda *names: group), request.config.pluginmanager)
    return parser.parse_args


def test_an_option_of_old_is_one_sentence_on_the_terminal_and_not_in_the_help():
    answer = collect("--epochs", "1")
    assert answer.returncode == pytest.ExitCode.USAGE_ERROR
    assert (answer.stdout + answer.stderr).split("\n")[0] == "ERROR: --epochs was replaced: write --set num_train_epochs=1"
    shown = collect("--help").stdout
    own = set(re.findall(r"^  (--[\w-]+)", shown.partition("\ntunegrid: ")[2].partition("\n[pytest]")[0], re.MULTILINE))
    assert own & {*REPLACED, "--perturb", "--child"} == set()
    assert {"--set", "--seeds", "--isolate"} <= own
    assert len(own) <= 25


# What a child is told


def test_a_child_reads_what_it_was_told(tmp_path):
    child = Child(runs=(("t5_sa_lora", 3),), test="a.py::b[c]", parent=7, ranks=2, reports_to=tmp_path, progress_to=None)
    option = child.option(tmp_path / "child.json")
    assert option == f"--child={tmp_path / 'child.json'}"
    assert read(option.partition("=")[2]) == child
    assert read(Child().option(tmp_path / "other.json").partition("=")[2]) == Child()


def test_a_footprint_without_a_gpu_is_of_one_row_an_update():
    cpu, gpu = (profile_from(option_values(), "footprint", cuda=cuda) for cuda in (False, True))
    assert (cpu.device, gpu.device) == ("cpu", None)
    assert {recipe_of(name, cpu).per_device_train_batch_size for name in STUDY_IDS} == {1}
    sizes = {name: recipe_of(name, gpu).per_device_train_batch_size for name in STUDY_IDS}
    assert sizes == {name: RECIPES[name].per_device_train_batch_size for name in STUDY_IDS}
    assert profile_from(option_values(device="cpu"), "footprint", cuda=True) == cpu


def test_a_seed_alone_leaves_the_bounds_in_force():
    assert not settings_of(option_values(seeds=(3,)))


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
