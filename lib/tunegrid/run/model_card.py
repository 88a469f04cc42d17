"""The README.md of a saved model, as `push_to_hub` would upload it: what was trained, on what, and scores as `model-index`.

huggingface_hub makes the card, and PEFT adds its part to an adapter's. Nothing is uploaded, and nothing asks the hub, which
transformers' own `TrainingSummary` would ask for the checkpoint's licence.
"""

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import peft
from huggingface_hub.repocard import metadata_load

from tunegrid.grid.cells import Cell
from tunegrid.grid.checkpoints import checkpoint_of
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.grid.tasks import TASKS, Problem, score_title
from tunegrid.places import without_places
from tunegrid.record import Record, to_json

CARD = "README.md"
TAGS = ["tunegrid"]  # PEFT's replace them
TEMPLATE = Path(__file__).with_name("model_card.md.j2")
# The hub's names of tasks; summarization has one of its own.
PIPELINES = {
    Problem.CLASSIFY: "text-classification",
    Problem.EXTRACT: "question-answering",
    Problem.GENERATE: "text-generation",
}
METRICS = ("accuracy", "bertscore", "exact_match", "f1", "precision", "recall", "rouge")  # the hub's names, ours begin with
NO_SETTINGS = ("adapter", "quantization", "trainable_params", "total_params", "from_notebook", "ours")


def write_card(cell: Cell, model: Any, record: Record, folder: Path) -> None:
    """Write a saved model's card beside it; the one that PEFT left there is replaced. Raises OSError."""
    card_of(cell, record).save(folder / CARD)
    if isinstance(model, peft.PeftModel) and (folder / peft.utils.CONFIG_NAME).is_file():
        model.create_or_update_model_card(str(folder))
        rename_base(cell, folder)


def rename_base(cell: Cell, folder: Path) -> None:
    """Call an adapter's base by its name on the hub, or its micro name, where PEFT wrote the folder that it was loaded from.

    Not before the adapter is saved: PEFT asks the hub for a base that is no folder.
    """
    config = peft.PeftConfig.from_pretrained(str(folder))
    config.base_model_name_or_path = base_name(cell)
    config.save_pretrained(str(folder))
    card, name = hub.ModelCard.load(folder / CARD), None if is_micro(cell) else base_name(cell)
    kinds = [tag for tag in card.data.tags if not tag.startswith("base_model:")]
    card.data.base_model = name
    card.data.tags = sorted([*TAGS, *kinds, *([f"base_model:adapter:{name}"] if name else [])])
    card.save(folder / CARD)


def base_name(cell: Cell) -> str:
    """What the backbone is called where no folder of this machine is known."""
    return (cell.profile.micro and cell.backbone.micro) or cell.backbone.checkpoint


def is_micro(cell: Cell) -> bool:
    """The backbone is one that stands in for the true checkpoint in tests."""
    return bool(cell.profile.micro and cell.backbone.micro)


def is_made_up(cell: Cell) -> bool:
    """The rows are those that ship with the suite."""
    return cell.profile.data_root == QUICK_PROFILE.data_root


def card_of(cell: Cell, record: Record) -> hub.ModelCard:
    """The card, without what PEFT adds."""
    data = hub.ModelCardData(
        language="en" if cell.task in TASKS else None,
        base_model=None if is_micro(cell) else base_name(cell),
        datasets=None if is_made_up(cell) else [cell.task.dataset],
        eval_results=list(eval_results(cell, record)) or None,
        library_name="peft" if cell.method.adapts else "transformers",
        license=licence_of_base(cell),
        model_name=cell.id,
        pipeline_tag=pipeline_of(cell),
        tags=TAGS,
    )
    card: hub.ModelCard = hub.ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        cell=cell,
        record=record,
        version=version("tunegrid"),
        caveats=list(caveats(cell, record)),
        scores=scores_of(record),
        title=partial(score_title, labels=cell.task.labels),
        hyperparameters=dict(hyperparameters(record)),
    )
    return card


def pipeline_of(cell: Cell) -> str:
    """The hub's name of the task."""
    return "summarization" if cell.task.name == "summarization" else PIPELINES[cell.task.problem]


def licence_of_base(cell: Cell) -> str | None:
    """The licence that the checkpoint's own card names; None where no card lies beside it."""
    card = Path(checkpoint_of(cell.backbone, cell.profile)[0]) / CARD
    try:
        licence = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except Exception:  # a stranger's card may hold anything, and is no reason to lose a trained model
        return None
    return licence if isinstance(licence, str) else None


def scores_of(record: Record) -> dict[str, float]:
    """Scores that are numbers: the main one first, then those that bounds hold."""
    ordered = dict.fromkeys([record.main_score, *record.bounded_scores, *sorted(record.scores)])
    return {name: score for name in ordered if (score := record.scores.get(name)) is not None}


def eval_results(cell: Cell, record: Record) -> Iterator[hub.EvalResult]:
    """The scores as the hub's `model-index` takes them."""
    task, made_up = cell.task, is_made_up(cell)
    own = task.own_test if record.limits.own_test else None
    for name, score in scores_of(record).items():
        yield hub.EvalResult(
            task_type=pipeline_of(cell),
            task_name=task.name,
            dataset_type="synthetic" if made_up else task.dataset,
            dataset_name=f"rows made up by tunegrid, as {task.folder}" if made_up else task.folder,
            dataset_config=None if made_up else task.config,
            dataset_split=own or (task.test if isinstance(task.test, str) else "train"),  # a share of which is set aside
            dataset_revision=record.data.revision if record.data else None,
            metric_type=next((known for known in METRICS if name.startswith(known)), name),
            metric_name=f"{score_title(name, task.labels)} (points, 0 to 100)",
            metric_value=score,
        )


def caveats(cell: Cell, record: Record) -> Iterator[str]:
    """What a reader must know before the scores."""
    if is_micro(cell):
        stand_in = f"{cell.backbone.micro} stands in for {cell.backbone.checkpoint}"
        yield f"**A micro model, for tests alone.** {stand_in}: a small model that shows whether fine-tuning works."
    if is_made_up(cell):
        yield (
            "**Synthetic data.** tunegrid made up every row that trained or scored it. "
            f"The scores say nothing about {cell.task.dataset}, whose columns the rows have."
        )
    elif record.data and record.data.revision is None:
        yield f"Its rows were read from a local folder with the name of {cell.task.dataset}, at no known revision."
    if record.limits.label_noise:
        yield f"**Wrong on purpose.** Of the training rows, {record.limits.label_noise:.0%} had a wrong target."
    if record.status != "passed":
        yield without_places(" ".join([f"**Its run did not pass: {record.status}.**", *record.missed]))
    if not record.bounds:
        yield "No bound applied to its scores."


def hyperparameters(record: Record) -> Iterator[tuple[str, Any]]:
    """The recipe's settings that are set, by the names of Trainer and PEFT, and the seed."""
    recipe = to_json(record)["recipe"]
    yield from ((name, value) for name, value in recipe.items() if name not in NO_SETTINGS and value not in (None, [], ""))
    for part in ("adapter", "quantization"):
        yield from ((f"{part}.{name}", value) for name, value in (recipe[part] or {}).items())
    yield "seed", record.seeds.seed
