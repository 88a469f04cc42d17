"""The suite as a user runs it: one small cell through pytest, with what it leaves behind."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunegrid import ROOT
from tunegrid.grid.profiles import QUICK
from tunegrid.record import from_json, to_json

SMALL = ("--train-rows", "48", "--eval-rows", "16")


def run(tmp_path, *options, timeout=120, **variables):
    """Exit code, output and the rows of the JSON that a run of the suite writes."""
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", f"--benchmark-json={path}", *SMALL, *options]
    # Without the outer session's variables: this session is not one of its workers.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | variables
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
    rows = json.loads(path.read_text())["benchmarks"] if path.exists() else []
    return answer.returncode, answer.stdout + answer.stderr, [row["extra_info"] for row in rows]


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    stages = f"--stage-times={folder / 'stages.json'}"
    return *run(folder, "-m", "quick", "--cells", "bert_sa_qlora", "--epochs", "2", stages), folder


def test_a_run_that_the_command_line_bounds_is_held_to_no_bound(two_epochs):
    code, output, [record], _ = two_epochs
    assert (code, record["status"], record["bounds"]) == (0, "passed", {})
    assert "too short" in output  # for an audit; where none fails, the table says "no bound yet"


NOTHING_LEARNED = ("-m", "quick", "--cells", "t5_qa_lora", "--learning-rate", "1e-7", "--eval-rows", "128")


def test_a_run_of_full_length_that_learned_nothing_is_missed_whatever_the_command_line_changes(tmp_path):
    code, output, [record] = run(tmp_path, *NOTHING_LEARNED)
    assert (code, record["status"], record["bounds"], record["excused"]) == (1, "missed", {}, {})
    [sentence] = record["missed"]
    assert sentence.startswith("audit learned_something: f1 ")
    assert sentence in output
    assert "0 of 1 cells passed in" in output


def test_a_run_too_short_to_learn_names_the_audit_and_passes(tmp_path):
    code, output, [record] = run(tmp_path, *NOTHING_LEARNED, "--max-steps", "12")
    reason = "a run of 12 of 84 planned updates may be too short to meet it"
    assert (code, record["status"], record["missed"], record["excused"]) == (0, "passed", [], {"learned_something": reason})
    assert f"; {reason} (t5_qa_lora, quick, seed 0)" in output
    assert "1 of 1 cells passed, 1 of them too short for some audit, in" in output


def test_the_row_is_read_back_as_it_was_written(two_epochs):
    _, _, [record], _ = two_epochs
    assert to_json(from_json(record)) == record
    assert {"checkpoint_loaded", "quantized_as_declared", "base_frozen"} <= {finding["name"] for finding in record["audits"]}
    assert "UNSERIALIZABLE" not in json.dumps(record)


def test_validation_chooses_among_epochs(two_epochs):
    _, _, [record], _ = two_epochs
    training = record["training"]
    assert training["updates"] == 8  # 48 rows in batches of 12, twice
    assert len(training["epoch_scores"]) == 2
    assert training["chosen_epoch"] == 1 + training["epoch_scores"].index(max(training["epoch_scores"]))


def test_stages_account_for_the_whole_session(two_epochs):
    _, _, [record], folder = two_epochs
    account = json.loads((folder / "stages.json").read_text())
    [process] = account["processes"]
    assert process["stages"]["updates"] == record["training"]["seconds"]
    assert process["stages"]["import libraries"] > 1
    # Plugins are loaded before the session begins; collecting and saving belong to no stage.
    assert 0.7 < sum(process["stages"].values()) / account["seconds"] < 1.3


def test_a_loss_that_is_not_a_number_stops_the_cell_and_keeps_its_row(tmp_path):
    broken = tmp_path / "bert-micro"
    shutil.copytree(ROOT / "fixtures" / "backbones" / "bert-micro", broken)
    weights = load_file(broken / "model.safetensors")
    weights["bert.pooler.dense.weight"][:] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    code, output, [record] = run(tmp_path, "-m", "quick", "--cells", "bert_sa_sft", f"--checkpoint-root={tmp_path}")
    assert (code, record["status"], record["scores"]) == (1, "stopped", {})
    steps = QUICK["bert_sa_sft"][0]
    assert record["missed"] == [f"loss is nan at update 1 of {steps} (bert_sa_sft, quick, seed 0)"]
    assert record["missed"][0] in output


def test_full_without_cuda_is_skipped_with_the_way_out(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here, on which full cells run")
    code, output, records = run(tmp_path, "-m", "full", "--cells", "bert_sa_sft", "-rs")
    assert (code, records) == (0, [])
    assert "there is none; --device cpu runs them here, slowly" in output


def test_rows_that_cannot_be_used_end_in_a_sentence_that_names_the_row(tmp_path):
    folder = tmp_path / "squad"
    folder.mkdir()
    row = {"id": "r7", "title": "a", "context": "a red car", "question": "what ?"}
    rows = [row | {"title": str(n), "answers": {"text": ["red"], "answer_start": [3]}} for n in range(20)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "validation.jsonl").write_text(json.dumps(rows[0]) + "\n")
    shutil.copytree(ROOT / "fixtures" / "backbones" / "bert-micro", tmp_path / "bert-base-uncased")
    roots = (f"--data-root={tmp_path}", f"--checkpoint-root={tmp_path}")
    code, output, _ = run(tmp_path, "-m", "full", "--cells", "bert_qa_sft", "--device", "cpu", *roots)
    assert code == 1
    assert "(id r7): answer 'red' does not stand at answer_start 3, where the context has 'ed '" in output
    assert "Traceback" not in output


WRONG = """
from tunegrid.grid.methods import Lora

