"""The architecture as a test: what may import what, and what stays cheap to import."""

import ast
import subprocess
import sys

import pytest

from tunegrid import ROOT
from tunegrid.tests.sessions import environment

LIB = ROOT / "lib" / "tunegrid"
# Each may import from itself and from those before it.
ROOMS = (
    "terminal",
    "words",
    "errors",
    "machine",
    "libraries",
    "launcher",
    "grid",
    "data",
    "record",
    "codecs",
    "run",
    "audits",
    "runs",
    "gate",
    "report",
    "instruments",
    "page",
    "commands",
    "lab",
)


def imported(room):
    """Full names of everything that a room's modules import, inside functions too."""
    for path in sorted((LIB / room).glob("**/*.py")) or [LIB / f"{room}.py"]:
        for node in executed(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = f"{'.' * node.level}{node.module or ''}"
                yield from (f"{source}.{alias.name}" for alias in node.names)


def executed(tree):
    """Every node below one, but for the bodies of `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"):
            yield node
            yield from executed(node)


def run_python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_before_it(room):
    names = [name.split(".") for name in imported(room)]
    packages = {name[0] for name in names}
    rooms = {name[1] for name in names if name[0] == "tunegrid" and len(name) > 1}
    allowed = {*ROOMS[: ROOMS.index(room) + 1], "ROOT", "DEFAULT_CACHE", "CallablePackage"}
    assert rooms - allowed == set()
    own_packages = {"fixtures", "benchmarks", ""}  # "": a relative import
    assert packages & {"pytest", "_pytest", "pytest_benchmark", *own_packages} == set()
    if room in ("record", "runs", "gate", "report", "page"):  # which take plain figures
        assert packages & {"torch", "transformers", "peft"} == set()
        assert rooms & {"codecs", "run", "audits"} == set()


def test_results_are_read_without_torch():
    names = "tunegrid.report.summary, tunegrid.gate.gate, tunegrid.record, tunegrid.page.render"
    assert run_python(f"import sys, {names}; sys.exit('torch' in sys.modules)").returncode == 0


def test_the_27_cells_are_collected_without_heavy_libraries():
    code = """
import sys, pytest
pytest.main(["--collect-only", "-q", "-m", "quick"])
heavy = {"torch", "transformers", "peft", "datasets", "numpy", "scipy", "pyarrow"}
print("loaded:", *heavy & sys.modules.keys())
"""
    *_, summary, loaded = run_python(code).stdout.splitlines()
    assert summary.startswith("27/54 tests collected")
    assert loaded == "loaded:"
