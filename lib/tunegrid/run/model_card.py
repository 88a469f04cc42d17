"""The README.md of a saved model by huggingface_hub's own template, with its scores as `model-index`. Nothing asks the hub."""

from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub.repocard import metadata_load

from tunegrid.grid.backbones import checkpoint_of
from tunegrid.grid.cells import Cell
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.grid.tasks import TASKS, Carve, Problem, score_title
from tunegrid.places import without_places
from tunegrid.record import Record

CARD = "README.md"
PIPELINES = {  # the hub's names of tasks; summarization has one of its own
    Problem.CLASSIFY: "text-classification",
    Problem.EXTRACT: "question-answering",
    Problem.GENERATE: "text-generation",
}
METRICS = ("accuracy", "bertscore", "exact_match", "f1", "precision", "recall", "rouge")  # the hub's names, ours begin with


def card_of(cell: Cell, record: Record) -> hub.ModelCard:
    """The card of a cell's model."""
    name, data, made_up = base_name(cell), record.data, cell.profile.data_root == QUICK_PROFILE.data_root
    results = list(eval_results(cell, record, made_up))
    card_data = hub.ModelCardData(
        language="en" if cell.task in TASKS else None,
        base_model=name if name == cell.backbone.checkpoint else None,  # the hub has no micro model
        datasets=None if made_up else [cell.task.dataset],
        eval_results=results or None,
        library_name="peft" if cell.method.adapts else "transformers",
        license=licence_of_base(cell),
        model_name=cell.id,
        pipeline_tag=pipeline_of(cell),
        tags=["tunegrid"],
    )
    card: hub.ModelCard = hub.ModelCard.from_template(
        card_data,
        model_id=f"{cell.id}, seed {record.seeds.seed}",
        model_description=f"{cell.backbone.name}, fine-tuned for {cell.task.name} by `{cell.method.id}` with tunegrid "
        f"{version('tunegrid')}. The recipe, the bounds and all figures are in `record.json` beside this card.",
        base_model=name,
        bias_risks_limitations="\n".join(caveats(cell, record, made_up)),
        training_data=f"{data.rows.train} rows from {data.origins.train}" if data else None,
        testing_data=f"{data.rows.test} rows from {data.origins.test}" if data else None,
        results="\n".join(f"- {one.metric_name}: {one.metric_value}" for one in results),
    )
    return card


def base_name(cell: Cell) -> str:
    """What the backbone is called where no folder of this machine is known."""
    return (cell.profile.micro and cell.backbone.micro) or cell.backbone.checkpoint


def pipeline_of(cell: Cell) -> str:
    """The hub's name of the task."""
    return "summarization" if cell.task.name == "summarization" else PIPELINES[cell.task.problem]


def licence_of_base(cell: Cell) -> str | None:
    """The licence that the checkpoint's own card names; None where no card lies beside it."""
    with suppress(Exception):  # a stranger's card may hold anything, and is no reason to lose a trained model
        licence = (metadata_load(Path(checkpoint_of(cell.backbone, cell.profile)[0]) / CARD) or {})["license"]
        return licence if isinstance(licence, str) else None
    return None


def eval_results(cell: Cell, record: Record, made_up: bool) -> Iterator[hub.EvalResult]:
    """The scores that are numbers: the main one first, then those that bounds hold."""
    task, test = cell.task, (record.limits.own_test and cell.task.own_test) or cell.task.test
    for name in dict.fromkeys([record.main_score, *record.bounded_scores, *sorted(record.scores)]):
        if (score := record.scores.get(name)) is not None:
            yield hub.EvalResult(
                task_type=pipeline_of(cell),
                task_name=task.name,
                dataset_type="synthetic" if made_up else task.dataset,
                dataset_name=f"rows made up by tunegrid, as {task.folder}" if made_up else task.folder,
                dataset_config=None if made_up else task.config,
                dataset_split=f"{test.share:.0%} of {task.train}" if isinstance(test, Carve) else test,
                dataset_revision=record.data.revision if record.data else None,
                metric_type=next((known for known in METRICS if name.startswith(known)), name),
                metric_name=f"{score_title(name, task.labels)} (points, 0 to 100)",
                metric_value=score,
            )


def caveats(cell: Cell, record: Record, made_up: bool) -> Iterator[str]:
    """What a reader must know before the scores."""
    if base_name(cell) != cell.backbone.checkpoint:
        yield f"- A micro model, for tests alone: {base_name(cell)} stands in for {cell.backbone.checkpoint}."
    if made_up:
        yield f"- Synthetic data: tunegrid made up every row, so the scores say nothing about {cell.task.dataset}."
    if record.limits.label_noise:
        yield f"- Wrong on purpose: {record.limits.label_noise:.0%} of the training rows had a wrong target."
    if record.status != "passed":
        yield without_places(" ".join([f"- Its run did not pass ({record.status}).", *record.missed]))
