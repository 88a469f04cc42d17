"""The script that runs every marker: what it counts, what it runs again, and its first line."""

import json

import pytest

from benchmarks.proof import every_marker as script
from fixtures.selection import OPT_IN

SUITE = """<testsuites><testsuite name="pytest" tests="5" failures="1" errors="1" skipped="1">
<testcase name="a"/><testcase name="b"><failure message="InputError:
no such model">trace</failure></testcase></testsuite></testsuites>"""
COUNTS = {"tests": 5, "failures": 1, "errors": 1, "skipped": 1}


def test_every_marker_runs_but_those_for_a_gpu():
    assert {*script.MARKERS} == {*OPT_IN, "quick", "smoke"} - {"gpu", "full"}


def test_counts_are_those_of_the_report(tmp_path):
    report = tmp_path / "report.xml"
    assert script.read_counts(report) == {}
    report.write_text(SUITE)
    assert script.read_counts(report) == COUNTS | {"first_failure": "InputError: no such model"}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the script with made-up results; returns its exit code, the markers run, its output."""
    state = tmp_path / "state.json"

    def run(results, *words):
        ran = []

        def run_marker(marker, workers):
            ran.append(marker)
            return {"machine": "2 cores", "workers": workers, "seconds": 9.0} | results[marker]

        monkeypatch.setattr(script, "run_marker", run_marker)
        monkeypatch.setattr(
            "sys.argv", ["script", f"--only={','.join(results)}", f"--state={state}", *words]
        )
        return script.main(), ran, capsys.readouterr().out

    return run


PASSED = {"exit_code": 0, "tests": 3, "failures": 0, "errors": 0, "skipped": 1, "first_failure": ""}
FAILED = COUNTS | {"exit_code": 1, "first_failure": "InputError: no such model"}


def test_what_failed_runs_again_and_what_passed_does_not(run, tmp_path):
    page = tmp_path / "page.md"
    code, ran, output = run({"stock": FAILED, "tasks": PASSED})
    assert (code, ran) == (1, ["stock", "tasks"])
    assert "Failed: stock, of 2 markers" in output
    assert "stock: exit code 1, 2 passed, 2 failed, 1 skipped in 9 s: InputError: no such" in output
    code, ran, output = run({"stock": PASSED, "tasks": PASSED}, f"--report={page}")
    assert (code, ran) == (0, ["stock"])
    assert "tasks: passed before, in 9 s" in output
    assert "All tests of 2 markers passed" in page.read_text()


def test_another_commit_runs_all_again(run, monkeypatch):
    run({"tasks": PASSED})
    monkeypatch.setattr(script, "current_commit", lambda: "0" * 8)
    assert run({"tasks": PASSED})[1] == ["tasks"]


def test_a_session_without_a_single_test_that_ran_has_not_passed(run):
    assert run({"tasks": PASSED | {"skipped": 3}})[0] == 1


def test_an_unknown_marker_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["script", "--only=stack"])
    with pytest.raises(SystemExit):
        script.main()
    assert "no marker 'stack' of tasks, " in capsys.readouterr().err


def test_a_healthy_marker_says_so_in_json(run, tmp_path):
    run({"tasks": PASSED})
    [row] = json.loads((tmp_path / "state.json").read_text()).values()
    assert row["commit"]
    assert row["versions"]["torch"]
