"""tunegrid is installed beside a project with its own `lib/`, from a checkout or as a wheel."""

import subprocess
import sys
import sysconfig

import pytest

from tunegrid import ROOT
from tunegrid.tests.sessions import TOO_SHORT, environment

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
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    [packages] = venv.glob("lib/python*/site-packages")
    # What is installed here, there too
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python"]
    install = ["install", "--no-deps", "--no-build-isolation", "-q", *request.param, ROOT]
    subprocess.run([*pip, *install], check=True)
    return folder


def answer(project, line, *words):
    """Exit code and output of a command in the project, as its user calls it."""
    variables = environment(XDG_CACHE_HOME=str(project / "venv" / "cache"))
    variables.pop("PYTHONPATH", None)
    program, *arguments = line.split()
    command = [project / "venv" / "bin" / program, *arguments, *words]
    run = subprocess.run(
        command, cwd=project, env=variables, capture_output=True, text=True, check=False
    )
    return run.returncode, run.stdout + run.stderr


def test_the_projects_own_modules_stay_its_own(project):
    code = "import lib, fixtures, tunegrid.grid.methods as methods;"
    code += "print(lib.WHOSE, fixtures.WHOSE, methods.Lora.__name__)"
    assert answer(project, "python -c", code) == (0, "the project the project Lora\n")


def test_cells_of_the_project_import_its_modules_and_a_list_of_them_writes_nothing(project):
    (project / "neighbour.py").write_text("NAME = 'mine'\n")
    (project / "cells.py").write_text(CELLS)
    before = {path.name for path in project.iterdir()} | {"__pycache__"}
    # A blank before a path inside the project, whose conftest.py pytest would load for one to
    # collect.
    line = "tunegrid run -m quick --grid cells.py --cells=bert_sa_mine --list-cells"
    code, output = answer(project, line)
    assert code == 0, output
    assert "the project the project\n" in output
    assert "1 cell\n" in output
    assert {path.name for path in project.iterdir()} <= before


def test_a_wheel_holds_what_sessions_read(project):
    [packages] = (project / "venv").glob("lib/python*/site-packages")
    suite = packages / "tunegrid_suite"
    if not (suite / "lib").exists():
        pytest.skip("a checkout holds itself")
    files = [ROOT / "pyproject.toml", ROOT / "reports" / "study.json"]
    for folder in ("lib/tunegrid", "fixtures", "benchmarks"):
        files += [path for path in (ROOT / folder).rglob("*.*") if path.is_file()]
    names = [path.relative_to(ROOT) for path in files]
    read = [name for name in names if not {"tests", "__pycache__"} & {*name.parts}]
    assert len(read) > 200
    assert [name for name in read if not (suite / name).is_file()] == []
    assert not (suite / "lib" / "tunegrid" / "tests").exists()


def test_the_suite_runs_from_the_projects_folder_and_writes_there(project):
    line = "tunegrid run -m quick --cells bert_sa_lora --set max_steps=2 -q"
    code, output = answer(project, line)
    assert code == TOO_SHORT, output
    assert (project / "reports" / "latest.json").is_file()
    assert (project / "reports" / "examples" / "latest.zip").is_file()  # its test rows
