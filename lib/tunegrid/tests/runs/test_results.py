"""Bounds, how long a run is beside what its recipe plans, and examples beside every file that a
session saves.
"""

from dataclasses import replace
from types import SimpleNamespace
from zipfile import ZipFile

import pytest

from fixtures.pipeline import run_extent
from tunegrid.errors import InputError
from tunegrid.gate.thresholds import load_bounds
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FULL_PROFILE
from tunegrid.record.checks import below_bounds
from tunegrid.runs.status import Extent
from tunegrid.tests.records import read_records
from tunegrid.tests.sessions import run_folder

PLUGINS = ("options", "session", "selection", "results")


@pytest.mark.parametrize(
    ("scores", "bounds", "sentences"),
    [
        ({"accuracy": 86.1}, {"accuracy": 88.0}, ["accuracy 86.1 is below 88.0"]),
        ({"accuracy": 88.0, "f1_macro": 12.0}, {"accuracy": 88.0}, []),
        (
            {"f1": 80.0},
            {"exact_match": 70.25, "f1": 75.0},
            ["exact_match was not measured, its bound is 70.2"],
        ),
        ({"f1": float("nan")}, {"f1": 0.0}, ["f1 nan is below 0.0"]),
        (
            {"f1": 1.0, "em": 1.0},
            {"f1": 2.0, "em": 2.0},
            ["f1 1.0 is below 2.0", "em 1.0 is below 2.0"],
        ),
    ],
)
def test_a_score_reaches_its_bound_or_is_a_sentence(scores, bounds, sentences):
    assert below_bounds(scores, bounds) == sentences


def test_bounds_are_read_without_their_evidence(tmp_path):
    path = tmp_path / "quick.toml"
    path.write_text(
        "[cells.t5_qa_sft]\n"
        "f1 = {minimum = 70.5, mean = 72.0}\n"
        "exact_match = {minimum = 60.0, mean = 61.5}\n"
    )
    assert load_bounds(path) == {"t5_qa_sft": {"f1": 70.5, "exact_match": 60.0}}
    assert load_bounds(tmp_path / "full.toml") == {}  # nobody has measured them yet


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (
            "[cells.t5_qa_sft]\nf1 = { minimum = 929.0 }",
            r"t5_qa_sft.f1: Input should be less than or equal to 100",
        ),
        (
            "[cells.t5_qa_sft]\nf1 = { minimum = -5 }",
            r"t5_qa_sft.f1: Input should be greater than or equal to 0",
        ),
        ("[cells.t5_qa_sft]\nf1 = { minimum = nan }", "Input should be a finite number"),
        ("[cells.t5_qa_sft]", "cells.t5_qa_sft is empty"),
        ("[cells]", "cells is empty"),
    ],
)
def test_bounds_that_bind_nothing_are_refused(tmp_path, content, cause):
    path = tmp_path / "quick.toml"
    path.write_text(content)
    with pytest.raises(InputError, match=cause):
        load_bounds(path)


@pytest.mark.parametrize(
    ("options", "rows", "extent"),
    [
        # 100,000 rows in batches of 16 are 6,250 updates, three times
        (
            {"train_rows": 2000, "changes": {"num_train_epochs": 2}},
            2000,
            Extent(updates=250, planned=18_750, one_pass=6_250),
        ),
        (
            {"changes": {"max_steps": 3}, "eval_rows": 8},
            100_000,
            Extent(updates=3, planned=18_750, one_pass=6_250, test_rows=8),
        ),
        (
            {"changes": {"learning_rate": 1e-3}},
            100_000,
            Extent(updates=18_750, planned=18_750, one_pass=6_250),
        ),
        # in batches of 4 the same rows take four times as many
        (
            {"changes": {"per_device_train_batch_size": 4, "max_steps": 9000}},
            100_000,
            Extent(updates=9000, planned=75_000, one_pass=25_000),
        ),
    ],
)
def test_a_run_is_measured_by_what_its_recipe_plans_without_the_command_line(options, rows, extent):
    cell = STUDY.cell("bert_sa_sft", replace(FULL_PROFILE, **options))
    session = SimpleNamespace(limited=True, get_grid=lambda profile: STUDY)
    splits = SimpleNamespace(train=range(rows), test=range(8))
    trainer = SimpleNamespace(features=range(rows), log=SimpleNamespace(updates=extent.updates))
    assert run_extent(session, cell, splits, trainer) == extent


WITH_EXAMPLES = """
from dataclasses import replace
import pytest
from fixtures.session import get_session
from tunegrid.runs.examples import write

@pytest.mark.cells("quick")
def test_cell(request, profile, backbone, task, method, seed, benchmark):
    benchmark.pedantic(sum, args=([1, 2],), rounds=1)
    from tunegrid.record import new_record
    run = get_session(request.config).get_run(request.node)
    examples = write(["a"], {"accuracy": [100.0]}, ["1"])
    run.record = replace(new_record(run.cell), examples=examples)
"""


def test_examples_are_beside_every_file_that_a_session_saves(tmp_path):
    """What --benchmark-save wrote before stays without them."""
    (tmp_path / "test_one.py").write_text(WITH_EXAMPLES)
    older = tmp_path / "saved" / "older" / "0001_a.json"
    older.parent.mkdir(parents=True)
    older.write_text("{}")
    code, output = run_folder(
        tmp_path,
        PLUGINS,
        "--cells=bert_sa_lora",
        "--benchmark-json=rows/new.json",
        "--benchmark-save=h100",
        "--benchmark-storage=file://./saved",
        TUNEGRID_CACHE=str(tmp_path / "cache"),
    )
    assert code == 0, output
    [stored] = (tmp_path / "saved").rglob("*_h100.json")
    for path in (tmp_path / "rows" / "new.json", stored):
        record = read_records(path)["bert_sa_lora"]
        pack = ZipFile(path.parent / "examples" / f"{path.stem}.zip")
        assert pack.namelist() == [record.examples.file]
    assert not (older.parent / "examples").exists()
