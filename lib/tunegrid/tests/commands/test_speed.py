"""`tunegrid speed`: intervals worked out by hand, turns in order with stand-ins for Pythons, and one side's updates."""

import io
import math
import sys
import time
from contextlib import suppress
from itertools import combinations, islice
from pathlib import Path

import pytest

from tunegrid.commands import paired_timing, speed
from tunegrid.commands.paired_timing import MARK
from tunegrid.commands.speed import Change, changes_of, log_ratios
from tunegrid.data.splits import load_splits
from tunegrid.grid.cells import SMOKE
from tunegrid.results.judgements import Verdict
from tunegrid.run.first_updates import MOVED
from tunegrid.run.train import Trainer
from tunegrid.tests.outputs import refusal
from tunegrid.tests.processes import apart
from tunegrid.tests.small import cell_of, silent, trainer_for

KEY = ("bert_sa_lora", "training")
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
        path, calls = tmp_path / name, str(tmp_path / "calls")
        about = {"versions": LIBRARIES | (versions or {}), "factors": factors or {}, "noise": noise or {}, "broken": broken}
        path.write_text(
            PYTHON.format(**about, python=sys.executable, calls=calls, name=name, peak=peak, mark=MARK, spoken=spoken)
        )
        path.chmod(0o755)
        return path

    return make


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


def run(before, after, cells):
    return speed.main([str(before), str(after), "--cells", cells])


def test_ratios_are_of_the_median_update_and_of_the_last_peak():
    before = [{"seconds": s, "peak_bytes": 400} for s in (1.0, 2.0, 4.0)]
    after = [{"seconds": s, "peak_bytes": 500} for s in (1.1, 2.2, 9.0)]  # 1.1, 1.1 and 2.25: the third was disturbed
    assert log_ratios(before, after) == pytest.approx({"training": math.log(1.1), "memory": math.log(1.25)})
    assert log_ratios(before, [one | {"peak_bytes": None} for one in after]).keys() == {"training"}


def test_intervals_by_hand():
    # Variance 0.0008 / 3, standard error 0.01633 / 2. t of 3 degrees of freedom at 1 - 0.01 / 4 looks is 7.4533, and at
    # 1 - 0.01 / 4 / 2 tests 9.4649.
    [change] = changes_of({KEY: [0.08, 0.10, 0.12, 0.10]}, 1).values()
    assert (change.log_ratio, change.reach) == (pytest.approx(0.1), pytest.approx(7.4533 * 0.008165, rel=1e-3))
    [change] = changes_of({KEY: [0.08, 0.10, 0.12, 0.10]}, 2).values()
    assert change.reach == pytest.approx(9.4649 * 0.008165, rel=1e-3)


@pytest.mark.parametrize(
    ("log_ratio", "reach", "verdict", "words"),
    [
        (0.10, 0.04, Verdict.WORSE, "training 11 % slower (6 to 15 %)"),
        (0.10, 0.06, Verdict.CANNOT_TELL, "training 11 % slower (4 to 17 %): cannot tell"),
        (0.03, 0.01, Verdict.SAME, "training 3 % slower (2 to 4 %)"),  # slower for certain, by less than the margin
        (0.00, 0.06, Verdict.CANNOT_TELL, "training as fast (-6 to 6 %): cannot tell"),
        (-0.10, 0.04, Verdict.BETTER, "training 10 % faster (6 to 13 %)"),
        (-0.04, 0.02, Verdict.CANNOT_TELL, "training 4 % faster (2 to 6 %): cannot tell"),
    ],
)
def test_a_verdict_needs_the_whole_interval(log_ratio, reach, verdict, words):
    change = Change(log_ratio, reach)
    assert (change.verdict, change.in_words("training")) == (verdict, words)


def test_a_figure_is_judged_at_the_first_look_that_tells_it_or_else_at_its_last():
    [change] = changes_of({KEY: [*[0.2, 0.201, 0.199, 0.2], *[0.0] * 6]}, 1).values()
    assert (change.log_ratio, change.verdict) == (pytest.approx(0.2), Verdict.WORSE)
    [change] = changes_of({KEY: [0.3, -0.3] * 4 + [0.1]}, 1).values()  # nine rounds: the look after eight was the last
    assert (change.log_ratio, change.verdict) == (0, Verdict.CANNOT_TELL)
    assert changes_of({KEY: [0.0, 0.0, 0.0]}, 1) == {}


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
    assert out[-1].startswith("No worse: bert_sa_lora training as fast (0 to 1 %), ")


