"""Reports a finished run to trackers of experiments: TensorBoard, Weights & Biases, MLflow and Trackio.

Each record becomes a run of the tracker: its recipe, its losses by update, its scores and figures, its verdict. One run more
holds the answer to all, and the page where the tracker keeps files. Projects, folders and servers are named by the variables
that the trackers, and transformers' callbacks for them, read. Without these everything stays on this machine. A tracker is
imported where it is asked for and nowhere else.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from tunegrid.errors import InputError, first_line
from tunegrid.record import Record, to_json

PROJECT = "tunegrid"
LOSS = "train/loss"  # as transformers' Trainer names it
MOST_METRICS = 1000  # of one call of MLflow


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run as trackers have it.

    Attributes:
        settings: what it ran with.
        losses: by update, from 1; those that are no number are left out.
        figures: at its end, by name.
        texts: what is said of it, by name.
        file: that belongs to it.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[int, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None

    @property
    def last(self) -> int:
        """The last update."""
        return max(self.losses, default=0)


# Gets the runs, those of cells first and the answer last, a name for all of them, and a folder for what no variable sends
# elsewhere; says where they are.
Tracker = Callable[[Sequence[TrackedRun], str, Path], str]


def tracked(record: Record, texts: Mapping[str, str]) -> TrackedRun:
    """A cell's record as a tracker's run, with what is said of it."""
    training, speed, peak = record.training, record.throughput, record.peak_gib
    figures = {f"eval/{name}": score for name, score in record.scores.items()}
    figures |= {"eval/loss": record.evaluation.loss if record.evaluation else None, "memory/peak_gib": peak}
    figures |= {"train/seconds": training.seconds if training else None}
    figures |= {"train/samples_per_second": speed.train_samples_per_second if speed else None}
    data = to_json(record)
    settings = {"profile": record.profile, "seed": record.seeds.seed, "versions": data["versions"], **data["recipe"]}
    return TrackedRun(
        name=f"{record.cell}-seed{record.seeds.seed or 0}",
        settings=dict(_flat(settings)),
        losses={update: loss for update, loss in enumerate(training.losses if training else (), 1) if loss is not None},
        figures={name: value for name, value in figures.items() if value is not None},
        texts=dict(texts),
    )


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by name, as adapter.r; null is left out."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        elif value is not None:
            yield f"{before}{name}", value if isinstance(value, int | float | str) else str(value)


# Trackers


def to_tensorboard(runs: Sequence[TrackedRun], group: str, folder: Path) -> str:
    """Event files: a folder per run. TENSORBOARD_LOGGING_DIR names the folder of all."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    root = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or folder / "runs").expanduser() / group
    for run in runs:
        writer = EventFileWriter(str(root / run.name))
        points = [(LOSS, update, loss) for update, loss in run.losses.items()]
        for name, update, value in [*points, *((name, run.last, value) for name, value in run.figures.items())]:
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            writer.add_event(Event(wall_time=time.time(), step=update, summary=summary))
        for name, text in {
            **run.texts,
            "settings": "\n".join(f"    {key}: {value}" for key, value in run.settings.items()),
        }.items():
            writer.add_event(Event(wall_time=time.time(), step=run.last, summary=text_pb(name, text)))
        writer.close()
    return f"{root}"


def to_wandb(runs: Sequence[TrackedRun], group: str, folder: Path) -> str:
    """WANDB_PROJECT and WANDB_DIR name where to; offline unless WANDB_MODE says otherwise, so that `wandb sync` sends it."""
    import wandb

    place = Path(os.environ.get("WANDB_DIR") or folder)
    place.mkdir(parents=True, exist_ok=True)
    for run in runs:
        started = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=group,
            name=run.name,
            config=dict(run.settings),
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=str(place),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        for update, loss in run.losses.items():
            started.log({LOSS: loss}, step=update)
        started.summary.update({**run.figures, **run.texts})
        if run.file:
            page = wandb.Artifact(f"page-{group}", type="page")
            page.add_file(str(run.file))
            started.log_artifact(page)
        started.finish()
    return f"{place / 'wandb'}"


def to_mlflow(runs: Sequence[TrackedRun], group: str, folder: Path) -> str:
    """MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME name where to; the answer is the parent of the cells' runs."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    uri, name = os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    folder.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}")
    known = client.get_experiment_by_name(name)
    artifacts = None if uri else (folder / "mlartifacts").as_uri()
    experiment = known.experiment_id if known else client.create_experiment(name, artifact_location=artifacts)
    parent: dict[str, str] = {}
    for run in reversed(runs):
        number = client.create_run(experiment, run_name=run.name if parent else group, tags=parent).info.run_id
        parent = parent or {"mlflow.parentRunId": number}
        _fill_mlflow(client, number, run)
    return f"{uri or folder / 'mlflow.db'}, experiment {name}"


def _fill_mlflow(client: Any, number: str, run: TrackedRun) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    metrics = [Metric(LOSS, loss, now, update) for update, loss in run.losses.items()]
    metrics += [Metric(name, value, now, run.last) for name, value in run.figures.items()]
    params = [Param(name, str(value)) for name, value in run.settings.items()]
    client.log_batch(number, params=params, tags=[RunTag(name, text) for name, text in run.texts.items()])
    for first in range(0, len(metrics), MOST_METRICS):
        client.log_batch(number, metrics=metrics[first : first + MOST_METRICS])
    if run.file:
        client.log_artifact(number, str(run.file))
    client.set_terminated(number)


def to_trackio(runs: Sequence[TrackedRun], group: str, folder: Path) -> str:
    """TRACKIO_PROJECT names the project; the folder is Trackio's own, TRACKIO_DIR or the user's cache."""
    import trackio

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    for run in runs:
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        trackio.init(project=project, name=f"{run.name}-{group}", group=group, config={**run.settings, **run.texts}, **quiet)
        for update, loss in run.losses.items():
            trackio.log({LOSS: loss}, step=update)
        trackio.log(dict(run.figures), step=run.last)
        if run.file:
            page = trackio.Artifact(f"page-{group}", type="page")
            page.add_file(str(run.file))
            trackio.log_artifact(page)
        trackio.finish()
    return f"project {project}"


TRACKERS: Mapping[str, Tracker] = {
    "tensorboard": to_tensorboard,
    "wandb": to_wandb,
    "mlflow": to_mlflow,
    "trackio": to_trackio,
}


def check(names: Sequence[str]) -> None:
    """Raises InputError where a tracker is not known, or its package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"unknown tracker {name!r}: expected some of {','.join(TRACKERS)}")
        if find_spec(name) is None:
            raise InputError(f"{name} is not installed: `pip install -e '.[{name}]'` in the checkout brings it")


def report(names: Sequence[str], runs: Sequence[TrackedRun], group: str, folder: Path) -> Iterator[str]:
    """Report to each of some trackers, and say where to; what they print and warn of is not the run's.

    Raises:
        InputError: where a tracker refuses, with what it says.
    """
    for name in names:
        try:
            with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                warnings.simplefilter("ignore")
                place = TRACKERS[name](runs, group, folder)
        except Exception as error:  # whatever a tracker raises is for its user to read
            raise InputError(f"{name}: {type(error).__name__}: {first_line(error)}") from None
        yield f"{name}: {len(runs) - 1} runs and the answer, {group}, in {place}"
