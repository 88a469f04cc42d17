import json

import pytest

from tunegrid import __main__ as command
from tunegrid.commands import scaling
from tunegrid.commands import scaling_stages as stages
from tunegrid.results.scaling import Measured, as_json, as_text, exponent


def measured(rows, seconds, stage="read", peak_bytes=None):
    return Measured(stage=stage, rows=rows, seconds=seconds, peak_bytes=peak_bytes, mapped_bytes=None)


def test_the_exponent_is_the_power_of_the_rows():
    assert exponent(measured(1000, 0.5), measured(10_000, 5.0)) == pytest.approx(1)
    assert exponent(measured(1000, 0.5), measured(10_000, 50.0)) == pytest.approx(2)
    assert exponent(measured(1000, 0.5), measured(4000, 1.0)) == pytest.approx(0.5)


def test_what_takes_no_time_at_the_smaller_size_has_no_exponent():
    assert exponent(measured(1000, 0.01), measured(10_000, 0.2)) is None


def test_a_table_has_a_line_a_stage_and_size():
    first, second = measured(1000, 0.5, peak_bytes=3 * 2**20), measured(10_000, 5.0)
    titles, *rows = as_text([first, second, measured(1000, 0.5, stage="batch")])
    assert titles.split() == ["stage", "rows", "CPU", "s", "rows/s", "exponent", "peak", "MiB", "of", "it", "mapped"]
    assert [row.split() for row in rows] == [
        ["read", "1000", "0.50", "2000", "-", "3", "-"],
        ["read", "10000", "5.00", "2000", "1.00", "-", "-"],
        ["batch", "1000", "0.50", "2000", "-", "-", "-"],
    ]
    assert [row["exponent"] for row in as_json([first, second])] == [None, pytest.approx(1)]


def test_a_word_that_no_stage_has_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--stages", "zzz"])
    assert "no stage has 'zzz' in its name; there are read sa, " in capsys.readouterr().err


@pytest.mark.parametrize("stage", stages.STAGES, ids=lambda stage: stage.name)
def test_every_stage_runs_on_a_few_rows(stage, tmp_path, monkeypatch):
    monkeypatch.setattr("tunegrid.results.examples.STORE", tmp_path / "examples")
    assert stage.prepare(30, tmp_path)() is not None


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    path = tmp_path / "scaling.json"
    assert command.main(["scaling", "--rows", "200", "--stages", "batch", "--json", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["batch", "qa", "200"]
    [figures] = json.loads(path.read_text())["stages"]
    assert figures["rows"] == 200
    assert figures["seconds"] > 0
