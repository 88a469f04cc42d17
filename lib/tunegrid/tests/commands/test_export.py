"""Runs as tables, read back by pandas and DuckDB."""

import json
from importlib.metadata import version

import duckdb
import pandas as pd
import pytest

from tunegrid.commands import export
from tunegrid.tests.outputs import refusal
from tunegrid.tests.pages import HOSTILE, get_record
from tunegrid.tests.records import complete, run_file

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def run(tmp_path):
    """A file of two cells: 36 of 40 rows right, and 30 of 40."""
    records = (
        get_record("bert_sa_lora", 36),
        get_record("t5_qa_sft", 30, seed=1, bounds={"f1": 70.0}),
    )
    path = run_file(tmp_path / "run.json", records)
    when = {"datetime": "2026-11-25T09:00:00", "commit_info": {"id": "abcdef0123456789"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | when))
    return path


def exported(run, out, *options):
    assert export.main([str(run), "-o", str(out), *options]) == 0
    return pd.read_parquet(out) if out.suffix == ".parquet" else pd.read_csv(out)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_figure_or_a_test_row_is_a_row_named_as_in_the_record(run, tmp_path, suffix):
    out = tmp_path / f"runs.{suffix}"
    frame = exported(run, out)
    [f1] = frame[(frame.cell == "t5_qa_sft") & (frame.metric == "scores.f1")].to_dict("records")
    facts = ("run", "seed", "status", "value", "date", "commit", "device", "versions.peft")
    when = ("2026-11-25T09:00:00", "abcdef0123", "a CPU", version("peft"))
    assert tuple(f1[name] for name in facts) == ("run.json", 1, "passed", 75.0, *when)
    assert {
        "memory.ledger.weights_bytes",
        "throughput.train_samples_per_second",
        "bounds.accuracy",
    } <= set(frame.metric)
    losses = frame[(frame.cell == "bert_sa_lora") & (frame.metric == "training.losses")]
    # 3 exp(-1/20) + 0.1
    assert losses[losses["update"] <= 2].value.tolist() == [3.0, pytest.approx(2.95369, abs=1e-5)]
    assert frame[frame.metric == "scores.f1"]["update"].isna().all()
    assert duckdb.sql(f"select value from '{out}' where metric = 'scores.accuracy'").fetchall() == [
        (90.0,)
    ]
    frame = exported(run, out, "--rows")
    last = frame[(frame.cell == "bert_sa_lora") & (frame.row == 40)].iloc[0]
    assert len(frame) == 80
    assert last.input == HOSTILE
    assert last.accuracy == 0.0
    assert pd.isna(last.f1)
    means = duckdb.sql(
        f"select cell, avg(accuracy), avg(f1) from '{out}' group by cell order by cell"
    ).fetchall()
    assert means == [("bert_sa_lora", 90.0, None), ("t5_qa_sft", None, 75.0)]


def test_a_record_without_its_rows_is_named_and_a_run_of_such_or_another_format_refused(
    tmp_path, capsys
):
    gone = complete("t5_sa_sft", examples={"file": "0" * 16 + ".parquet", "rows_hash": "0" * 16})
    mixed = run_file(tmp_path / "mixed.json", [get_record(), gone])
    alone = run_file(tmp_path / "gone.json", [gone])
    assert len(exported(mixed, tmp_path / "rows.csv", "--rows")) == 40
    assert (
        capsys.readouterr().err
        == f"{mixed}: t5_sa_sft, seed 0, has no test rows beside it in examples/\n"
    )
    (tmp_path / "file").write_text("")
    for run, out, sentence in (
        (alone, "none.csv", "none of these runs has its test rows beside it"),
        (mixed, "rows.xlsx", "give a name that ends in .parquet or .csv"),
        (mixed, "file/rows.csv", "cannot be written"),
    ):
        assert sentence in refusal(capsys, export.main, run, "--rows", "-o", tmp_path / out)


def test_text_that_a_spreadsheet_would_run_is_quoted_in_a_csv_and_stays_as_it_is_in_parquet(
    tmp_path,
):
    said = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\tx", "a=b", "\uff1d1+1", None]
    columns = pd.DataFrame({"prediction": said, "=points": [-1.5, *[0.0] * 7]})
    for name in ("rows.csv", "rows.parquet"):
        export.write_table(columns, tmp_path / name)
    frame = pd.read_csv(tmp_path / "rows.csv", keep_default_na=False)
    assert list(frame["prediction"]) == [
        "'=cmd|' /C calc'!A0",
        "'+1",
        "'-1",
        "'@SUM(1)",
        "'\tx",
        "a=b",
        "'\uff1d1+1",
        "",
    ]
    assert frame["'=points"][0] == -1.5
    assert duckdb.sql(f"select prediction from '{tmp_path}/rows.parquet'").fetchall() == [
        (text,) for text in said
    ]
