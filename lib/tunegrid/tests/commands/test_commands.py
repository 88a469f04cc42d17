"""The commands: what they print, and how they refuse."""

import json

import pytest

from tunegrid import __main__ as command
from tunegrid.commands import schema, scores
from tunegrid.data import hub
from tunegrid.grid.cells import STUDY
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.record import new_record, to_json
from tunegrid.tests.records import MEASURED


def saved(path, points, cells=27):
    """A pytest-benchmark file whose first cells all score `points`."""
    records = []
    for cell in STUDY.cells(QUICK_PROFILE)[:cells]:
        measured = {"scores": dict.fromkeys(cell.task.bounded_scores, points), "device": MEASURED["device"]}
        records.append(to_json(new_record(cell)) | measured)
    path.write_text(json.dumps({"benchmarks": [{"extra_info": record} for record in records]}))
    return path


# tunegrid


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed_with_a_line_each(arguments, capsys):
    assert command.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:-2]] == list(command.COMMANDS)
    assert all(len(line) <= 100 for line in lines)


def test_an_unknown_command_is_one_sentence(capsys):
    assert command.main(["gaet", "a.json"]) == 2
    assert capsys.readouterr().err == "tunegrid: unknown command 'gaet'; did you mean gate?\n"
    assert command.main(["retrain"]) == 2
    assert capsys.readouterr().err == "tunegrid: unknown command 'retrain'; tunegrid lists them all\n"


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_describes_itself(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main([name, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: tunegrid {name}")


def test_a_commands_code_is_handed_on(tmp_path):
    first, second = saved(tmp_path / "a.json", 90.5), saved(tmp_path / "b.json", 90.0)
    assert command.main(["scores", str(first), str(first)]) == 0
    assert command.main(["scores", str(first), str(second)]) == 1


def test_the_schema_goes_where_it_is_wanted(tmp_path, capsys):
    assert schema.main(["-o", str(tmp_path / "schema.json")]) == 0
    assert json.loads((tmp_path / "schema.json").read_text())["title"] == "Record"
    assert capsys.readouterr().out == f"wrote {tmp_path / 'schema.json'}\n"


# Scores and bounds


def test_equal_scores_are_called_identical(tmp_path, capsys):
    first, second = saved(tmp_path / "a.json", 90.5), saved(tmp_path / "b.json", 90.5)
    assert scores.main([str(first), str(second)]) == 0
    # 9 sentiment and 9 question cells with 2 scores each, 9 summarization cells with 5
    assert capsys.readouterr().out.startswith("identical: 81 scores of 27 cells")


def test_a_difference_in_the_last_digit_is_listed(tmp_path, capsys):
    first, second = saved(tmp_path / "a.json", 90.5), saved(tmp_path / "b.json", 90.50000000000001)
    assert scores.main([str(first), str(second)]) == 1
    assert "bert_sa_lora: accuracy 90.5 and 90.50000000000001" in capsys.readouterr().out


def test_a_cell_that_only_one_run_has_is_a_difference(tmp_path, capsys):
    first, second = saved(tmp_path / "a.json", 90.5), saved(tmp_path / "b.json", 90.5, cells=26)
    assert scores.main([str(first), str(second)]) == 1
    assert capsys.readouterr().out == "t5_sa_sft: only in one of the two\n"


def test_a_missing_file_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        scores.main([str(tmp_path / "none.json"), str(tmp_path / "none.json")])
    assert "does not exist" in capsys.readouterr().err


def test_an_unreachable_hub_switches_the_libraries_to_their_caches(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "")  # so that its old value, if any, is restored afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    assert not hub.prefer_cache_if_unreachable.__wrapped__()
    assert hub.os.environ["HF_HUB_OFFLINE"] == "1"
