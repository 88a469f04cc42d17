"""The architecture as a test: what may import what, and what stays cheap to import."""

import ast
import subprocess
import sys

import pytest

from tunegrid import ROOT
from tunegrid.tests.sessions import environment

LIB = ROOT / "lib" / "tunegrid"
# Each may import from itself and from those to its left.
SINGLE = ("terminal", "words", "errors", "machine", "launcher")
ROOMS = (
    *SINGLE,
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


def modules(room):
    return sorted((LIB / room).glob("**/*.py")) or [LIB / f"{room}.py"]


def imported(path):
    """Full names of everything a module imports, inside functions too; what only its types name, it
    does not import.
    """
    for node in executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (
                f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names
            )


def executed(tree):
    """Every node below one, but for the bodies of `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"):
            yield node
            yield from executed(node)


def run_python(*arguments):
    words = [sys.executable, *arguments]
    return subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_to_its_left(room):
    allowed = (*ROOMS[: ROOMS.index(room) + 1], "ROOT", "DEFAULT_CACHE", "CallablePackage")
    names = {
        name for path in modules(room) for name in imported(path) if name.startswith("tunegrid.")
    }
    assert {name for name in names if name.split(".")[1] not in allowed} == set()
    tops = {name.split(".")[0] for path in modules(room) for name in imported(path)}
    assert tops & {"pytest", "_pytest", "pytest_benchmark", "fixtures", "benchmarks", ""} == set()
    if room in ("record", "runs", "gate", "report", "page"):  # which take plain figures
        assert not {"torch", "transformers", "peft"} & tops
        assert not {"codecs", "run", "audits"} & {name.split(".")[1] for name in names}


def test_results_are_read_and_the_27_cells_collected_without_torch():
    names = "tunegrid.report.summary, tunegrid.gate.gate, tunegrid.record, tunegrid.page.render"
    assert (
        run_python("-c", f"import sys, {names}; sys.exit('torch' in sys.modules)").returncode == 0
    )
    code = (
        "import sys, pytest; pytest.main(['--collect-only', '-q', '-m', 'quick']);"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy', 'scipy', 'pyarrow'} & sys.modules.keys();"
        "print(*heavy, sep='loaded ', end='')"
    )
    lines = run_python("-c", code).stdout.splitlines()
    assert sum("test_finetune[" in line for line in lines) == 27
    assert lines[-1].startswith("27/54 tests collected")
