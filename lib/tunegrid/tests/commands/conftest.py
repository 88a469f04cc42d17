"""A suite that runs nothing: it copies the run that is saved for the environment and the stage."""

import sys
from pathlib import Path

import pytest

from tunegrid.commands import environments
from tunegrid.commands.environments import Environment
from tunegrid.errors import InputError
from tunegrid.runs import examples


class SavedRuns:
    """`files` has a saved run by version of the package `planted` and by stage; `asked` keeps what
    was run, in order.
    """

    def __init__(self, folder):
        self.folder = folder
        self.files = {}
        self.asked = []

    def suite(self, python, out, arguments):
        key = (out.parent.name, out.stem)
        self.asked.append((*key, " ".join(arguments)))
        return [
            "cp",
            str(self.folder / self.files.get(key, self.files.get(key[0], "none"))),
            str(out),
        ]

    @property
    def stages(self):
        return [asked[:2] for asked in self.asked]


@pytest.fixture
def saved_runs(tmp_path, monkeypatch):
    """The runs, and environments that need nothing installed."""

    def get_environment(requirements, wheels, alone=False):
        name, _, version = requirements[0].partition("==")
        version = version or requirements[0].rpartition("@")[2][:7]  # of a commit
        return Environment(
            python=Path(sys.executable),
            folder=tmp_path / "environments" / version,
            own={name: version},
        )

    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(environments, "get_environment", get_environment)
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    runs = SavedRuns(tmp_path)
    monkeypatch.setattr(environments, "suite", runs.suite)
    return runs


@pytest.fixture
def said(capsys):
    """Exit code and lines of a command."""

    def call(main, *arguments):
        try:
            code = main(*arguments)
        except SystemExit as exit_:
            code = exit_.code
        except InputError as error:  # a sentence of `tunegrid NAME`
            code = 2
            print(f"error: {error}", file=sys.stderr)
        streams = capsys.readouterr()
        return code, (streams.out + streams.err).splitlines()

    return call
