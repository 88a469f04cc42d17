"""Measuring everything once: sessions that are kept, stages, the baseline of the same runs. No session is trained here."""

import subprocess

import pytest

from tunegrid import ROOT, launcher
from tunegrid.errors import InputError
from tunegrid.lab import false_alarms, grid_runs, measure
from tunegrid.lab.calibrate import CalibrationPlan
from tunegrid.lab.grid_runs import GridRun, LabSessions, OtherLabSession
from tunegrid.record import to_json
from tunegrid.results.files import read_list
from tunegrid.tests.records import complete, saved, seeds_as

CELLS = ("bert_sa_lora", "bert_sa_sft")
PLAN = [GridRun(seeds=range(5), only=CELLS), GridRun(seeds=range(5, 10), only=CELLS)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where sessions are kept."""
    monkeypatch.setattr(grid_runs, "folder", lambda: tmp_path)
    return tmp_path


def rows_of(run, **changes):
    return [to_json(complete(cell, seeds=seeds_as(seed, run.draw), **changes)) for seed in run.seeds for cell in run.cells]


def pytest_that(monkeypatch, code=0, rows=None):
    """Let sessions end with this exit code and these rows; what was started is noted."""
    started = []

    def run(command, **options):
        started.append(command)
        path = command[-1].partition("=")[2]
        saved(grid_runs.Path(path), *(rows or next(rows_of(one) for one in PLAN if one.name in path)))
        return code

    monkeypatch.setattr(launcher, "run", run)
    return started


# Sessions


def test_finished_sessions_are_kept_and_the_others_trained(folder, monkeypatch, capsys):
    saved(PLAN[0].path, *rows_of(PLAN[0]))
    started = pytest_that(monkeypatch, code=1)  # a cell that misses a bound has its row
    LabSessions(workers="2").train(PLAN)
    part = PLAN[1].path.with_suffix(".unfinished.json")
    words = ["-q", "-n", "2", "-m", "quick", "--seeds", "5,6,7,8,9", "--cells", ",".join(CELLS), f"--benchmark-json={part}"]
    assert [command[3:] for command in started] == [words]
    assert set(PLAN[1].grids()) == {5, 6, 7, 8, 9}
    LabSessions().train(PLAN)
    assert len(started) == 1
    assert "1 of 2: keeps quick-seeds-0-4" in capsys.readouterr().out
    fresh = LabSessions(fresh=True)
    fresh.expect(PLAN)
    for _ in range(2):
        fresh.train(PLAN[:1])
    assert len(started) == 2  # what is kept is trained anew, but nothing twice


@pytest.mark.parametrize("why", ["stopped", "a row", "an end"])
def test_a_session_that_was_stopped_or_lacks_a_finished_cell_is_not_kept(folder, monkeypatch, why):
    rows = rows_of(PLAN[0])
    left = {"a row": rows[:-1], "an end": [*rows[:-1], rows[-1] | {"status": "error", "missed": ["why"]}]}
    pytest_that(monkeypatch, code=2 if why == "stopped" else 1, rows=left.get(why, rows))  # pytest writes its JSON as it stops
    with pytest.raises(
        InputError, match="pytest ended with exit code 2" if why == "stopped" else "bert_sa_sft of seed 4 did not"
    ):
        LabSessions().train(PLAN[:1])
    assert not PLAN[0].path.exists()


def test_the_time_left_is_that_of_all_stages(folder, monkeypatch, capsys):
    times = iter([0.0, 600.0, 600.0, 1500.0])
    monkeypatch.setattr(grid_runs, "monotonic", lambda: next(times))
    pytest_that(monkeypatch)
    sessions = LabSessions()
    sessions.expect([*PLAN, OtherLabSession(label="controls", options=(), count=20)])
    sessions.train(PLAN)
    messages = [line.partition("; ")[2] for line in capsys.readouterr().out.splitlines()]
    # ten trainings took ten minutes; ten more and twenty controls are to do
    assert messages == ["40 in all, how long is not known yet", "30 in all, about 30 min left"]
    assert sessions.left() == "20 in all, about 25 min left"  # twenty took 25 minutes


def test_sessions_of_other_code_are_elsewhere(tmp_path, monkeypatch):
    for room in grid_runs.TRAINS:
        assert (ROOT / room).is_dir()
        (tmp_path / room).mkdir(parents=True)
    monkeypatch.setattr(grid_runs, "ROOT", tmp_path)
    recipes, bounds = tmp_path / "lib" / "tunegrid" / "grid" / "recipes.py", tmp_path / "benchmarks" / "quick.toml"
    recipes.write_text("RATE = 1")
    kept = grid_runs.folder.__wrapped__()
    bounds.write_text("minimum = 90")  # what is measured
    assert grid_runs.folder.__wrapped__() == kept
    recipes.write_text("RATE = 2")
    assert grid_runs.folder.__wrapped__() != kept


# Stages


def test_no_two_stages_train_the_same_but_the_bounds_and_what_is_made_of_them():
    work = measure.Work(plan=CalibrationPlan(), sessions=LabSessions(), to=measure.ROOT, runs=20)
    names = {name: {session.name for session in stage.sessions(work)} for name, stage in measure.STAGES.items()}
    assert names["baseline"] < names["bounds"]
    assert len(names["numerics"] & names["bounds"]) == 1 + 3  # seeds 0 to 4, three draws
    assert names["numerics"] < names["bounds"]
    rest = [session for name, own in names.items() if name not in ("baseline", "numerics") for session in own]
    assert len(rest) == len(set(rest)) == 8 + 0 + 8 + 2 + 2
    assert measure.stages_of("power,bounds") == ["bounds", "power"]
    with pytest.raises(InputError, match="unknown stage 'bound'"):
        measure.stages_of("bound")
    trained = {seed for run in false_alarms.planned(4) if run.draw is None for seed in run.seeds}
    assert not trained & set(range(30))  # fresh seeds are not those of the bounds
    assert {run.draw for run in false_alarms.planned(4)} & {1, 2, 3} == set()


def test_the_command_runs_its_stages_and_tells_what_is_left(folder, monkeypatch, capsys):
    done = []

    def bounds(work):
        work.sessions.train(PLAN)
        done.append("bounds")
        return 0

    stages = {
        "bounds": measure.Stage(sessions=lambda work: PLAN, do=bounds),
        "power": measure.Stage(sessions=lambda work: [], do=lambda work: done.append("power") or 1),
    }
    monkeypatch.setattr(measure, "STAGES", stages)
    pytest_that(monkeypatch)
    assert measure.main(["--to", str(folder)]) == 1
    assert done == ["bounds", "power"]
    assert capsys.readouterr().out.splitlines()[0] == "stage 1 of 2, bounds: 20 trainings left"

    def stop(work):
        raise KeyboardInterrupt

    monkeypatch.setitem(stages, "bounds", measure.Stage(sessions=lambda work: PLAN, do=stop))
    assert measure.main(["--to", str(folder)]) == 130
    assert "finished sessions are kept: run it again" in capsys.readouterr().out


def test_no_baseline_is_measured_of_a_changed_tree(monkeypatch):
    changed = subprocess.CompletedProcess([], 0, stdout=" M lib/tunegrid/grid/recipes.py\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: changed)
    with pytest.raises(InputError, match="uncommitted changes, of which no baseline is made"):
        measure.check_clean(["bounds", "baseline"])
    measure.check_clean(["power"])


def test_the_baseline_is_held_to_the_bounds_that_were_made_of_it(tmp_path):
    low = "accuracy 80.0 is below 85.0 (bert_sa_lora, quick, seed 0)"
    shared = {"scores": {"accuracy": 80.0}, "bounds": {"accuracy": 85.0}}
    was = complete("bert_sa_lora", **shared, status="missed", missed=[low])
    shared |= {"status": "missed", "missed": ["audit x: y (bert_sa_sft, quick, seed 0)"]}
    audit = complete("bert_sa_sft", **shared)
    saved(tmp_path / "run.json", was, audit)
    bounds = {"bert_sa_lora": {"accuracy": 75.0}, "bert_sa_sft": {"accuracy": 81.0}}
    measure.rebound(tmp_path / "run.json", tmp_path / "again.json", bounds)
    first, second = read_list(tmp_path / "again.json")
    assert (first.status, first.missed, first.bounds) == ("passed", [], {"accuracy": 75.0})
    assert (second.status, len(second.missed)) == ("missed", 2)
    assert second.missed[1] == "accuracy 80.0 is below 81.0 (bert_sa_sft, quick, seed 0)"
    assert [record.status for record in read_list(tmp_path / "run.json")] == ["missed", "missed"]  # the session stays as it was


def test_a_command_replaces_its_own_figures_alone(tmp_path):
    path = tmp_path / "measured.json"
    grid_runs.note(path, "power", {"runs": 5})
    grid_runs.note(path, "false_alarms", {"runs": 40})
    grid_runs.note(path, "power", {"runs": 6})
    assert {name: section["runs"] for name, section in grid_runs.read(path).items()} == {"power": 6, "false_alarms": 40}
    grid_runs.note(None, "power", {})
