"""Warnings of libraries are counted while a cell runs; those of our own code are errors. Real code warns, as a library does."""

import ctypes
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from tunegrid import ROOT
from tunegrid.run.warned import LibraryWarnings, shown
from tunegrid.tests.sessions import run

WARNS = """
import warnings

def renamed(category=FutureWarning):
    warnings.warn("`old` is deprecated since 1.2", category, stacklevel=2)
"""


def module_at(path, name, text=WARNS):
    """Code as it would stand at a path."""
    module = ModuleType(name)
    exec(compile(text, str(path), "exec"), vars(module))
    return module


@pytest.fixture
def collecting():
    """Every warning is an error, as pyproject.toml has it, but for one kind that it excepts."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "excepted", UserWarning)
        yield LibraryWarnings()


OURS_FILE = ROOT / "lib" / "tunegrid" / "run" / "made_up.py"
LIBRARY = module_at("/site-packages/peft/model.py", "peft.model")
OURS = module_at(OURS_FILE, "tunegrid.run.made_up")
USERS_FILE = Path("/somewhere/mine.py")
USERS = module_at(USERS_FILE, "mine")
# Our own code, which calls what a library calls deprecated: `stacklevel` names this line.
CALLS = module_at(ROOT / "lib" / "tunegrid" / "run" / "calls.py", "tunegrid.run.calls", "def call(function): function()")


@pytest.mark.parametrize("category", [FutureWarning, UserWarning, RuntimeWarning])
def test_a_librarys_warnings_are_counted_and_fail_nothing_meanwhile(collecting, category):
    before = list(warnings.filters), warnings.showwarning
    with pytest.raises(category):
        LIBRARY.renamed(category)
    with collecting.collected():
        LIBRARY.renamed(category)
        CALLS.call(lambda: LIBRARY.renamed(category))
    [one] = collecting.part
    found = (one.library, one.category, one.message, one.count)
    assert found == ("peft", category.__name__, "`old` is deprecated since 1.2", 2)
    assert (warnings.filters, warnings.showwarning) == before


@pytest.mark.parametrize(("module", "users"), [(OURS, []), (USERS, [USERS_FILE])])
def test_a_warning_of_our_own_or_of_a_users_file_stays_an_error(collecting, module, users):
    collector = LibraryWarnings(users)
    with collector.collected(), pytest.raises(UserWarning, match="deprecated"):
        module.renamed(UserWarning)
    assert collector.part == []


def test_what_compiled_code_calls_deprecated_in_our_line_is_its_own(collecting):
    warn = ctypes.pythonapi.PyErr_WarnEx
    warn.argtypes = [ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t]
    own = module_at(OURS_FILE, "tunegrid.run.made_up", "def call(warn, category): warn(category, b'compiled', 1)")
    with collecting.collected():
        own.call(warn, FutureWarning)
        with pytest.raises(RuntimeWarning, match="compiled"):
            own.call(warn, RuntimeWarning)
    assert [(one.library, one.category) for one in collecting.part] == [("compiled code", "FutureWarning")]


def test_other_filters_hold(collecting):
    warnings.filterwarnings("error", "never", UserWarning)
    with collecting.collected():
        exec(compile("import warnings; warnings.warn('excepted')", "/site-packages/a.py", "exec"), {"__name__": "a"})
        with pytest.raises(UserWarning, match="never"):
            exec(compile("import warnings; warnings.warn('never')", "/site-packages/a.py", "exec"), {"__name__": "a"})
    assert collecting.part == []


def test_a_message_names_no_folder_and_no_address():
    said = f"<Model object at 0x7f00AB> in {sys.prefix}/lib/peft/model.py\n  of https://hub.co/a/b is old" + "!" * 300
    assert shown(said).startswith("<Model object at 0x> in model.py of https://hub.co/a/b is old!!")
    assert len(shown(said)) == 200
    assert not re.search("/root|/home", shown(said))


PLUGIN = """
import warnings
import pytest

@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    if fixturedef.argname == "trainer":
        for number in (1, 2):
            warnings.warn(f"renamed in release {number}", FutureWarning)
    return (yield)
"""


@pytest.mark.slow
def test_a_cell_in_which_a_library_warns_passes_and_its_record_says_so(tmp_path):
    (tmp_path / "a_library.py").write_text(PLUGIN)
    cell = ("-m", "quick", "--cells", "bert_sa_lora", "--set", "max_steps=2", "-p", "a_library")
    code, output, [record] = run(tmp_path, *cell, PYTHONPATH=str(tmp_path), timeout=300)
    assert (code, record["status"]) == (0, "passed"), output
    of_plugin = [(one["category"], one["message"], one["count"]) for one in record["warnings"] if one["library"] == "a_library"]
    assert of_plugin == [("FutureWarning", "renamed in release 1", 1), ("FutureWarning", "renamed in release 2", 1)]