class Wrong(Lora):
    def declared_facts(self, cell):
        return ("rank 99",)

def pytest_tunegrid_grid(grid):
    grid.add_method(Wrong(id="wrong", name="wrong"), like="lora")
"""


def test_a_full_cell_that_is_wrong_from_the_start_does_not_train_and_keeps_its_row(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    shutil.copytree(ROOT / "fixtures" / "backbones" / "bert-micro", tmp_path / "bert-base-uncased")
    roots = (f"--data-root={ROOT / 'fixtures' / 'data'}", f"--checkpoint-root={tmp_path}", f"--grid={tmp_path / 'wrong.py'}")
    code, output, [record] = run(tmp_path, "-m", "full", "--cells", "bert_qa_wrong", "--device", "cpu", *roots)
    assert (code, record["status"], record["training"]["updates"], record["evaluation"]) == (1, "stopped", 0, None)
    [sentence] = record["missed"]
    assert sentence.startswith("not trained, audit adapters_where_declared: ")
    assert sentence.endswith("; declared: rank 99 (bert_qa_wrong, full, seed 0)")
    assert sentence in output
    assert [f["name"] for f in record["audits"] if not f["passed"]] == ["adapters_where_declared"]


FORGETFUL = """
import pytest
from tunegrid.results.passing import why_not_to_train

@pytest.mark.cells("full")
def test_mine(cell, audit_before, trainer, progress, benchmark):
    wrong = why_not_to_train(cell, audit_before())
    train, given = (trainer.not_run, (wrong,)) if wrong else (trainer.run, (progress,))
    training = benchmark.pedantic(train, args=given, rounds=1)
    print("updates:", training.updates, training.stopped)
"""


def test_a_cell_whose_test_forgets_its_record_is_guarded_all_the_same(tmp_path):
    """Its body says so, not a fixture that only `record` asks for."""
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "test_mine.py").write_text(FORGETFUL)
    shutil.copytree(ROOT / "fixtures" / "backbones" / "bert-micro", tmp_path / "bert-base-uncased")
    roots = (f"--data-root={ROOT / 'fixtures' / 'data'}", f"--checkpoint-root={tmp_path}", f"--grid={tmp_path / 'wrong.py'}")
    mine = (str(tmp_path / "test_mine.py"), f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}", "-p", "conftest")
    code, output, _ = run(tmp_path, "-m", "full", "--cells", "bert_qa_wrong", "--device", "cpu", "-s", *mine, *roots)
    assert "updates: 0 not trained, audit adapters_where_declared: " in output
    assert (code, "1 passed" in output, "Failed: 1 of 1 cell did not finish." in output) == (1, True, True)


COUNT = """
from tunegrid.grid.methods import Method

class Counting(Method):
    def after_step(self, model, update):
        print("step", update)

def pytest_tunegrid_grid(grid):
    grid.add_method(Counting(id="counting", name="counting"), like="sft")
"""


TASK = """
from dataclasses import replace
from tunegrid.grid.tasks import SA

def pytest_tunegrid_grid(grid):
    grid.add_task(replace(SA, id="stars", text=("content",), target="title"), like="sa")
"""
LARGE = """
from dataclasses import replace
from tunegrid.grid.backbones import BERT

def pytest_tunegrid_grid(grid):
    grid.add_backbone(replace(BERT, id="bertlarge", micro=None), like="bert")
