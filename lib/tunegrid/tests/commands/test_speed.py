"""`tunegrid speed`: intervals worked out by hand, and turns in order with stand-ins for Pythons."""

import sys
from pathlib import Path

import pytest

from tunegrid.commands import speed
from tunegrid.commands.paired_timing import ANSWER_PREFIX
from tunegrid.commands.speed import FigureShift, find_shifts
from tunegrid.gate.judgements import Verdict

KEY = ("bert_sa_lora", "training")
LIBRARIES = {
    "python": "3.11",
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "peft": "0.21.0",
    "accelerate": "1.14.0",
}
# A program in place of a Python: it notes each round and update, and answers as one whose rounds
# differ by 0.1 %.
PYTHON = """#!{python} -SE
import json, sys
if sys.argv[1] == "-c":
    print(json.dumps([{versions!r}, {{}}]))
    raise SystemExit
cell, rounds = sys.argv[3], 0
def note(word):
    with open({calls!r}, "a") as file:
        file.write("{name} " + cell + word + "\\n")
    return open({calls!r}).read().count("{name} " + cell + " begins")
number = note(" begins")
own, noise = {seconds!r}.get(cell, (1.0, 0.0))
second = 0.01 * own * (1 + ("{name}" == "new") * (0.001 * (number % 3) + noise * (-1) ** (number // 2)))
print("a library says something\\n{mark}{{}}", flush=True)
for line in sys.stdin:
    if not own:
        sys.exit("KeyError: 'a weight'")
    note(" updates")
    print("50 %{mark}" + json.dumps(dict(seconds=second, peak_bytes={peak})), flush=True)
"""


@pytest.fixture
def python(tmp_path):
    """Makes a stand-in for the Python of an environment; `seconds` has a factor and the noise of
    rounds by cell.
    """

    def make(name, peak=500, versions=LIBRARIES, **seconds) -> Path:
        path = tmp_path / name
        calls = str(tmp_path / "calls")
        about = {
            "python": sys.executable,
            "name": name,
            "peak": peak,
            "versions": versions,
            "seconds": seconds,
        }
        path.write_text(PYTHON.format(**about, calls=calls, mark=ANSWER_PREFIX))
        path.chmod(0o755)
        return path

    return make


def calls(tmp_path, *, end):
    lines = (tmp_path / "calls").read_text().splitlines()
    return [line.removesuffix(end) for line in lines if line.endswith(end)]


def run(before, after, cells):
    return speed.main([str(before), str(after), "--cells", cells])


def test_intervals_by_hand():
    # Variance 0.0008 / 3, standard error 0.01633 / 2. t of 3 degrees of freedom at 1 - 0.01 / 4
    # looks is 7.4533, and at 1 - 0.01 / 4 / 2 tests 9.4649.
    [change] = find_shifts({KEY: [0.08, 0.10, 0.12, 0.10]}, 1).values()
    assert change.log_ratio == pytest.approx(0.1)
    assert change.reach == pytest.approx(7.4533 * 0.008165, rel=1e-3)
    [change] = find_shifts({KEY: [0.08, 0.10, 0.12, 0.10]}, 2).values()
    assert change.reach == pytest.approx(9.4649 * 0.008165, rel=1e-3)
    # Of three cells, each with 3 degrees of freedom, half of 9 count: t at 1 - 0.01 / 4 is 5.1172.
    # The quiet one has the noise of the other two.
    cells = {
        (cell, "training"): [0.08, 0.10, 0.12, 0.10] for cell in ("bert_sa_lora", "t5_sa_lora")
    }
    changes = find_shifts(cells | {("gpt2_sa_lora", "training"): [0.1] * 4}, 1).values()
    assert [change.reach for change in changes] == pytest.approx([5.1172 * 0.008165] * 3, rel=1e-3)


@pytest.mark.parametrize(
    ("log_ratio", "reach", "verdict", "words"),
    [
        (0.10, 0.04, Verdict.WORSE, "training 11 % slower (6 to 15 %)"),
        (0.10, 0.06, Verdict.CANNOT_TELL, "training 11 % slower (4 to 17 %): cannot tell"),
        # Slower for certain, by less than the margin
        (0.03, 0.01, Verdict.SAME, "training 3 % slower (2 to 4 %)"),
        (0.00, 0.06, Verdict.CANNOT_TELL, "training as fast (-6 to 6 %): cannot tell"),
        (-0.10, 0.04, Verdict.BETTER, "training 10 % faster (6 to 13 %)"),
        (-0.04, 0.02, Verdict.CANNOT_TELL, "training 4 % faster (2 to 6 %): cannot tell"),
    ],
)
def test_a_verdict_needs_the_whole_interval(log_ratio, reach, verdict, words):
    change = FigureShift(log_ratio, reach)
    assert change.verdict == verdict
    assert change.describe("training") == words


def test_equal_environments_end_early_by_updates_that_go_a_b_b_a_and_in_the_next_round_b_a_a_b(
    python, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(speed, "ROUND_UPDATES", 4)
    assert run(python("old"), python("new"), "bert_sa_lora") == 0
    first = ["old", "new", "new", "old"] * 2
    second = ["new", "old", "old", "new"] * 2
    # Four rounds of at most ten
    assert calls(tmp_path, end=" bert_sa_lora updates") == [*first, *second] * 2
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == [
        "the same libraries in both",
        "round 1 of at most 10  bert_sa_lora  10.0 -> 10.0 ms an update",
    ]
    assert (
        out[-1]
        == "No worse: bert_sa_lora training as fast (0 to 0 %), bert_sa_lora memory the same (0 to 0 %)"
    )
