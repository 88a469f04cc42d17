"""Runs as tables, read back by pandas and DuckDB."""

import json
from importlib.metadata import version
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from tunegrid.commands import export
from tunegrid.tests.outputs import refusal
from tunegrid.tests.pages import HOSTILE, get_record
from tunegrid.tests.records import complete, run_file

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def run(store):
    """A file of two cells: 36 of 40 rows right, and 30 of 40."""
    records = (
        get_record("bert_sa_lora", 36),
        get_record("t5_qa_sft", 30, seed=1, bounds={"f1": 70.0}),
    )
    path = run_file(Path("run.json"), records)
    when = {"datetime": "2026-11-25T09:00:00", "commit_info": {"id": "abcdef0123456789"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | when))
    return path


def exported(run, out, *options):
    assert export.main([str(run), "-o", out, *options]) == 0
    return pd.read_parquet(out) if out.endswith(".parquet") else pd.read_csv(out)


@pytest.mark.parametrize("out", ["runs.parquet", "runs.csv"])
def test_a_figure_is_a_row_named_as_in_the_record(run, out):
    frame = exported(run, out)
    [f1] = frame.query("cell == 't5_qa_sft' and metric == 'scores.f1'").to_dict("records")
    facts = {
        "run": "run.json",
        "seed": 1,
        "status": "passed",
        "value": 75.0,
        "date": "2026-11-25T09:00:00",
        "commit": "abcdef0123",
        "device": "a CPU",
        "versions.peft": version("peft"),
    }
    assert facts.items() <= f1.items()
    assert pd.isna(f1["update"])
    assert {
        "memory.ledger.weights_bytes",
        "throughput.train_samples_per_second",
        "bounds.accuracy",
    } <= set(frame.metric)
    losses = frame.query("cell == 'bert_sa_lora' and metric == 'training.losses' and update <= 2")
    # 3 exp(-1/20) + 0.1
    assert losses.value.tolist() == [3.0, pytest.approx(2.95369, abs=1e-5)]
    accuracy = duckdb.sql(f"select value from '{out}' where metric = 'scores.accuracy'")
    assert accuracy.fetchall() == [(90.0,)]


@pytest.mark.parametrize("out", ["rows.parquet", "rows.csv"])
def test_a_test_row_is_a_row_with_its_text_and_points(run, out):
    frame = exported(run, out, "--rows")
    last = frame.query("cell == 'bert_sa_lora' and row == 40").iloc[0]
    assert len(frame) == 80
    assert last.input == HOSTILE
    assert last.accuracy == 0.0
    assert pd.isna(last.f1)
    means = f"select cell, avg(accuracy), avg(f1) from '{out}' group by cell order by cell"
    assert duckdb.sql(means).fetchall() == [("bert_sa_lora", 90.0, None), ("t5_qa_sft", None, 75.0)]


GONE = complete("t5_sa_sft", examples={"file": "0" * 16 + ".parquet", "rows_hash": "0" * 16})


def test_a_record_without_its_rows_is_named(capsys):
    run = run_file(Path("mixed.json"), [get_record(), GONE])
    assert len(exported(run, "rows.csv", "--rows")) == 40
    sentence = "mixed.json: t5_sa_sft, seed 0, has no test rows beside it in examples/\n"
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("gone.json -o none.csv", "none of these runs has its test rows beside it"),
        ("run.json -o rows.xlsx", "give a name that ends in .parquet or .csv"),
        ("run.json -o run.json/rows.csv", "cannot be written"),
    ],
)
@pytest.mark.usefixtures("run")
def test_what_cannot_be_exported_is_one_sentence(capsys, line, sentence):
    run_file(Path("gone.json"), [GONE])
    assert sentence in refusal(capsys, export.main, "--rows", *line.split())


def test_text_that_a_spreadsheet_would_run_is_quoted_in_a_csv_and_stays_as_it_is_in_parquet():
    formulas = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\tx", "\uff1d1+1"]
    texts = [*formulas, "a=b", None]
    columns = pd.DataFrame({"prediction": texts, "=points": [-1.5, *[0.0] * 7]})
    for name in ("rows.csv", "rows.parquet"):
        export.write_table(columns, Path(name))
    frame = pd.read_csv("rows.csv", keep_default_na=False)
    quoted = [f"'{formula}" for formula in formulas]
    assert list(frame["prediction"]) == [*quoted, "a=b", ""]
    assert frame["'=points"][0] == -1.5
    predictions = duckdb.sql("select prediction from 'rows.parquet'").fetchall()
    assert predictions == [(text,) for text in texts]
