"""Records reach each tracker, read back by its own reader. A tracker that is not installed is skipped by name."""

import pytest

from tunegrid.errors import InputError
from tunegrid.results import trackers
from tunegrid.results.trackers import TrackedRun, check, report, tracked
from tunegrid.tests.records import complete, complete_json

CELL = tracked(complete(), {"verdict": "same"})  # losses 0.7 and 0.5, accuracy 91.04


@pytest.fixture
def runs(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<h1>Passed")
    return [CELL, TrackedRun(name="answer", texts={"verdict": "passed"}, file=page)]


def reported(name, runs, folder):
    [line] = report([name], runs, "g", folder)
    assert line.startswith(f"{name}: 1 runs and the answer, g, in ")


def test_a_run_has_the_curve_the_scores_and_the_recipe_of_its_record():
    assert (CELL.name, CELL.losses, CELL.last) == ("bert_sa_lora-seed0", {1: 0.7, 2: 0.5}, 2)
    assert (CELL.figures["eval/accuracy"], CELL.figures["train/seconds"], CELL.figures["eval/loss"]) == (91.04, 12.25, 0.4)
    assert CELL.settings["adapter.r"] == complete().recipe.adapter["r"]


def test_losses_that_are_no_number_and_scores_that_were_not_taken_are_left_out():
    training = complete_json()["training"] | {"losses": [0.7, None, 0.5]}
    run = tracked(complete(training=training, scores={"accuracy": None}), {})
    assert (run.losses, "eval/accuracy" in run.figures) == ({1: 0.7, 3: 0.5}, False)


def test_tensorboards_reader_finds_curve_scores_and_verdict(runs, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    reported("tensorboard", runs, tmp_path / "unused")
    events = EventAccumulator(str(tmp_path / "logs" / "g" / CELL.name))
    events.Reload()
    assert [(event.step, round(event.value, 6)) for event in events.Scalars("train/loss")] == [(1, 0.7), (2, 0.5)]
    assert events.Scalars("eval/accuracy")[0].value == pytest.approx(91.04)
    assert events.Tensors("verdict")[0].tensor_proto.string_val == [b"same"]
    assert (tmp_path / "logs" / "g" / "answer").is_dir()
    assert not (tmp_path / "unused").exists()


def test_mlflows_client_finds_them_in_a_local_folder_with_the_page(runs, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # as quick as a test needs; SQLite takes ten seconds to begin
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    reported("mlflow", runs, tmp_path / "unused")
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("mine")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    cell, whole = found[CELL.name], found["g"]
    assert [(one.step, one.value) for one in client.get_metric_history(cell.info.run_id, "train/loss")] == [(1, 0.7), (2, 0.5)]
    assert (cell.data.tags["verdict"], whole.data.tags["verdict"]) == ("same", "passed")
    assert cell.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert [file.path for file in client.list_artifacts(whole.info.run_id)] == ["page.html"]


def test_wandb_keeps_them_offline(runs, tmp_path, monkeypatch):
    """Its files have no public reader; what is in them is not packed."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    reported("wandb", runs, tmp_path / "unused")
    cell, whole = sorted((path.read_bytes() for path in tmp_path.glob("wandb/offline-run-*/*.wandb")), key=len, reverse=True)
    assert all(word in cell for word in (b"mine", b"train/loss", b"0.7", b"eval/accuracy", b"91.04", b'"same"'))
    assert all(word in whole for word in (b"mine", b"page.html", b'"passed"'))


def test_trackio_keeps_them_in_its_folder(runs, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    reported("trackio", runs, tmp_path / "unused")
    logs = SQLiteStorage.get_logs("mine", f"{CELL.name}-g")
    assert [log["train/loss"] for log in logs if "train/loss" in log] == [0.7, 0.5]
    assert [log["eval/accuracy"] for log in logs if "eval/accuracy" in log] == [91.04]


def test_what_a_tracker_refuses_is_one_sentence(runs, tmp_path, monkeypatch):
    def refuse(*given):
        raise OSError("no room\nTraceback")

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", refuse)
    with pytest.raises(InputError, match=r"^tensorboard: OSError: no room$"):
        list(report(["tensorboard"], runs, "g", tmp_path))


def test_an_unknown_tracker_and_a_missing_package_are_named_with_the_way_out(monkeypatch):
    with pytest.raises(InputError, match="unknown tracker 'wandbb': expected some of tensorboard,wandb,mlflow,trackio"):
        check(["wandbb"])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"wandb is not installed: `pip install -e '\.\[wandb\]'` in the checkout brings it"):
        check(["wandb"])
