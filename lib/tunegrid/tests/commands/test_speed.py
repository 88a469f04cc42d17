"""`tunegrid speed`: intervals worked out by hand, and turns in order with stand-ins for Pythons."""

import sys
from pathlib import Path

import pytest

from tunegrid.commands import speed
from tunegrid.commands.paired_timing import ANSWER_PREFIX
from tunegrid.commands.speed import FigureShift, find_shifts
from tunegrid.gate.judgements import Verdict

# A program in place of a Python: it prints its libraries, or answers updates and notes each of them
PYTHON = f"""#!{sys.executable} -SE
import sys
if sys.argv[1] == "-c":
    print('[{{"torch": "2.13.0"}}, {{}}]')
    sys.exit()
print('a library says something\\n{ANSWER_PREFIX}{{}}', flush=True)
for line in sys.stdin:
    with open("CALLS", "a") as calls:
        calls.write("NAME " + sys.argv[3] + "\\n")
    print('50 %{ANSWER_PREFIX}{{"seconds": 0.01, "peak_bytes": 500}}', flush=True)
"""


def make_python(name):
    path = Path(name)
    calls = str(Path("calls").absolute())
    path.write_text(PYTHON.replace("NAME", name).replace("CALLS", calls))
    path.chmod(0o755)


def test_intervals_by_hand():
    ratios = [0.08, 0.10, 0.12, 0.10]
    # Variance 0.0008 / 3, standard error 0.01633 / 2. t of 3 degrees of freedom at 1 - 0.01 / 4
    # looks is 7.4533, and at 1 - 0.01 / 4 / 2 tests 9.4649.
    for tests, quantile in ((1, 7.4533), (2, 9.4649)):
        [shift] = find_shifts({("bert_sa_lora", "training"): ratios}, tests).values()
        assert shift.log_ratio == pytest.approx(0.1)
        assert shift.reach == pytest.approx(quantile * 0.008165, rel=1e-3)
    # Of three cells, each with 3 degrees of freedom, half of 9 count: t at 1 - 0.01 / 4 is 5.1172.
    # The quiet one has the noise of the other two.
    cells = {
        ("bert_sa_lora", "training"): ratios,
        ("t5_sa_lora", "training"): ratios,
        ("gpt2_sa_lora", "training"): [0.1] * 4,
    }
    reaches = [shift.reach for shift in find_shifts(cells, 1).values()]
    assert reaches == pytest.approx([5.1172 * 0.008165] * 3, rel=1e-3)


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
    shift = FigureShift(log_ratio, reach)
    assert shift.verdict == verdict
    assert shift.describe("training") == words


def test_equal_environments_end_early_by_updates_that_go_a_b_b_a_and_in_the_next_round_b_a_a_b(
    monkeypatch, capsys
):
    monkeypatch.setattr(speed, "ROUND_UPDATES", 4)
    make_python("old")
    make_python("new")
    assert speed.main(["old", "new", "--cells=bert_sa_lora"]) == 0
    first = ["old bert_sa_lora", "new bert_sa_lora", "new bert_sa_lora", "old bert_sa_lora"]
    second = ["new bert_sa_lora", "old bert_sa_lora", "old bert_sa_lora", "new bert_sa_lora"]
    # Four rounds of at most ten
    assert Path("calls").read_text().splitlines() == [*first, *first, *second, *second] * 2
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == [
        "the same libraries in both",
        "round 1 of at most 10  bert_sa_lora  10.0 -> 10.0 ms an update",
    ]
    training = "bert_sa_lora training as fast (0 to 0 %)"
    memory = "bert_sa_lora memory the same (0 to 0 %)"
    assert out[-1] == f"No worse: {training}, {memory}"
