"""Parquet beside a run that anybody may have written is used, or refused in one sentence, before it fills the memory."""

import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunegrid.commands.export import rows_of
from tunegrid.errors import InputError
from tunegrid.results import examples
from tunegrid.results.gate import Run, gate
from tunegrid.tests.pages import record_of
from tunegrid.tests.strangers import another_parquet, attacked, seeds_of


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A record with its 40 rows and what they say in files beside its run."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "examples")
    record = record_of("bert_sa_lora", 36)
    shutil.copytree(examples.STORE, tmp_path / "sound")
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    return record, tmp_path / "run.json"


@seeds_of(60, 1000)
def test_parquet_beside_a_run(run, seeds, tmp_path):
    record, path = run

    def answer(random):
        shutil.rmtree(tmp_path / "examples", ignore_errors=True)
        shutil.copytree(tmp_path / "sound", tmp_path / "examples")
        another_parquet(random.choice(sorted((tmp_path / "examples").iterdir())), random)
        examples._columns_once.cache_clear()
        rows_of([(path, record)])
        gate(Run.of([record], path), Run.of([record], path))

    counts = attacked(answer, seeds)
    assert counts["refused"] > counts["used"] > 0


@pytest.mark.slow
def test_a_small_file_of_180_million_rows_is_refused_before_it_is_unpacked(run, tmp_path):
    record, path = run
    rows = 1_000_000
    same = pa.DictionaryArray.from_arrays(pa.array([0]).take(pa.array([0] * rows)).cast(pa.int32()), ["x"])
    table = pa.table({"id": same, "prediction": same, "accuracy": pa.array([1.0]).take(pa.array([0] * rows))})
    file = tmp_path / "examples" / record.examples.file
    with pq.ParquetWriter(file, table.schema) as writer:
        for _ in range(180):
            writer.write_table(table, row_group_size=rows)
    assert file.stat().st_size < 2_000_000
    with pytest.raises(InputError, match=r"it has 180000000 rows in \d+ bytes"):
        examples.read(replace(record, data=None), path)


def test_a_text_that_all_rows_share_does_not_fill_the_memory(run, tmp_path):
    record, path = run
    long = "x" * 2**27
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), [long])
    table = pa.table({"id": [f"{n}" for n in range(40)], "prediction": texts, "accuracy": [1.0] * 40})
    pq.write_table(table, tmp_path / "examples" / record.examples.file, compression="zstd")
    with pytest.raises(InputError, match="unpacked it is too large"):
        examples.read(record, path)
