"""Bounds speak in sentences, the table after a run is aligned, and rows of parallel workers reach one file."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fixtures.results import extent_of
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.profiles import FULL_PROFILE
from tunegrid.grid.tasks import TASKS
from tunegrid.record import new_record
from tunegrid.record.checks import below_bounds
from tunegrid.results import run_table
from tunegrid.results.files import read_records
from tunegrid.results.passing import Extent
from tunegrid.results.table import Column
from tunegrid.results.table import lines as table_lines
from tunegrid.results.thresholds import load_bounds
from tunegrid.tests.records import CELLS, FOOTPRINT, MEASURED, PHASE, complete, complete_json, saved
from tunegrid.tests.sessions import run_in

PLUGINS = ("options", "session", "selection", "results")

# Bounds


def test_a_score_below_its_bound_is_a_sentence():
    sentences = below_bounds({"accuracy": 86.1}, {"accuracy": 88.0})
    assert sentences == ["accuracy 86.1 is below 88.0"]


def test_a_score_on_its_bound_reaches_it():
    assert below_bounds({"accuracy": 88.0, "f1_macro": 12.0}, {"accuracy": 88.0}) == []


def test_a_score_that_is_not_there_reaches_nothing():
    assert below_bounds({"f1": 80.0}, {"exact_match": 70.25, "f1": 75.0}) == ["exact_match was not measured, its bound is 70.2"]


def test_a_score_that_is_not_a_number_reaches_nothing():
    assert below_bounds({"f1": float("nan")}, {"f1": 0.0}) == ["f1 nan is below 0.0"]


def test_every_bound_missed_is_told():
    assert len(below_bounds({"f1": 1.0, "exact_match": 1.0}, {"f1": 2.0, "exact_match": 2.0})) == 2


def test_bounds_are_read_without_their_evidence(tmp_path):
    path = tmp_path / "quick.toml"
    path.write_text("[cells.t5_qa_sft]\nf1 = {minimum = 70.5, mean = 72.0}\nexact_match = {minimum = 60.0, mean = 61.5}\n")
    assert load_bounds(path) == {"t5_qa_sft": {"f1": 70.5, "exact_match": 60.0}}


def test_nobody_has_measured_bounds_yet(tmp_path):
    assert load_bounds(tmp_path / "full.toml") == {}


# The table after a run


def test_a_longer_id_widens_its_column():
    columns = (Column(title="cell", width=4), Column(title="f1", width=4, right=True), Column(title="status", gap=2))
    assert table_lines(columns, [("short", "1.0", "passed"), ("a_longer_id", "88.0", "")]) == [
        "cell          f1  status",
        "short        1.0  passed",
        "a_longer_id 88.0",
    ]


def lines(*records):
    return [line for line, _ in run_table.rows(records)]


def test_a_line_stands_under_its_header():
    assert [run_table.header([complete()]), *lines(complete())] == [
        "cell            score        points  bound  train s samples/s  peak GiB trainable  status",
        "bert_sa_lora    accuracy       91.0   88.0     12.2       123      1.25     2.50%  passed",
    ]


def test_what_was_not_measured_is_a_dash():
    line = lines(new_record(CELLS["gpt2_sum_qlora"]))[0]
    assert line.split() == ["gpt2_sum_qlora", "rougeLsum", *["-"] * 6, "unfinished"]


@pytest.mark.parametrize("record", [complete(), new_record(CELLS["gpt2_sum_qlora"])], ids=["complete", "new"])
def test_figures_end_where_their_headings_end(record):
    header = run_table.header([record])
    ends = [match.end() for match in re.finditer(r"points|bound|train s|samples/s|peak GiB", header)]
    assert all(re.match(r"\S( |$)", lines(record)[0][end - 1 :]) for end in ends)


def with_joules(**figures):
    """Memory of which each phase took so many joules."""
    return MEASURED["memory"] | {"phases": {"train": PHASE | figures, "evaluate": PHASE | figures}}


def test_a_run_with_counters_of_energy_shows_kilojoules_of_all_phases():
    counted = complete(memory=with_joules(cpu_energy_joules=610.0))
    assert run_table.header([counted]).split()[-3:] == ["CPU", "kJ", "status"]
    assert lines(counted)[0].split()[-2:] == ["1.22", "passed"]
    both = complete(memory=with_joules(cpu_energy_joules=610.0, gpu_energy_joules=60_000.0))
    assert run_table.header([both]).split()[-5:] == ["GPU", "kJ", "CPU", "kJ", "status"]
    shown = lines(both, complete("bert_sa_sft"))
    assert [line.split()[-3:] for line in shown] == [["120.00", "1.22", "passed"], ["-", "-", "passed"]]
    assert max(len(line) for line in [run_table.header([both]), *lines(both)]) <= 100


def test_a_run_without_counters_shows_none():
    assert "kJ" not in run_table.header([complete()])


@pytest.mark.parametrize("cell_id", CELLS)
def test_no_line_is_wider_than_100_columns(cell_id):
    slow = MEASURED["training"] | {"seconds": 123_456.7}
    record = complete(cell_id, training=slow, scores={task.main_score: 100.0 for task in TASKS}, bounds={})
    assert max(map(len, [run_table.header([record]), *lines(record)])) <= 100


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "passed"),
        ({"bounds": {}}, "no bound yet"),
        ({"status": "missed"}, "missed"),
        ({"status": "stopped", "bounds": {}}, "stopped"),
        ({"status": "unfinished", "bounds": {}}, "unfinished"),
    ],
)
def test_the_verdict_is_a_word_or_three(changes, word):
    assert lines(complete(**changes))[0].endswith(f"  {word}")


def test_the_peak_is_the_gpus_where_there_is_one():
    phases = {"load": PHASE | {"reserved_peak_gib": 3.5}, "train": PHASE | {"reserved_peak_gib": 0.5, "rss_peak_gib": 9.0}}
    assert complete(memory=MEASURED["memory"] | {"phases": phases}).peak_gib == 3.5
    assert complete().peak_gib == 1.25
    assert new_record(CELLS["bert_sa_lora"]).peak_gib is None


def test_the_footer_counts_and_names_the_device():
    records = [complete(), complete("bert_sa_sft", status="missed"), new_record(CELLS["t5_qa_sft"])]
    assert run_table.footer(records, 61.7) == "1 of 3 cells passed in 62 s on a CPU"
    assert run_table.footer(records[2:], 1.0) == "0 of 1 cells passed in 1 s on no device"


def test_a_footprint_has_a_table_of_its_own():
    record = complete(**FOOTPRINT)
    assert [run_table.header([record]), *lines(record)] == [
        "cell            step ms  p90 ms tokens/s gen/s weights grads optim. activ. MiB peak MFU %  status",
        "bert_sa_lora        120     150     4000     -     400     3      6    103      512  25.0  passed",
    ]
    assert run_table.header([record, complete()]) == run_table.header([complete()])


def test_a_run_that_was_too_short_for_an_audit_with_some_seed_says_so():
    short = complete(bounds={}, excused={"learned_something": "too short"}, seeds=complete_json()["seeds"] | {"seed": 1})
    assert lines(short)[0].endswith("  too short")
    assert lines(complete(bounds={}), short)[0].endswith("  too short")
    assert (
        run_table.footer([complete(), short], None)
        == "2 of 2 runs of 1 cells passed, 1 of them too short for some audit, on a CPU"
    )


# How far a run went


@pytest.mark.parametrize(
    ("options", "rows", "updates", "extent"),
    [
        # 100,000 rows in batches of 16 are 6,250 updates, three times
        ({"train_rows": 2000, "changes": {"num_train_epochs": 2}}, 2000, 250, (250, 18_750, 6_250, None)),
        ({"changes": {"max_steps": 3}, "eval_rows": 8}, 100_000, 3, (3, 18_750, 6_250, 8)),
        ({"changes": {"learning_rate": 1e-3}}, 100_000, 18_750, (18_750, 18_750, 6_250, None)),
        # in batches of 4 the same rows take four times as many
        ({"changes": {"per_device_train_batch_size": 4, "max_steps": 9000}}, 100_000, 9000, (9000, 75_000, 25_000, None)),
    ],
)
def test_a_run_is_measured_by_what_its_recipe_plans_without_the_command_line(options, rows, updates, extent):
    cell = STUDY.cell("bert_sa_sft", replace(FULL_PROFILE, **options))
    session = SimpleNamespace(limited=True, grid_of=lambda profile: STUDY)
    splits = SimpleNamespace(train=range(rows), test=range(8))
    trainer = SimpleNamespace(features=range(rows), log=SimpleNamespace(updates=updates))
    names = ("updates", "planned", "one_pass", "test_rows")
    assert extent_of(session, cell, splits, trainer) == Extent(**dict(zip(names, extent, strict=True)))


# Saved runs


def test_one_profile_of_a_saved_run_can_be_asked_for(tmp_path):
    path = saved(tmp_path / "run.json", complete(), complete(**FOOTPRINT))
    assert read_records(path, "footprint") == {"bert_sa_lora": complete(**FOOTPRINT)}
    assert read_records(path, "full") == {}


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


# Rows of a session

WITH_EXAMPLES = """
import pytest
from fixtures.session import session_of
from tunegrid.results.examples import Examples, write

