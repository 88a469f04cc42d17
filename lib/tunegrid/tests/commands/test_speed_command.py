"""`tunegrid speed`: turns in order and early ends, with stand-ins for Pythons."""

import sys
from itertools import combinations
from pathlib import Path

import pytest

from tunegrid.commands import speed
from tunegrid.commands.paired_timing import MARK
from tunegrid.errors import InputError
from tunegrid.grid.cells import SMOKE
from tunegrid.tests.outputs import refusal

LIBRARIES = {"python": "3.11", "torch": "2.13.0", "transformers": "5.24.0", "peft": "0.21.0", "accelerate": "1.14.0"}
# A program in place of a Python: it writes down each update, and answers as one whose rounds differ by 0.1 %.
PYTHON = """#!{python} -SE
import json, sys
if sys.argv[1] == "-c":
    print(json.dumps([{versions!r}, {{}}]))
    raise SystemExit
cell = sys.argv[3]
def note(word):
    with open({calls!r}, "a") as file:
        file.write("{name} " + cell + word + "\\n")
    return sum(cell in line and line.endswith("begins\\n") for line in open({calls!r}))
count = note(" begins") if "{name}" == "new" else 0
second = 0.01 * {factors!r}.get(cell, 1.0) * (1 + 0.001 * (count % 3)) * (1 + {noise!r}.get(cell, 0) * (-1) ** (count // 2))
print("a library says something", flush=True)
print("{mark}{{}}", flush=True)
for line in sys.stdin:
    if cell in {broken!r}:
        sys.exit("KeyError: 'a weight'")
    if {spoken}:
        note("")
    print("50 %{mark}" + json.dumps(dict(seconds=second, peak_bytes={peak} + 4096 * (count % 2))), flush=True)
"""


@pytest.fixture
def python(tmp_path):
    """Makes a stand-in for the Python of an environment; `factors` are of the seconds of cells, `noise` of its rounds."""

    def make(name, *, factors=None, noise=None, peak=500 * 2**20, broken=(), versions=None, spoken=False) -> Path:
        path = tmp_path / name
        text = PYTHON.format(
            python=sys.executable,
            versions=LIBRARIES | (versions or {}),
            broken=broken,
            calls=str(tmp_path / "calls"),
            name=name,
            factors=factors or {},
            peak=peak,
            noise=noise or {},
            mark=MARK,
            spoken=spoken,
        )
        path.write_text(text)
        path.chmod(0o755)
        return path

    return make


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


def run(before, after, cells):
    return speed.main([str(before), str(after), "--cells", cells])


def test_updates_go_a_b_b_a_and_in_the_next_round_b_a_a_b(python, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "UPDATES", 4)
    run(python("old", spoken=True), python("new", spoken=True), "bert_sa_lora")
    sides = [line.partition(" ")[0] for line in calls(tmp_path) if not line.endswith("begins")]
    first, second = ["old", "new", "new", "old"] * 2, ["new", "old", "old", "new"] * 2
    assert sides == [*first, *second] * 2


def test_equal_environments_end_early_and_are_no_worse(python, tmp_path, capsys):
    assert run(python("old"), python("new"), "bert_sa_lora,gpt2_sa_lora") == 0
    assert calls(tmp_path) == ["new bert_sa_lora begins", "new gpt2_sa_lora begins"] * 4  # of at most ten
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["the same libraries in both", "round 1 of at most 10  bert_sa_lora  10.0 -> 10.0 ms an update"]
    assert out[-1] == "No worse: training as fast (0 to 0 %), memory the same (0 to 0 %) over 2 cells"


def test_a_slower_cell_and_more_memory_are_worse(python, capsys):
    old, new = python("old"), python("new", factors={"gpt2_sa_lora": 1.2}, peak=600 * 2**20, versions={"peft": "0.22.0"})
    assert run(old, new, "bert_sa_lora,gpt2_sa_lora") == 1
    first, *_, slower, last = capsys.readouterr().out.splitlines()
    assert first == "peft 0.21.0 -> 0.22.0"
    assert slower == "gpt2_sa_lora: training 20 % slower (20 to 21 %), memory 20 % larger (20 to 20 %)"
    assert last == "Worse: training 10 % slower (9 to 10 %), memory 20 % larger (20 to 20 %) over 2 cells"


def test_a_cell_that_is_told_gets_no_more_rounds(python, tmp_path):
    assert run(python("old"), python("new", noise={"gpt2_sa_lora": 0.4}), "bert_sa_lora,gpt2_sa_lora") == 6
    assert [calls(tmp_path).count(f"new {cell} begins") for cell in ("bert_sa_lora", "gpt2_sa_lora")] == [4, 10]


def test_the_default_cells_have_every_two_of_backbone_task_and_method_once():
    cells = [cell.split("_") for cell in SMOKE]
    assert len(cells) == 9
    for first, second in combinations(range(3), 2):
        assert len({(parts[first], parts[second]) for parts in cells}) == 9


def test_a_cell_that_does_not_exist_or_fails_and_what_is_no_environment_are_one_sentence(python, tmp_path, capsys):
    assert "bert_sa_nothing" in refusal(capsys, speed.main, python("old"), python("new"), "--cells=bert_sa_nothing")
    said = refusal(capsys, speed.main, python("old"), python("new", broken=("bert_sa_lora",)), "--cells=bert_sa_lora")
    assert (
        f"`{tmp_path / 'new'} -m tunegrid.commands.paired_timing bert_sa_lora cpu` fails, so leave the cell out of --cells: "
        in said
    )
    with pytest.raises(InputError, match="is no virtual environment and no Python"):
        speed.python_in(tmp_path)
