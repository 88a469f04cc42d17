"""Where a session's time goes."""

import pytest

from tunegrid.commands import profile
from tunegrid.errors import InputError
from tunegrid.results.stages import Account, table, to_json
from tunegrid.tests.sessions import run


def test_a_stage_is_the_sum_of_all_processes_and_a_worker_idles_from_its_last_test_on():
    accounts = [
        Account(process="main", start_up_seconds=None, stages={}, cpu_seconds=1.0, ended=100.0),  # the controller of workers
        Account(process="gw0", start_up_seconds=2.0, stages={"updates": 10.0, "evaluate": 2.0}, cpu_seconds=14.0, ended=120.0),
        Account(process="gw1", start_up_seconds=2.0, stages={"updates": 14.0, "evaluate": 1.0}, cpu_seconds=17.0, ended=125.0),
    ]
    data = to_json(accounts, began=105.0, ended=129.0)
    assert [process["process"] for process in data["processes"]] == ["gw0", "gw1"]
    # 4 + 24 + 3 seconds of work, 9 + 4 of idling: 44 in all.
    assert [line.split() for line in table(data)][1:] == [
        ["start", "up", "and", "collect", "4.0", "9.1", "%"],
        ["updates", "24.0", "54.5", "%"],
        ["evaluate", "3.0", "6.8", "%"],
        ["idle", "after", "the", "last", "test", "13.0", "29.5", "%"],
        [
            "24.0",
            "s",
            "by",
            "the",
            "clock,",
            "32.0",
            "CPU",
            "seconds",
            "with",
            "imports,",
            "2",
            "processes",
            "that",
            "run",
            "tests",
        ],
    ]


@pytest.mark.parametrize("data", [{}, [], {"processes": [{"stages": 3}], "seconds": 1, "cpu_seconds": 1}, {"processes": None}])
def test_another_file_is_one_sentence(data):
    with pytest.raises(InputError, match="--stage-times FILE writes one"):
        list(table(data))


def test_the_command_prints_a_file_and_refuses_another(tmp_path, capsys):
    kept = tmp_path / "stages.json"
    kept.write_text(
        '{"seconds": 9, "cpu_seconds": 8, "processes": [{"process": "main", "cpu_seconds": 8, "stages": {"updates": 8}}]}'
    )
    assert profile.main([str(kept)]) == 0
    assert "updates                             8.0 100.0 %" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        profile.main([str(tmp_path / "none.json")])
    assert "none.json cannot be read as JSON" in capsys.readouterr().err


@pytest.mark.slow
def test_an_account_that_has_no_folder_is_refused_before_anything_runs(tmp_path):
    code, output, _ = run(
        tmp_path, f"--stage-times={tmp_path / 'none' / 'stages.json'}", "lib/tunegrid/tests/fixtures/test_progress.py"
    )
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "none is not a folder" in output
    assert "Traceback" not in output