@pytest.mark.cells("quick")
def test_cell(request, profile, backbone, task, method, seed, benchmark):
    benchmark.pedantic(sum, args=([1, 2],), rounds=1)
    from tunegrid.record import new_record
    run = session_of(request.config).run_of(request.node)
    run.record = new_record(run.cell)
    run.record.examples = write(Examples(ids=["a"], points={"accuracy": [100.0]}, predictions=["1"]))
"""


def test_examples_are_beside_every_file_that_a_session_saves(tmp_path):
    """What --benchmark-save wrote before stays without them."""
    (tmp_path / "test_one.py").write_text(WITH_EXAMPLES)
    older = tmp_path / "saved" / "older" / "0001_a.json"
    older.parent.mkdir(parents=True)
    older.write_text("{}")
    options = ("--benchmark-json=rows/new.json", "--benchmark-save=h100", "--benchmark-storage=file://./saved")
    code, output = run_in(tmp_path, PLUGINS, "--cells=bert_sa_lora", *options, TUNEGRID_CACHE=str(tmp_path / "cache"))
    assert code == 0, output
    stored = next(path for path in (tmp_path / "saved").rglob("*_h100.json"))
    for path in (tmp_path / "rows" / "new.json", stored):
        record = read_records(path)["bert_sa_lora"]
        assert (path.parent / "examples" / record.examples.file).is_file()
    assert not (older.parent / "examples").exists()


TWO_CELLS = """
import pytest

@pytest.mark.cells("quick")
def test_cell(profile, backbone, task, method, seed, benchmark):
    benchmark.pedantic(sum, args=([1, 2],), rounds=1)
    assert method == "lora", "a miss"
"""


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.slow
def test_rows_reach_one_file_misses_too_whatever_the_number_of_workers(tmp_path, workers):
    (tmp_path / "test_two.py").write_text(TWO_CELLS)
    options = ("--cells=bert_sum_lora,bert_sum_qlora", "-n", workers, "--benchmark-json=rows/new.json")
    _, output = run_in(tmp_path, PLUGINS, *options)
    rows = json.loads((tmp_path / "rows" / "new.json").read_text())["benchmarks"]
    assert [row["extra_info"]["cell"] for row in rows] == ["bert_sum_lora", "bert_sum_qlora"]
    assert [row["extra_info"]["status"] for row in rows] == ["unfinished", "error"]
    assert [row["name"] for row in rows] == ["test_cell[bert_sum_lora]", "test_cell[bert_sum_qlora]"]
    assert "0 of 2 cells passed" in output
