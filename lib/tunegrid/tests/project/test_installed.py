"""Installed, from a checkout or as a wheel, beside a project with a `lib/` and `fixtures/`, neither
is in the other's way.
"""

import os
import subprocess
import sys
import sysconfig

import pytest

from tunegrid import ROOT
from tunegrid.tests.sessions import TOO_SHORT

CELLS = """
import neighbour
from fixtures import WHOSE as rows_of
from lib import WHOSE as code_of
from tunegrid.grid.methods import Lora

def pytest_tunegrid_grid(grid):
    print(code_of, rows_of)
    grid.add_method(Lora(id="mine", name=neighbour.NAME), like="lora")
"""


@pytest.fixture(scope="module", params=[["-e"], []], ids=["editable", "wheel"])
def project(tmp_path_factory, request):
    """A project with names of ours in it, and a virtual environment in which tunegrid is
    installed.
    """
    folder = tmp_path_factory.mktemp("project")
    for name in ("lib", "fixtures", "benchmarks"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("WHOSE = 'the project'\n")
    (folder / "conftest.py").write_text("raise RuntimeError('of another suite')\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    # What is installed here, there too
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["install", "--no-deps", "--no-build-isolation", "-q", *request.param, ROOT]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    return folder


def answer(project, *command):
    """Exit code and output of a command in the project, as its user calls it."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "PYTHONPATH"))
    }
    program, *arguments = command
    words = [project / "venv" / "bin" / program, *arguments]
    environment["XDG_CACHE_HOME"] = str(project / "venv" / "cache")
    run = subprocess.run(
        words, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    return run.returncode, run.stdout + run.stderr


def test_the_projects_own_modules_stay_its_own(project):
    code = "import lib, fixtures, tunegrid.grid.methods; print(lib.WHOSE, fixtures.WHOSE, tunegrid.grid.methods.Lora.__name__)"
    assert answer(project, "python", "-c", code) == (0, "the project the project Lora\n")


def test_cells_of_the_project_import_its_modules_and_a_list_of_them_writes_nothing(project):
    (project / "neighbour.py").write_text("NAME = 'mine'\n")
    (project / "cells.py").write_text(CELLS)
    before = {path.name for path in project.iterdir()} | {"__pycache__"}
    # A blank before a path inside the project, whose conftest.py pytest would load for one to
    # collect.
    words = ("-m", "quick", "--grid", "cells.py", "--cells=bert_sa_mine", "--list-cells")
    code, output = answer(project, "tunegrid", "run", *words)
    assert (code, "the project the project\n" in output, "1 cell\n" in output) == (0, True, True), (
        output
    )
    assert {path.name for path in project.iterdir()} <= before


def test_a_wheel_holds_what_sessions_read(project):
    [packages] = (project / "venv").glob("lib/python*/site-packages")
    suite = packages / "tunegrid_suite"
    if not (suite / "lib").exists():
        pytest.skip("a checkout holds itself")
    read = [
        path
        for room in ("lib/tunegrid", "fixtures", "benchmarks")
        for path in (ROOT / room).rglob("*.*")
    ]
    read += [ROOT / "pyproject.toml", ROOT / "reports" / "study.json"]
    names = [
        path.relative_to(ROOT)
        for path in read
        if path.is_file() and not {"tests", "__pycache__"} & {*path.parts}
    ]
    assert len(names) > 200
    assert [name for name in names if not (suite / name).is_file()] == []
    assert not (suite / "lib" / "tunegrid" / "tests").exists()


def test_the_suite_runs_from_the_projects_folder_and_writes_there(project):
    code, output = answer(
        project,
        "tunegrid",
        "run",
        "-m",
        "quick",
        "--cells",
        "bert_sa_lora",
        "--set",
        "max_steps=2",
        "-q",
    )
    assert code == TOO_SHORT, output
    assert (project / "reports" / "latest.json").is_file()
    assert (project / "reports" / "examples" / "latest.zip").is_file()  # its test rows
