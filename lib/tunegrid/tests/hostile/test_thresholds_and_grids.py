"""Threshold files and `--grid` files that anybody may have written are used, or refused in one sentence."""

import tomllib

from fixtures.session import Session
from tunegrid.grid.recipes import FULL_PROFILE, QUICK_PROFILE
from tunegrid.results.noise import load_noise
from tunegrid.results.thresholds import THRESHOLDS, load_bounds, load_margins, load_tolerances
from tunegrid.tests.strangers import attacked, changed, damaged


def estimates(path):
    noise = load_noise(path)
    return [noise.estimate(kind, *key) for kind, known in noise.measured.items() for key in known]


LOADERS = {"margins.toml": load_margins, "noise.toml": estimates, "numerics.toml": load_tolerances, "quick.toml": load_bounds}


def toml(value):
    """A value as TOML writes it; tables stand in braces."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(name))} = {toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08X}" for letter in value) + '"'
    return {True: "true", False: "false"}.get(value, repr(value)) if isinstance(value, bool) else repr(value)


def test_threshold_files(tmp_path):
    def answer(random):
        name = random.choice(list(LOADERS))
        path, content = tmp_path / name, (THRESHOLDS / name).read_bytes()
        if random.random() < 0.6:
            tree = changed(tomllib.loads(content.decode()), random, random.choice([1, 1, 4]))
            content = "".join(f"{toml(str(key))} = {toml(value)}\n" for key, value in tree.items()).encode("utf-8", "replace")
        else:
            content = damaged(content, random)
        path.write_bytes(content)
        LOADERS[name](path)

    counts = attacked(answer, 40)
    assert counts["refused"] > 0
    assert counts["used"] > 0


# --grid files

SOUND = """
from dataclasses import replace
from tunegrid.grid.backbones import BERT
from tunegrid.grid.methods import Lora
from tunegrid.grid.tasks import SA

def pytest_tunegrid_grid(grid):
    grid.add_method(Lora(id="mine", name="mine"), like="lora")
    grid.add_backbone(replace(BERT, id="other"), like="bert")
    grid.add_task(replace(SA, id="stars"), like="sa")
"""
NAMES = ('"mine"', '"lora"', '"other"', '"stars"', '"sa"', "BERT", "SA", "id=", "like=", "Lora(", "grid.")
VALUES = ("None", "3", "[]", "object()", "float('nan')", "'\\x1b[2J'", "'\\n::error::x'", "''", "grid", "lambda: 1", "")
ENDS = (
    *("import sys; sys.exit()", "raise SystemExit('bye')", "exit(3)", "1 / 0", "import pytest; pytest.exit('bye')"),
    *("import pytest; pytest.skip('no', allow_module_level=True)", "raise BaseException", "raise GeneratorExit"),
    *("def f(): f()\n    f()", "raise ValueError('\\x1b[2J\\n::error::x')", "grid.tasks.clear()", "grid.methods = None"),
    *("raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()", "grid.__dict__.clear()", "return 5", "yield 5"),
)


def other_grid(random):
    """A sound file with a word replaced, which ends the program as it is read or as it is asked, or that is damaged."""
    how, end = random.choice(["word", "word", "word", "top", "asked", "asked", "damaged"]), random.choice(ENDS)
    return {
        "word": SOUND.replace(random.choice(NAMES), random.choice(VALUES), random.choice([1, -1])).encode(),
        "top": f"{end}\n{SOUND}".replace("\n    f()", "\nf()", 1).encode(),
        "asked": f"{SOUND}    {end}\n".encode(),
        "damaged": damaged(SOUND.encode(), random),
    }[how]


def test_grid_files(tmp_path, request):
    def answer(random):
        path = tmp_path / f"grid{random.random()}.py"
        path.write_bytes(other_grid(random))
        session = Session(request.config)
        session.grid_files = (path,)
        for profile in (QUICK_PROFILE, FULL_PROFILE):
            session.grid.cells(profile)

    counts = attacked(answer, 60)
    assert counts["refused"] > 0
    assert counts["used"] > 0
