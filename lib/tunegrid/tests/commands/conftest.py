"""Commands run in an empty folder; a session of the suite copies a run that was saved for it."""

import sys
from pathlib import Path

import pytest

from tunegrid.__main__ import main
from tunegrid.commands import environments
from tunegrid.commands.environments import Environment
from tunegrid.runs import examples
from tunegrid.tests.records import run_file


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """An empty folder, from which the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class SavedRuns:
    """The runs that sessions copy, instead of training cells.

    `files` has a file for each version of the package `planted`, such as "1.0", or for one stage
    of it, such as "1.0 whole". `sessions` lists the sessions, each with its arguments.
    """

    def __init__(self):
        self.files = {}
        self.sessions = []

    def add(self, session, records):
        self.files[session] = run_file(Path(f"{session}.json"), records)

    def suite(self, python, out, arguments):
        version = out.parent.name
        session = f"{version} {out.stem}"
        self.sessions.append(f"{session}: {' '.join(arguments)}")
        file = self.files.get(session) or self.files.get(version, "absent.json")
        return ["cp", str(file), str(out)]


@pytest.fixture
def saved_runs(tmp_path, monkeypatch):
    """The runs, and environments that need nothing installed."""

    def get_environment(requirements, wheels, alone=False):
        name, _, version = requirements[0].partition("==")
        version = version or requirements[0].rpartition("@")[2][:7]  # of a commit
        folder = tmp_path / "environments" / version
        return Environment(python=Path(sys.executable), folder=folder, own={name: version})

    runs = SavedRuns()
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(environments, "get_environment", get_environment)
    monkeypatch.setattr(environments, "suite", runs.suite)
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    return runs


@pytest.fixture
def run_command(capsys):
    """Runs `tunegrid` with the words of a line; returns the exit code and all printed lines."""

    def run(line):
        code = main(line.split())
        streams = capsys.readouterr()
        return code, (streams.out + streams.err).splitlines()

    return run