def test_a_slower_cell_and_more_memory_are_worse(python, capsys):
    old, new = python("old"), python("new", factors={"gpt2_sa_lora": 1.2}, peak=600 * 2**20, versions={"peft": "0.22.0"})
    assert run(old, new, "bert_sa_lora,gpt2_sa_lora") == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "peft 0.21.0 -> 0.22.0"
    larger = [f"{cell} memory 20 % larger (20 to 20 %)" for cell in ("bert_sa_lora", "gpt2_sa_lora")]
    assert sorted(last.removeprefix("Worse: ").split(", ")) == sorted(
        [*larger, "gpt2_sa_lora training 20 % slower (20 to 21 %)"]
    )


def test_a_cell_that_is_told_gets_no_more_rounds(python, tmp_path, capsys):
    assert run(python("old"), python("new", noise={"gpt2_sa_lora": 0.4}), "bert_sa_lora,gpt2_sa_lora") == 6
    assert [calls(tmp_path).count(f"new {cell} begins") for cell in ("bert_sa_lora", "gpt2_sa_lora")] == [4, 10]
    assert capsys.readouterr().out.splitlines()[-1] == "Cannot tell: gpt2_sa_lora"


def test_the_default_cells_have_every_two_of_backbone_task_and_method_once():
    cells = [cell.split("_") for cell in SMOKE]
    for first, second in combinations(range(3), 2):
        assert (len(cells), len({(parts[first], parts[second]) for parts in cells})) == (9, 9)


def test_what_cannot_be_compared_is_one_sentence(python, tmp_path, capsys):
    old, new = python("old"), python("new", broken=("bert_sa_lora",))
    for places, cell, sentence in (
        ((old, new), "bert_sa_nothing", "unknown cell 'bert_sa_nothing'"),
        (
            (old, new),
            "bert_sa_lora",
            f"`{new} -m tunegrid.commands.paired_timing bert_sa_lora cpu` fails, so leave the cell out",
        ),
        ((old, tmp_path), "bert_sa_lora", "is no virtual environment and no Python"),
    ):
        assert sentence in refusal(capsys, speed.main, *places, f"--cells={cell}")


# One side


def test_time_in_which_others_had_the_core_is_taken_off(tmp_path, monkeypatch):
    (tmp_path / "schedstat").write_text("5000000000 2500000000 17\n")
    monkeypatch.setattr(paired_timing, "SCHEDULER", tmp_path / "schedstat")
    assert paired_timing.waited() == 2.5
    monkeypatch.setattr(paired_timing, "SCHEDULER", tmp_path / "none")
    assert paired_timing.waited() == 0.0
    readings = iter([1.0, 1.5, 1.5, 1.5])  # the thread waited for half a second between the first two: they are read again
    monkeypatch.setattr(paired_timing, "waited", lambda: next(readings))
    monkeypatch.setattr(time, "perf_counter", iter([10.0, 11.0]).__next__)
    assert paired_timing.own_time() == 9.5


def test_an_update_comes_after_its_line_and_not_before(monkeypatch, capsys):
    events = []

    def answers(cell):
        yield {}
        for number in (1, 2, 3):
            events.append("updates")
            yield {"seconds": number}

    class Lines(io.StringIO):
        def __next__(self):
            events.append("reads")
            return super().__next__()

    monkeypatch.setattr(paired_timing, "answers", answers)
    monkeypatch.setattr("sys.stdin", Lines("\n\n"))
    paired_timing.main("bert_sa_lora", "cpu")
    assert events == ["reads", "updates", "reads", "updates", "reads"]
    assert capsys.readouterr().out.splitlines()[1:] == [f'{MARK}{{"seconds": {number}}}' for number in (1, 2)]


class FourUpdates(Exception):
    """The training has made four updates."""


def losses_beside_those_of_training():
    """Answers of one side about a cell, the losses of its updates, and those of as many updates of the cell's own training."""
    losses, update, cell = [], Trainer.update, cell_of("bert_sa_lora")

    def kept(trainer, group):
        losses.append(float(update(trainer, group)))

    def stop(trainer):
        if trainer.log.updates == 4:
            raise FourUpdates

    Trainer.update, paired_timing.WARM = kept, 1
    answers = list(islice(paired_timing.answers(cell), 4))
    with suppress(FourUpdates):
        trainer_for(cell, load_splits(cell.task, cell.profile).train, after_update=stop).run(silent())
    return answers, losses[:4], losses[4:]


def test_a_side_makes_the_first_updates_of_the_cells_own_training():
    assert paired_timing.WARM > MOVED  # what only first updates do is over before the timed ones
    [((ready, *answers), losses, of_training)] = apart(losses_beside_those_of_training)
    assert losses == of_training
    assert (ready, len(losses), len(answers)) == ({}, 4, 3)
    assert all(answer["seconds"] > 0 and 2**28 < answer["peak_bytes"] < 2**32 for answer in answers)