"""


@pytest.mark.parametrize("way", ["file", "plugin"])
def test_what_a_user_adds_runs_as_the_suites_own(tmp_path, way):
    (tmp_path / "counting_methods.py").write_text(COUNT)
    source = (f"--grid={tmp_path / 'counting_methods.py'}",) if way == "file" else ("-p", "counting_methods")
    options = ("-m", "quick", "--cells", "gpt2_sa_counting", "--max-steps", "2", "-s", "-n", "2" if way == "file" else "0")
    code, output, [record] = run(tmp_path, *source, *options, PYTHONPATH=str(tmp_path))
    assert (code, record["status"], record["method"]) == (0, "passed", "counting"), output
    assert way == "file" or "step 0\nstep 1" in output
    assert "gpt2_sa_counting" in output


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import nothing_of_this_name", "mine.py, line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("x = 1\ny = (", "mine.py, line 2: SyntaxError: '(' was never closed"),
        ("def grid(grid): pass", "mine.py has no function pytest_tunegrid_grid(grid), which adds to the grid"),
        (LARGE, "bertlarge_sa_sft has no quick recipe, so it runs with -m full and -m footprint only"),
        (TASK, "task 'stars': for classify, column 'title' must hold a whole number"),
        ("def pytest_tunegrid_grid(g, h): pass", "mine.py: TypeError: pytest_tunegrid_grid() missing 1 required positional"),
        ("def pytest_tunegrid_grid(grid):\n    1 / 0", "mine.py, line 2: ZeroDivisionError: division by zero"),
        (
            COUNT.replace('like="sft"', 'like="sft", quick={"precision": "tf32"}'),
            "bert_sum_counting: recipe.precision is \"tf32\", but it should be 'fp32', 'fp16' or 'bf16'",
        ),
        (
            COUNT + '    grid.add_method(Method(id="lora", name="x"))',
            "method 'lora' is in the grid already; give yours another id",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, text, sentence):
    (tmp_path / "mine.py").write_text(text)
    code, output, _ = run(tmp_path, f"--grid={tmp_path / 'mine.py'}", "-m", "quick", "--cells", "bertlarge_sa_sft")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert sentence in output
    assert "Traceback" not in output


def test_a_comparison_prints_pytest_benchmarks_table(tmp_path):
    cells = ("-m", "quick", "--cells", "gpt2_sa_lora", "--max-steps", "2", f"--benchmark-storage=file://{tmp_path}")
    assert "(0001_first)" not in run(tmp_path, *cells, "--benchmark-save=first")[1]
    assert "(0001_first)" in run(tmp_path, *cells, "--benchmark-compare")[1]


def test_own_test_rows_are_for_tasks_that_have_the_choice(tmp_path):
    for name in ("amazon_polarity", "squad"):
        shutil.copytree(ROOT / "fixtures" / "data" / name, tmp_path / name)
    reviews = tmp_path / "amazon_polarity"
    lines = (reviews / "train.jsonl").read_text().splitlines(keepends=True)
    (reviews / "test.jsonl").write_text("".join(lines[:100]))
    (reviews / "train.jsonl").write_text("".join(lines[100:]))
    roots = (f"--data-root={tmp_path}", f"--checkpoint-root={tmp_path}", "--device", "cpu", "--own-test")
    shutil.copytree(ROOT / "fixtures" / "backbones" / "gpt2-micro", tmp_path / "gpt2")
    options = ("-m", "full", "--cells", "gpt2_qa_lora,gpt2_sa_lora", "--max-steps", "2", *roots)
    code, output, records = run(tmp_path, *options)
    assert code == 0, output
    origins = {record["cell"]: record["data"]["origins"]["test"] for record in records}
    assert origins == {"gpt2_qa_lora": "squad/validation.jsonl", "gpt2_sa_lora": "amazon_polarity/test.jsonl"}


def test_a_later_file_may_build_on_an_earlier_one(tmp_path):
    (tmp_path / "first.py").write_text(COUNT)
    second = COUNT.replace('id="counting", name="counting"', 'id="again", name="again"').replace(
        'like="sft"', 'like="counting"'
    )
    (tmp_path / "second.py").write_text(second)
    files = [f"--grid={tmp_path / name}.py" for name in ("first", "second", "first")]
    code, output, _ = run(tmp_path, *files, "--list-cells")
    assert code == 0, output
    assert "gpt2_sa_again" in output
    assert "36 cells" not in output  # 27, and nine of each


def test_a_record_that_cannot_be_kept_fails_its_cell_and_no_other(tmp_path):
    broken = """
def pytest_runtest_setup(item):
    from tunegrid.run import evaluation
    if not hasattr(evaluation, "sound"):
        evaluation.sound, evaluation.evaluate = evaluation.evaluate, negative

def negative(model, codec, *rest, **options):
    from tunegrid.run import evaluation
    result = evaluation.sound(model, codec, *rest, **options)
    if codec.cell.id == "gpt2_sa_lora":
        result.scores["accuracy"] = -1.0
    return result
"""
    (tmp_path / "broken.py").write_text(broken)
    options = ("-m", "quick", "--cells", "gpt2_sa_lora,gpt2_sa_qlora", "--max-steps", "2", "-p", "broken")
    code, output, records = run(tmp_path, *options, PYTHONPATH=str(tmp_path))
    assert code == 1
    assert {record["cell"]: record["status"] for record in records} == {"gpt2_sa_lora": "error", "gpt2_sa_qlora": "passed"}
    assert "its record cannot be kept" in output
