"""Installed beside a project that has a `lib/` and `fixtures/` of its own, neither is in the other's way."""

import os
import subprocess
import sys
import sysconfig

import pytest

from tunegrid import ROOT


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with names of ours in it, and a virtual environment in which tunegrid is installed."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("lib", "fixtures", "benchmarks"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("WHOSE = 'the project'\n")
    (folder / "conftest.py").write_text("raise RuntimeError('of another suite')\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")  # what is installed here, there too
    install = ["install", "--no-deps", "--no-build-isolation", "-q", "-e", ROOT]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    return folder


def answer(project, *command):
    """Exit code and output of a command in the project, as its user calls it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONPATH"))}
    program, *arguments = command
    words = [project / "venv" / "bin" / program, *arguments]
    run = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr


def test_the_projects_own_modules_stay_its_own(project):
    code = "import lib, fixtures, tunegrid.grid.methods; print(lib.WHOSE, fixtures.WHOSE, tunegrid.grid.methods.Lora.__name__)"
    assert answer(project, "python", "-c", code) == (0, "the project the project Lora\n")


@pytest.mark.slow
def test_the_suite_runs_from_the_projects_folder_and_writes_there(project):
    code, output = answer(project, "tunegrid", "run", "-m", "quick", "--cells", "bert_sa_lora", "--set", "max_steps=2", "-q")
    assert code == 0, output
    assert (project / "reports" / "latest.json").is_file()
    assert (project / "reports" / "examples" / "latest.zip").is_file()  # its test rows


def test_another_python_is_told_so_in_one_sentence():
    command = [sys.executable, "-I", "-S", ROOT / "conftest.py"]  # -S: no packages, as in another environment
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 4
    [line] = answer.stderr.splitlines()
    assert line.startswith(f"ERROR: {sys.executable} is not the Python that tunegrid is installed in (it lacks pydantic, ")
    assert line.endswith(": activate its environment, or `pip install -e .`")
