"""Parquet beside a run that anybody may have written is used, or refused in one sentence."""

import shutil
from types import SimpleNamespace

from tunegrid.commands.export import scored_rows
from tunegrid.results import examples
from tunegrid.results.gate import Run, gate
from tunegrid.tests.pages import record_of
from tunegrid.tests.strangers import another_parquet, attacked


def test_parquet_beside_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "STORE", tmp_path / "examples")
    monkeypatch.setattr(examples, "HASH_DIGITS", 16)  # as of older files, whose content no hash holds
    record, path = record_of("bert_sa_lora", 36), tmp_path / "run.json"
    monkeypatch.setattr(examples, "HASH_DIGITS", 20)
    shutil.copytree(examples.STORE, tmp_path / "sound")
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")

    def answer(random):
        shutil.rmtree(tmp_path / "examples", ignore_errors=True)
        shutil.copytree(tmp_path / "sound", tmp_path / "examples")
        another_parquet(random.choice(sorted((tmp_path / "examples").iterdir())), random)
        scored_rows([SimpleNamespace(path=path, records=[record])])
        gate(Run.of([record], path), Run.of([record], path))

    counts = attacked(answer, 60)
    assert counts["refused"] > counts["used"] > 0
