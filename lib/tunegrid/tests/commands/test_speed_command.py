"""`tunegrid speed`: turns in order, early ends and going on, with stand-ins for Pythons; and two real environments."""

import json
import shutil
import sys
import venv
from pathlib import Path

import pytest
from filelock import FileLock

from tunegrid import ROOT
from tunegrid.commands import speed, turns, upgrade
from tunegrid.commands.sides import Side
from tunegrid.errors import InputError
from tunegrid.run.turn import READY

LIBRARIES = {"python": "3.11", "torch": "2.13.0", "transformers": "5.24.0", "peft": "0.21.0", "accelerate": "1.14.0"}
# A program in place of a Python: it writes down each update, and answers as one whose rounds differ by 0.1 %.
PYTHON = """#!{python} -SE
import json, sys
if sys.argv[1] == "-c":
    print(json.dumps([{versions!r}, {{}}]))
    raise SystemExit
cell, [updates] = sys.argv[3], [int(word[10:]) for word in sys.argv if word.startswith("--updates=")]
def say(word):
    with open({calls!r}, "a") as file:
        file.write("{name} " + cell + word + "\\n")
    return sum(cell in line and line.endswith("begins\\n") for line in open({calls!r}))
count = say(" begins") if "{name}" == "new" else 0
for update in range(updates + 1):
    print("a library says something")
    print({ready!r}, flush=True)
    if update == 3 and cell in {broken!r}:
        sys.exit("KeyError: 'a weight'")
    sys.stdin.readline()
    if update < updates and {spoken}:
        say("")
second = {second} * {factors!r}.get(cell, 1.0) * (1 + 0.001 * (count % 3)) * (1 + {noise!r}.get(cell, 0) * (-1) ** (count // 2))
turn = dict(update_seconds=[second] * updates, waited_share=0.0, rows_per_second=None)
print(json.dumps(turn | dict(peak_bytes={peak} + 4096 * (count % 2))))
"""


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Makes a stand-in for the Python of an environment; `factors` are of the seconds of cells, `noise` of its rounds."""
    monkeypatch.setattr(speed, "KEPT", tmp_path / "kept")

    def make(name, *, factors=None, noise=None, peak=500 * 2**20, broken=(), versions=None, spoken=False) -> Path:
        path = tmp_path / name
        text = PYTHON.format(
            python=sys.executable,
            versions=LIBRARIES | (versions or {}),
            broken=broken,
            calls=str(tmp_path / "calls"),
            name=name,
            second=0.01,
            factors=factors or {},
            peak=peak,
            noise=noise or {},
            ready=READY,
            spoken=spoken,
        )
        path.write_text(text)
        path.chmod(0o755)
        return path

    return make


def calls(tmp_path):
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.is_file() else []


def run(before, after, cells, *options):
    return speed.main([str(before), str(after), "--cells", cells, *options])


def rounds_of(tmp_path, cell):
    return calls(tmp_path).count(f"new {cell} begins")


def test_updates_go_a_b_b_a_and_in_the_next_round_b_a_a_b(python, tmp_path):
    run(python("old", spoken=True), python("new", spoken=True), "bert_sa_lora", "--rounds", "4", "--updates", "4")
    sides = [line.partition(" ")[0] for line in calls(tmp_path) if not line.endswith("begins")]
    first, second = ["old", "new", "new", "old"] * 2, ["new", "old", "old", "new"] * 2
    assert sides == [*first, *second] * 2


def test_rounds_go_through_all_cells_in_turn(python, tmp_path):
    run(python("old"), python("new"), "bert_sa_lora,gpt2_sa_lora", "--rounds", "4")
    assert calls(tmp_path) == ["new bert_sa_lora begins", "new gpt2_sa_lora begins"] * 4


def test_equal_environments_end_early_and_are_no_worse(python, tmp_path, capsys):
    assert run(python("old"), python("new"), "bert_sa_lora") == 0
    assert rounds_of(tmp_path, "bert_sa_lora") == 4  # of at most ten
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "the same libraries in both"
    assert out[1] == "round 1 of at most 10  bert_sa_lora  10.0 -> 10.0 ms an update, 500 -> 500 MiB"
    assert out[-1] == "No worse: training as fast (0 to 0 %), memory equal"


def test_a_slower_cell_and_more_memory_are_worse(python, capsys):
    old, new = python("old"), python("new", factors={"gpt2_sa_lora": 1.2}, peak=600 * 2**20, versions={"peft": "0.22.0"})
    assert run(old, new, "bert_sa_lora,gpt2_sa_lora") == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "peft 0.21.0 -> 0.22.0"
    training, memory = "training 10 % slower (10 to 10 %)", "memory 20 % larger (20 to 20 %)"
    assert out[-1] == f"Worse: {training}, {memory} over 2 cells; worse: bert_sa_lora, gpt2_sa_lora"


def test_a_cell_that_is_told_gets_no_more_rounds(python, tmp_path):
    new = python("new", noise={"gpt2_sa_lora": 0.4})
    assert run(python("old"), new, "bert_sa_lora,gpt2_sa_lora", "--rounds", "6") == 6
    assert [rounds_of(tmp_path, cell) for cell in ("bert_sa_lora", "gpt2_sa_lora")] == [4, 6]


def test_the_same_command_goes_on_where_it_was_stopped(python, tmp_path, monkeypatch, capsys):
    old, new = python("old"), python("new")
    pair = speed.Rounds.pair

    def stopped(self, cell, number):
        if len(self) == 2:
            raise KeyboardInterrupt
        return pair(self, cell, number)

    with monkeypatch.context() as patched:
        patched.setattr(speed.Rounds, "pair", stopped)
        assert run(old, new, "bert_sa_lora") == 130
    assert "goes on with the rounds that were taken" in capsys.readouterr().out
    (kept,) = (tmp_path / "kept").glob("*.jsonl")
    kept.write_text(kept.read_text() + '\n{"cell": "bert_sa')  # a line that was cut off
    assert run(old, new, "bert_sa_lora") == 0
    assert rounds_of(tmp_path, "bert_sa_lora") == 4
    assert "2 rounds are known from an earlier command" in capsys.readouterr().out
    assert [json.loads(line)["round"] for line in kept.read_text().split("\n") if line.endswith("}")] == [1, 2, 3, 4]


def test_other_settings_or_libraries_do_not_share_rounds(python):
    old, new = (speed.environment(python(name)) for name in ("old", "new"))
    upgraded = speed.environment(python("new", versions={"peft": "0.22.0"}))
    paths = {speed.path_of(old, new, speed.Settings()), speed.path_of(old, upgraded, speed.Settings())}
    assert len(paths | {speed.path_of(old, new, speed.Settings(updates=7))}) == 3


def test_the_default_cells_have_every_two_of_backbone_task_and_method_once():
    cells = [cell.split("_") for cell in speed.some_of_each()]
    assert len(cells) == 9
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert len({(parts[first], parts[second]) for parts in cells}) == 9


def test_two_commands_do_not_compare_the_same_at_once(python, capsys):
    old, new = python("old"), python("new")
    path = speed.path_of(speed.environment(old), speed.environment(new), speed.Settings())
    path.parent.mkdir()
    with FileLock(path.with_suffix(".lock")), pytest.raises(SystemExit):
        run(old, new, "bert_sa_lora")
    assert "another command compares these two right now" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["bert_sa_nothing"], "bert_sa_nothing"),
        (["bert_sa_lora", "--rounds", "3"], "3 rounds: give an even number from 4"),
        (["bert_sa_lora", "--margin", "0"], "a margin of 0 %"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(python, capsys, options, sentence):
    with pytest.raises(SystemExit):
        run(python("old"), python("new"), *options)
    assert sentence in capsys.readouterr().err


def test_a_cell_that_fails_is_named_with_the_way_out(python, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(python("old"), python("new", broken=("bert_sa_lora",)), "bert_sa_lora")
    error = " ".join(capsys.readouterr().err.split())
    assert "bert_sa_lora does not run, so leave it out of --cells" in error
    assert f"what fails is {tmp_path / 'new'} -m tunegrid.run.turn bert_sa_lora" in error
    assert error.endswith("KeyError: 'a weight'")


def test_a_turn_that_nobody_lives_to_read_leaves_the_processs_own_error():
    with pytest.raises(InputError, match="it failed: no weights"):
        died([sys.executable, "-c", "exit('no weights')"])


def died(command):
    """A process that ends before its turn."""
    with turns.started(command, "it failed") as process:
        process.process.wait()
        process.go()
        process.until_ready()


def test_what_is_no_environment_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match="is no virtual environment and no Python"):
        speed.environment(tmp_path)


def test_an_environment_without_a_library_says_how_to_install_it(python):
    with pytest.raises(InputError, match="has no peft: install what tunegrid needs there"):
        speed.environment(python("old", versions={"peft": None}))


# As a part of `tunegrid upgrade`


@pytest.mark.parametrize(("slower", "gate", "code"), [(1.2, 0, 1), (1.0, 0, 0), (1.0, 1, 1), (1.2, 6, 1)])
def test_an_upgrade_with_speed_says_both_and_the_worse_of_both(python, tmp_path, monkeypatch, capsys, slower, gate, code):
    pythons = python("old"), python("new", factors={"bert_sa_lora": slower})
    monkeypatch.setattr(upgrade, "sides", lambda *_: [Side(python=path, folder=tmp_path) for path in pythons])
    monkeypatch.setattr(upgrade, "compared", lambda *_: (tmp_path / "old.json", tmp_path / "new.json"))
    monkeypatch.setattr(upgrade, "concluded", lambda *_: gate)  # the gate's own answer
    assert upgrade.main(["peft", "--cells", "bert_sa_lora", "--speed"]) == code
    words = "20 % slower (20 to 20 %)" if slower > 1 else "as fast (0 to 0 %)"
    assert f"training {words}, memory equal" in capsys.readouterr().out.splitlines()[-1]


def test_speed_needs_two_environments_where_a_run_is_given(tmp_path, capsys):
    before = tmp_path / "before.json"
    shutil.copy(ROOT / "reports" / "baselines" / "quick-cpu.json", before)
    with pytest.raises(SystemExit):
        upgrade.main(["peft", "--before", str(before), "--speed"])
    assert "--speed lets two environments take turns, and --before is a run" in " ".join(capsys.readouterr().err.split())


# Real environments

# Each step of an optimizer sleeps for a tenth of what the thread worked since the last one. Python runs this as it starts; the
# hook is torch's own, and it is set when accelerate is looked for, at which time torch is there.
SLOWER = """
import sys, time

