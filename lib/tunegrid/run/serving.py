"""Saves, reloads and merges a trained model, as transformers and PEFT document it, and writes its card.

An adapter is loaded over a fresh base. Where no checkpoint holds that base, since the method, a random start or a perturbation
made it, it is saved beside the adapter: PEFT's documentation says so of PiSSA and OLoRA. An adapter of a packed base can be
loaded onto that base unpacked, or onto the checkpoint, too.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import peft
import torch
import transformers as hf
from huggingface_hub.repocard import metadata_load
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from tunegrid.codecs.architectures import architecture
from tunegrid.disk import replacing
from tunegrid.errors import InputError
from tunegrid.grid.backbones import checkpoint_of
from tunegrid.grid.cells import Cell
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.grid.tasks import TASKS, Carve, Problem, score_title
from tunegrid.record import Record, to_json
from tunegrid.run.build import base_type, keep_packed_layers, load_base
from tunegrid.run.device import ATTENTION
from tunegrid.run.weights import BaseKind, lacking_modules
from tunegrid.terminal import without_places

BASE = "base"  # the folder, beside the adapter, of a base that no checkpoint holds


class Serving:
    """How a cell's result is saved and served. The fault table puts others in its place."""

    def save(self, cell: Cell, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write tokenizer and model, or adapter, to `folder`; the model stays as it is."""
        tokenizer.save_pretrained(folder)
        cell.method.save(model, cell, folder)
        if isinstance(model, peft.PeftModel) and not _checkpoint_holds_base(cell):
            with unwrapped(model) as base:
                base.save_pretrained(folder / BASE)

    def load(self, cell: Cell, folder: Path, device: torch.device) -> tuple[Any, Any]:
        """The model and the tokenizer that `save` wrote. Raises InputError where a full model lacks tensors."""
        tokenizer = hf.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if not (folder / peft.utils.CONFIG_NAME).is_file():
            return _prepared(_load_saved(cell, folder, device), device), tokenizer
        base = _prepared(_base(cell, folder, tokenizer, device), device)
        return peft.PeftModel.from_pretrained(base, folder, torch_device=str(device)).eval(), tokenizer

    def load_onto(self, base: BaseKind, cell: Cell, folder: Path, device: torch.device) -> Any:
        """The adapter that `save` wrote, over its base as it was packed, over that base unpacked, or over the checkpoint.

        Raises InputError where no checkpoint holds the base.
        """
        if base == "packed":
            return self.load(cell, folder, device)[0]
        tokenizer = hf.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if base == "original":
            if (folder / BASE).is_dir():
                raise InputError("no checkpoint holds the base: it was saved packed, beside the adapter")
            cell = replace(cell, method=replace(cell.method, quantization=None))
        loaded = _base(cell, folder, tokenizer, device)
        loaded = loaded.dequantize() if base == "unpacked" else loaded
        return peft.PeftModel.from_pretrained(loaded.to(device).eval(), folder, torch_device=str(device)).eval()

    def merge(self, model: Any) -> Any:
        """The base of a loaded adapter with the adapter merged into its weights; the loaded model is used up."""
        return model.merge_and_unload()


def _checkpoint_holds_base(cell: Cell) -> bool:
    """Whether the frozen base is the checkpoint's, but for what is saved with the adapter."""
    made = cell.method.rewritten(cell) or cell.head.adapted_modules or lacking_modules(cell)
    return not made and cell.profile.perturbation is None


def _base(cell: Cell, folder: Path, tokenizer: Any, device: torch.device) -> Any:
    """What an adapter was trained over: it was saved beside the adapter where no checkpoint holds it."""
    own = folder / BASE
    return _load_saved(cell, own, device) if own.is_dir() else load_base(cell, tokenizer, device)


def _load_saved(cell: Cell, folder: Path, device: torch.device) -> Any:
    """A model that was saved whole; raises InputError for one that lacks tensors, which would start from random."""
    kind = architecture(cell.head.architecture)
    options = {"dtype": base_type(cell), "attn_implementation": ATTENTION, "use_safetensors": True, "trust_remote_code": False}
    device_options = {"device_map": {"": device}} if cell.quantization else {}
    load = getattr(kind, "from_saved", kind.from_pretrained)
    model, report = load(folder, output_loading_info=True, **options, **device_options)
    lost = sorted({*report["missing_keys"], *(str(name) for name, *_ in report["mismatched_keys"])})
    if lost:
        raise InputError(f"the saved model lacks {len(lost)} tensors, {lost[0]} among them")
    return model


def _prepared(model: Any, device: torch.device) -> Any:
    """The model for evaluation; its packed layers compute as those of the trained model do."""
    keep_packed_layers(model)
    return model.to(device).eval()


@contextmanager
def unwrapped(model: Any) -> Iterator[Any]:
    """The base below an adapter, its layers taken out of PEFT's; afterwards all is as it was."""
    base, outer = model.get_base_model(), wrappers(model)
    try:
        for name, module in outer.items():
            base.set_submodule(name, _base_of(module))
        yield base
    finally:
        for name, module in outer.items():
            base.set_submodule(name, module)


def wrappers(model: Any) -> dict[str, nn.Module]:
    """What PEFT put around modules of the base, by their names in it; of one inside another, the outer one."""
    inside = {name: module for name, module in model.get_base_model().named_modules() if _base_of(module) is not None}
    return {name: module for name, module in inside.items() if not any(name.startswith(f"{other}.") for other in inside)}


def _base_of(module: nn.Module) -> Any:
    """The module that PEFT put another one around; None for any other module."""
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else None


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
        training_data=f"{data.rows['train']} rows from {data.origins['train']}" if data else None,
        testing_data=f"{data.rows['test']} rows from {data.origins['test']}" if data else None,
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


def save(cell: Cell, model: Any, tokenizer: Any, record: Record, root: Path, serving: Serving) -> Path:
    """Keep a trained model, its record and its card below `root`; return the folder.

    Raises InputError where it cannot be written.
    """
    folder = root / f"{cell.id}-seed{cell.profile.seed}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        serving.save(cell, model, tokenizer, folder)
        name_parts(cell, folder)
        card_of(cell, record).save(folder / CARD)
        with replacing(folder / "record.json") as part:
            part.write_text(json.dumps(to_json(record)), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}); give --save-models another place") from None
    return folder


def name_parts(cell: Cell, folder: Path) -> None:
    """Name the classes in a saved classifier's config, and an adapter's base by its checkpoint, not by a folder of here."""
    labels = {"id2label": dict(enumerate(cell.task.labels)), "label2id": {name: i for i, name in enumerate(cell.task.labels)}}
    fields: dict[str, dict[str, Any]] = {peft.utils.CONFIG_NAME: {"base_model_name_or_path": base_name(cell)}}
    if cell.task.labels:
        fields |= {hf.utils.CONFIG_NAME: labels, f"{BASE}/{hf.utils.CONFIG_NAME}": labels}
    for name, values in fields.items():
        if (path := folder / name).is_file():
            path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values, indent=2), encoding="utf-8")
