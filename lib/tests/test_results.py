"""Records are plain and as the schema says, bounds speak in sentences, rows of parallel workers reach one file."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from pytest_benchmark.stats import Metadata

from fixtures.results import rebuilt
from lib.errors import InputError
from lib.grid.cells import grid
from lib.grid.profiles import FULL_PROFILE, QUICK_PROFILE
from lib.grid.tasks import TASKS
from lib.machine import PACKAGES, versions
from lib.results import run_table
from lib.results.files import read_records
from lib.results.record import new_record, plain
from lib.results.thresholds import load_bounds, minimum_of, missed

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "reports" / "schema.json").read_text())
CELLS = {cell.id: cell for cell in grid(QUICK_PROFILE)}
PHASE = {"seconds": 1.5, "rss_peak_gib": 0.75, "allocated_peak_gib": None, "reserved_peak_gib": None}
MEASURED = {
    "device": {
        "type": "cpu",
        "name": "a CPU",
        "threads": 1,
        "attention": "sdpa",
        "tf32": None,
        "used_by_others_gib": None,
        "contended": None,
    },
    "data": {
        "rows": {"train": 70, "validation": 15, "test": 15},
        "origins": {"train": "train.jsonl", "validation": "15% of train.jsonl", "test": "15% of train.jsonl"},
        "revision": None,
        "fingerprint": "0123456789abcdef",
    },
    "model": {"checkpoint": "bert-micro", "fingerprint": "f" * 16, "architecture": "BertMLPClassifier"},
    "parameters": {"trainable_params": 25, "total_params": 1000, "trainable_percent": 2.5},
    "training": {
        "seconds": 12.25,
        "updates": 2,
        "precision": "fp32",
        "order": "0123456789abcdef",
        "tokens": 5000,
        "micro_batch": 16,
        "fallbacks": [],
        "losses": [0.7, 0.5],
        "final_learning_rate": 5e-5,
        "epoch_scores": [],
        "chosen_epoch": None,
        "stopped": None,
    },
    "evaluation": {"seconds": 0.5, "loss": 0.4, "batch": 64, "metric_sources": {"accuracy": "built-in", "f1": "built-in"}},
    "memory": {
        "phases": {"load": PHASE, "train": PHASE | {"rss_peak_gib": 1.25}, "evaluate": PHASE},
        "ledger": {"weights_bytes": 4000, "gradients_bytes": 100, "optimizer_bytes": 200, "checkpoint_bytes": 100},
    },
    "throughput": {
        "train_samples_per_second": 123.4,
        "train_tokens_per_second": 4000.0,
        "train_steps_per_second": 8.0,
        "step_seconds_median": 0.12,
        "step_seconds_p90": 0.15,
        "padding_share": 0.1,
        "step_seconds": [0.12, 0.13],
        "measured_steps": 77,
        "warmup_steps": 3,
        "eval_samples_per_second": 30.0,
        "generated_tokens_per_second": None,
    },
    "scores": {"accuracy": 91.04, "f1_macro": 91.0},
    "examples": {"file": "0123456789abcdef.parquet", "rows_hash": "0123456789abcdef"},
    "bounds": {"accuracy": 88.0},
    "outcome": "passed",
}


def complete(cell_id="bert_sa_lora", **changes):
    return new_record(CELLS[cell_id]) | MEASURED | changes


# Bounds


def test_a_score_below_its_bound_is_a_sentence():
    sentences = missed({"accuracy": 86.1}, {"accuracy": 88.0})
    assert sentences == ["accuracy 86.1 is below 88.0"]


def test_a_score_on_its_bound_reaches_it():
    assert missed({"accuracy": 88.0, "f1_macro": 12.0}, {"accuracy": 88.0}) == []


def test_a_score_that_is_not_there_reaches_nothing():
    assert missed({"f1": 80.0}, {"exact_match": 70.25, "f1": 75.0}) == ["exact_match was not measured, its bound is 70.2"]


def test_a_score_that_is_not_a_number_reaches_nothing():
    assert missed({"f1": float("nan")}, {"f1": 0.0}) == ["f1 nan is below 0.0"]


def test_every_bound_missed_is_told():
    assert len(missed({"f1": 1.0, "exact_match": 1.0}, {"f1": 2.0, "exact_match": 2.0})) == 2


@pytest.mark.parametrize(
    ("scores", "minimum"),
    [
        ([90.0, 91.0, 92.0], 88.0),  # mean 91, sd 1: three of them off
        ([70.0, 74.0], 63.5),  # mean 72, sd sqrt(8) = 2.828: 72 - 8.485 = 63.515
        ([88.3, 88.3], 87.3),  # sd 0: a point off all the same
        ([80.0, 80.1, 80.2], 79.1),  # 3 x 0.1 is less than a point
        ([90.05, 90.05], 89.0),  # 89.05, rounded down
    ],
)
def test_a_bound_is_three_deviations_below_the_mean_and_at_least_a_point(scores, minimum):
    assert minimum_of(scores) == minimum


def test_bounds_are_read_without_their_evidence(tmp_path):
    path = tmp_path / "quick.toml"
    path.write_text("[cells.t5_qa_sft]\nf1 = {minimum = 70.5, mean = 72.0}\nexact_match = {minimum = 60.0, mean = 61.5}\n")
    assert load_bounds(path) == {"t5_qa_sft": {"f1": 70.5, "exact_match": 60.0}}


def test_nobody_has_measured_bounds_yet(tmp_path):
    assert load_bounds(tmp_path / "full.toml") == {}


# Records


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (float("nan"), None),
        (np.float32("inf"), None),
        ((1, (2.5, None)), [1, [2.5, None]]),
        ({8: np.int32(1)}, {"8": 1}),
        (True, True),
        ("text", "text"),
    ],
    ids=repr,
)
def test_a_value_becomes_what_json_can_hold(value, expected):
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)


def test_a_torch_scalar_becomes_a_number():
    import torch

    assert [plain(torch.tensor(0.5)), plain(torch.tensor(7)), plain(torch.tensor(float("nan")))] == [0.5, 7, None]


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"bytes", [Path("here")]], ids=["object", "set", "bytes", "path in a list"]
)
def test_a_value_without_a_plain_form_is_refused(value):
    with pytest.raises(TypeError, match="a record cannot hold"):
        plain(value)


def test_versions_name_python_and_every_library_that_matters():
    found = versions()
    assert found.keys() == {"python", *PACKAGES}
    assert found["python"].startswith("3.")


def faults(record):
    """What the schema has against a record."""
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(record)]


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("cell", [*grid(QUICK_PROFILE), *grid(FULL_PROFILE)], ids=lambda cell: f"{cell.profile.id}-{cell.id}")
def test_a_new_record_is_as_the_schema_says(cell):
    record = new_record(cell)
    assert faults(record) == []
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_complete_record_is_as_the_schema_says():
    assert faults(complete()) == []
    assert set(complete()) == set(SCHEMA["required"]) == set(SCHEMA["properties"])


def test_a_stopped_record_is_as_the_schema_says():
    stopped = MEASURED["training"] | {"losses": [0.7, None], "stopped": "loss is nan at update 2 of 80"}
    record = complete(training=stopped, evaluation=None, scores={}, outcome="stopped", missed=["loss is nan at update 2 of 80"])
    assert faults(record) == []


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"accuracy": 91.0}, "$"),
        ({"scores": {"accuracy": 100.5}}, "$.scores.accuracy"),
        ({"scores": {"accuracy": "UNSERIALIZABLE[91]"}}, "$.scores.accuracy"),
        ({"outcome": "failed"}, "$.outcome"),
        ({"outcome": "missed"}, "$.missed"),
        ({"missed": ["f1 1.0 is below 2.0"]}, "$.missed"),
        ({"training": None}, "$.training"),
        ({"device": {"type": "cpu", "name": "a CPU"}}, "$.device"),
        ({"memory": {"phases": {"train": {"seconds": 1.0}}, "ledger": {}}}, "$.memory.phases.train"),
        ({"recipe": {"learning_rate": 0.1}}, "$.recipe"),
        ({"schema_version": 1}, "$.schema_version"),
    ],
)
def test_a_record_that_strays_is_told_where(changes, place):
    assert place in {fault.split(":")[0] for fault in faults(complete(**changes))}


def test_a_record_without_a_key_is_refused():
    assert faults({name: value for name, value in complete().items() if name != "seeds"}) == [
        "$: 'seeds' is a required property"
    ]


# Summary


def lines(*records):
    return [line for line, _ in run_table.rows(records)]


def test_a_line_stands_under_its_header():
    assert [run_table.HEADER, *lines(complete())] == [
        "cell            score        points  bound  train s samples/s  peak GiB trainable  verdict",
        "bert_sa_lora    accuracy       91.0   88.0     12.2       123      1.25     2.50%  passed",
    ]


def test_what_was_not_measured_is_a_dash():
    line = lines(new_record(CELLS["gpt2_sum_qlora"]))[0]
    assert line.split() == ["gpt2_sum_qlora", "rougeLsum", *["-"] * 6, "unfinished"]


@pytest.mark.parametrize("record", [complete(), new_record(CELLS["gpt2_sum_qlora"])], ids=["complete", "new"])
def test_figures_end_where_their_headings_end(record):
    ends = [match.end() for match in re.finditer(r"points|bound|train s|samples/s|peak GiB", run_table.HEADER)]
    assert all(re.match(r"\S( |$)", lines(record)[0][end - 1 :]) for end in ends)


@pytest.mark.parametrize("cell_id", CELLS)
def test_no_line_is_wider_than_100_columns(cell_id):
    slow = MEASURED["training"] | {"seconds": 123_456.7}
    record = complete(cell_id, training=slow, scores={task.main_score: 100.0 for task in TASKS}, bounds={})
    assert max(map(len, [run_table.HEADER, *lines(record)])) <= 100


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "passed"),
        ({"bounds": {}}, "no bound yet"),
        ({"outcome": "missed"}, "missed"),
        ({"outcome": "stopped", "bounds": {}}, "stopped"),
        ({"outcome": "unfinished", "bounds": {}}, "unfinished"),
    ],
)
def test_the_verdict_is_a_word_or_three(changes, word):
    assert lines(complete(**changes))[0].endswith(f"  {word}")


def test_the_peak_is_the_gpus_where_there_is_one():
    phases = {"load": PHASE | {"reserved_peak_gib": 3.5}, "train": PHASE | {"reserved_peak_gib": 0.5, "rss_peak_gib": 9.0}}
    assert run_table.peak_gib(complete(memory={"phases": phases, "ledger": {}})) == 3.5
    assert run_table.peak_gib(complete()) == 1.25
    assert run_table.peak_gib(new_record(CELLS["bert_sa_lora"])) is None


def test_the_footer_counts_and_names_the_device():
    records = [complete(), complete(outcome="missed"), new_record(CELLS["t5_qa_sft"])]
    assert run_table.footer(records, 61.7) == "1 of 3 cells passed in 62 s on a CPU"
    assert run_table.footer(records[2:], 1.0) == "0 of 1 cells passed in 1 s on no device"


MIB = 2**20
FOOTPRINT = {
    "profile": "footprint",
    "data": None,
    "evaluation": None,
    "scores": {},
    "bounds": {},
    "flops": {
        "flops_per_step": 10**9,
        "achieved_flops_per_second": 2e10,
        "matmul_flops_per_second": 8e10,
        "mfu_percent": 25.0,
    },
    "memory": {
        "phases": {"train": PHASE},
        "ledger": {
            "weights_bytes": 400 * MIB,
            "gradients_bytes": 3 * MIB,
            "optimizer_bytes": 6 * MIB,
            "checkpoint_bytes": 3 * MIB,
            "activations_bytes": 103 * MIB,
            "peak_bytes": 512 * MIB,
        },
    },
}


def test_a_footprint_has_a_table_of_its_own():
    record = complete(**FOOTPRINT)
    assert [run_table.header([record]), *lines(record)] == [
        "cell            step ms  p90 ms tokens/s gen/s weights grads optim. activ. MiB peak MFU %  verdict",
        "bert_sa_lora        120     150     4000     -     400     3      6    103      512  25.0  passed",
    ]
    assert run_table.header([record, complete()]) == run_table.HEADER


def test_a_footprints_record_is_as_the_schema_says():
    Draft202012Validator(SCHEMA).validate(complete(**FOOTPRINT))


# Saved runs


def test_one_profile_of_a_saved_run_can_be_asked_for(tmp_path):
    path = saved(tmp_path / "run.json", complete(), complete(**FOOTPRINT))
    assert read_records(path, "footprint") == {"bert_sa_lora": complete(**FOOTPRINT)}
    assert read_records(path, "full") == {}


def saved(path, *records):
    path.write_text(json.dumps({"benchmarks": [{"extra_info": record} for record in records]}))
    return path


def test_a_saved_runs_records_are_found_by_cell(tmp_path):
    path = saved(tmp_path / "run.json", complete("t5_qa_sft"), {"no": "cell"}, complete("bert_sa_lora"))
    assert read_records(path) == {"t5_qa_sft": complete("t5_qa_sft"), "bert_sa_lora": complete("bert_sa_lora")}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "does not exist; `pytest -m quick --benchmark-json="),
        ('{"benchmarks": [', "is not a complete pytest-benchmark JSON"),
        ("[]", "is not a complete pytest-benchmark JSON"),
        ('{"benchmarks": []}', "holds no cells"),
    ],
    ids=["missing", "cut off", "another file", "no cells"],
)
def test_a_file_that_holds_no_run_is_refused_in_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=re.escape(f"{path} {sentence}")):
        read_records(path)


# What we lean on in pytest-benchmark


def test_pytest_benchmarks_session_still_has_the_names_we_lean_on(request):
    names = {"benchmarks", "disabled", "json", "save", "autosave", "quiet", "xdist_warning"}
    assert names <= vars(request.config._benchmarksession).keys()
    assert callable(request.config._benchmarksession.handle_saving)


def test_pytest_benchmarks_row_is_still_made_of_three_things():
    assert list(inspect.signature(Metadata).parameters) == ["fixture", "iterations", "options"]


def test_a_row_survives_the_way_from_a_worker(benchmark):
    benchmark.extra_info["cell_like"] = "t5_qa_sft"
    benchmark.pedantic(sum, args=([1, 2],), rounds=3, iterations=2)
    row = json.loads(json.dumps(benchmark.stats.as_dict()))
    assert json.loads(json.dumps(rebuilt(row).as_dict())) == row


TWO_CELLS = """
import pytest
from fixtures.pipeline import CELL
from lib.grid.cells import grid
from lib.grid.profiles import QUICK_PROFILE
from lib.results.record import new_record

@pytest.mark.parametrize("number", [1, 0])
def test_cell(request, benchmark, number):
    request.node.stash[CELL] = grid(QUICK_PROFILE)[number]
    benchmark.extra_info.update(new_record(grid(QUICK_PROFILE)[number]))
    benchmark.pedantic(sum, args=([1, 2],), rounds=1)
    assert number, "a miss"
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_rows_reach_one_file_misses_too_whatever_the_number_of_workers(tmp_path, workers):
    (tmp_path / "test_two.py").write_text(TWO_CELLS)
    options = ["-p", "fixtures.options", "-p", "fixtures.results", "-n", workers, "--benchmark-json=rows/new.json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", *options, "test_two.py"]
    path = {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=environment | path, capture_output=True, text=True, check=False)
    rows = json.loads((tmp_path / "rows" / "new.json").read_text())["benchmarks"]
    assert [row["extra_info"]["cell"] for row in rows] == ["bert_sum_lora", "bert_sum_qlora"]
    assert [row["name"] for row in rows] == ["test_cell[0]", "test_cell[1]"]
    assert "0 of 2 cells passed" in run.stdout