class WhenTorchIsThere:
    def find_spec(self, name, path=None, target=None):
        if name == "accelerate" and "torch" in sys.modules:
            sys.meta_path.remove(self)
            from torch.optim.optimizer import register_optimizer_step_post_hook
            register_optimizer_step_post_hook(late)

last = [0.0]

def late(*_):
    time.sleep({share} * (time.thread_time() - last[0]) if last[0] else 0.0)
    last[0] = time.thread_time()

sys.meta_path.insert(0, WhenTorchIsThere())
"""


def environment_beside(folder, slower=0.0):
    """A virtual environment that has the libraries of this one, and steps that are slower by a share."""
    venv.EnvBuilder(symlinks=True).create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if Path(path).name == "site-packages"]
    lines = [f"import site; site.addsitedir({path!r})" for path in shared]
    if slower:
        (site / "slower.py").write_text(SLOWER.format(share=slower))
        lines.append("import slower")
    (site / "tests.pth").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow  # it takes minutes
def test_real_environments_that_are_equal_are_not_worse_and_a_slower_step_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "KEPT", tmp_path / "kept")
    before, equal = (environment_beside(tmp_path / name) for name in ("before", "equal"))
    slower = environment_beside(tmp_path / "slower", slower=1.0)  # so much is seen beside other tests, too
    few = ("bert_sa_lora", "--rounds", "4", "--updates", "8")
    assert run(before, equal, *few) != 1
    assert run(before, slower, *few) == 1
