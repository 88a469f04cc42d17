"""Saves, reloads and merges trained models as transformers and PEFT document; writes model cards.

An adapter is loaded over a fresh base. If no checkpoint holds that base, because the method, random
initialization or a perturbation changed it, the base is saved beside the adapter, as PEFT documents
for PiSSA and OLoRA.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import peft
import torch
import transformers as hf
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from tunegrid.codecs.architectures import architecture
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.errors import InputError
from tunegrid.grid.backbones import Layout, checkpoint_source, own_checkpoint
from tunegrid.grid.cells import Cell
from tunegrid.grid.recipes import QUICK_PROFILE
from tunegrid.grid.tasks import Problem, score_title
from tunegrid.machine import replace_file
from tunegrid.record import Record, to_json
from tunegrid.run.build import (
    base_type,
    keep_packed_layers,
    lacking_modules,
    load_base,
    packing_config,
)
from tunegrid.run.prepare import make_codec
from tunegrid.terminal import strip_places

BASE = "base"  # folder, beside the adapter, for a base that no checkpoint holds
PIPELINES = {  # the hub's task names; summarization has its own
    Problem.CLASSIFY: "text-classification",
    Problem.EXTRACT: "question-answering",
    Problem.GENERATE: "text-generation",
}


AUTO: Mapping[tuple[Problem, Layout | None], str] = {
    (Problem.CLASSIFY, None): "AutoModelForSequenceClassification",
    (Problem.EXTRACT, None): "AutoModelForQuestionAnswering",
    (Problem.EXTRACT, Layout.CHAT): "AutoModelForCausalLM",
    (Problem.GENERATE, Layout.ENCODER_DECODER): "AutoModelForSeq2SeqLM",
    (Problem.GENERATE, Layout.SEPARATED): "AutoModelForCausalLM",
    (Problem.GENERATE, Layout.CHAT): "AutoModelForCausalLM",
}
AUTO_PEFT: Mapping[str | None, str] = {  # by the adapter's task type
    None: "AutoPeftModel",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
}


class Serving:
    """Saves, loads and merges a cell's trained model; tests may replace it to inject faults."""

    def save(self, cell: Cell, model: Any, tokenizer: Any, folder: Path) -> None:
        """Saves tokenizer, model or adapter, search settings, and any base not in a checkpoint."""
        tokenizer.save_pretrained(folder)
        cell.method.save(model, cell, folder)
        codec = make_codec(cell, tokenizer)
        if isinstance(codec, GenerateCodec):
            hf.GenerationConfig(**saved_search(codec)).save_pretrained(folder)
        if not isinstance(model, peft.PeftModel):
            return
        new_parts = cell.method.rewrites(cell) or cell.head.adapted_modules or lacking_modules(cell)
        if new_parts or cell.profile.perturbation is not None:  # no checkpoint holds the base
            with unwrap_base(model) as base:
                base.save_pretrained(folder / BASE)

    def load(self, cell: Cell, folder: Path, device: torch.device) -> tuple[Any, Any]:
        """Loads the model and the tokenizer that `save` wrote, with Auto classes where they exist.

        Passes only options that are in none of the saved files. Raises InputError if a model that
        was saved whole has missing or misshapen tensors.
        """
        tokenizer = hf.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if (folder / peft.utils.CONFIG_NAME).is_file():
            model = load_tuned(cell, folder, tokenizer, device)
            base = model.get_base_model()
        else:
            model = base = load_whole(cell, folder, device)
        model.to(device)
        if cell.quantization:
            keep_packed_layers(model)  # as in the trained model
        if base.config.pad_token_id is None:  # GPT-2's classifier needs a pad id
            base.config.pad_token_id = make_codec(cell, tokenizer).pad_id
        if (folder / hf.utils.GENERATION_CONFIG_NAME).is_file():
            base.generation_config = hf.GenerationConfig.from_pretrained(folder)
        return model, tokenizer

    def merge(self, model: Any) -> Any:
        """Merges a loaded adapter into its base and returns the base; invalidates `model`."""
        return model.merge_and_unload()


def saved_search(codec: GenerateCodec) -> dict[str, Any]:
    """The recipe's search settings; without beams, resets the length penalty to 1."""
    search = codec.search
    if codec.generation.num_beams <= 1:
        search["length_penalty"] = 1.0
    return search


def load_tuned(cell: Cell, folder: Path, tokenizer: Any, device: torch.device) -> Any:
    """Loads an adapter over its base.

    PEFT finds the base, unless it was saved beside the adapter or its class is ours.
    """
    is_own = not architecture(cell.head.architecture).__module__.startswith("transformers.")
    if is_own or (folder / BASE).is_dir():
        return load_adapter(load_below(cell, folder, tokenizer, device), folder, device)
    config = peft.PeftConfig.from_pretrained(folder)
    kind = getattr(peft, AUTO_PEFT[config.task_type])
    return kind.from_pretrained(folder, trust_remote_code=False, **base_options(cell, device))


def base_options(cell: Cell, device: torch.device) -> dict[str, Any]:
    """Options that are needed to load the base but are not in the checkpoint's config."""
    source, pin = checkpoint_source(cell.backbone, cell.profile)
    config = hf.AutoConfig.from_pretrained(source, trust_remote_code=False, **pin)
    options: dict[str, Any] = {}
    if config.dtype is not base_type(cell):
        options["dtype"] = base_type(cell)
    if cell.task.problem is Problem.CLASSIFY and config.num_labels != len(cell.task.labels):
        options["num_labels"] = len(cell.task.labels)
        options["ignore_mismatched_sizes"] = True
    if cell.quantization:
        options["quantization_config"] = packing_config(cell, device)
        options["device_map"] = {"": device}
    return options


def load_below(cell: Cell, folder: Path, tokenizer: Any, device: torch.device) -> Any:
    """Loads an adapter's base: the one saved beside the adapter, or else the cell's base model."""
    base_folder = folder / BASE
    if base_folder.is_dir():
        return load_whole(cell, base_folder, device)
    return load_base(cell, tokenizer, device)


def load_whole(cell: Cell, folder: Path, device: torch.device) -> Any:
    """Loads a model that was saved whole; raises InputError if tensors are missing or misshapen."""
    kind = architecture(cell.head.architecture)
    if kind.__module__.startswith("transformers."):
        kind = getattr(hf, AUTO[cell.task.problem, cell.head.layout])
    options = {"device_map": {"": device}} if cell.quantization else {}
    load = getattr(kind, "from_saved", kind.from_pretrained)
    model, report = load(folder, output_loading_info=True, trust_remote_code=False, **options)
    misshapen_names = [str(name) for name, *_ in report["mismatched_keys"]]
    names = sorted({*report["missing_keys"], *misshapen_names})
    if names:
        raise InputError(
            f"{len(names)} tensors of the saved model are missing or have another shape, "
            f"{names[0]} among them"
        )
    return model


def load_adapter(base: Any, folder: Path, device: torch.device) -> Any:
    """Loads an adapter over its base; PEFT leaves the model in evaluation mode."""
    return peft.PeftModel.from_pretrained(base.to(device), folder, torch_device=str(device))


@contextmanager
def unwrap_base(model: Any) -> Iterator[Any]:
    """Replaces PEFT's wrappers in an adapter's base with the layers inside, then restores them."""
    base = model.get_base_model()
    modules = wrappers(model)
    try:
        for name, module in modules.items():
            base.set_submodule(name, _base_module(module))
        yield base
    finally:
        for name, module in modules.items():
            base.set_submodule(name, module)


def wrappers(model: Any) -> dict[str, nn.Module]:
    """PEFT's outermost wrappers around modules of the base, by module name."""
    modules: dict[str, nn.Module] = {}
    for name, module in model.get_base_model().named_modules():  # outer modules come first
        if _base_module(module) is None:
            continue
        if not any(name.startswith(f"{outer_name}.") for outer_name in modules):
            modules[name] = module
    return modules


def _base_module(module: nn.Module) -> Any:
    """The module inside one of PEFT's wrappers; None for any other module."""
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else None


# Files written by `--save-models`


def save_trained(
    cell: Cell,
    model: Any,
    tokenizer: Any,
    record: Record,
    root: Path,
    serving: Serving,
) -> Path:
    """Saves a trained model, its record and its card in a folder under `root`; returns the folder.

    No file contains a path on this machine, except that an adapter names a base saved beside it by
    its path. Raises InputError if the folder cannot be written.
    """
    folder = root / cell.name
    adapter = folder / peft.utils.CONFIG_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        serving.save(cell, model, tokenizer, folder)
        if adapter.is_file():
            config = json.loads(adapter.read_text(encoding="utf-8"))
            # A local checkpoint's name is no hub id, so PEFT fails instead of loading another base.
            config["base_model_name_or_path"] = base_name(cell, record)
            if (folder / BASE).is_dir():  # PEFT would look for ./base below the current folder
                config["base_model_name_or_path"] = str((folder / BASE).resolve())
            adapter.write_text(json.dumps(config, indent=2), encoding="utf-8")
        make_card(cell, record, folder).save(folder / "README.md")
        with replace_file(folder / "record.json") as path:
            path.write_text(json.dumps(to_json(record)), encoding="utf-8")
    except OSError as error:
        fault = f"{folder} cannot be written ({error.strerror or error})"
        raise InputError(f"{fault}; give --save-models another place") from None
    return folder


def base_name(cell: Cell, record: Record) -> str:
    """The backbone's public or micro name, or the name and hash of a user's local checkpoint."""
    folder = own_checkpoint(cell.backbone, cell.profile)
    if folder is None:
        return (cell.profile.micro and cell.backbone.micro) or cell.backbone.checkpoint
    name = f"local checkpoint `{folder.name}`"
    if record.model and record.model.fingerprint:
        return f"{name} (weights {record.model.fingerprint})"
    return name


def make_card(cell: Cell, record: Record, folder: Path) -> hub.ModelCard:
    """The card of a model saved in `folder`: base, caveats, and scores, the main score first."""
    task = cell.task
    base = base_name(cell, record)
    is_micro = cell.profile.micro and cell.backbone.micro is not None
    has_public_base = not is_micro and own_checkpoint(cell.backbone, cell.profile) is None
    is_synthetic = cell.profile.data_root == QUICK_PROFILE.data_root
    pipeline = "summarization" if task.name == "summarization" else PIPELINES[task.problem]
    scores = []
    for name in dict.fromkeys([record.main_score, *record.bounded_scores, *sorted(record.scores)]):
        score = record.scores.get(name)
        if score is not None:
            scores.append(f"- {score_title(name, task.labels)} (points, 0 to 100): {score}")
    caveats = []
    if is_micro:
        replaced = f"{cell.backbone.micro} stands in for {cell.backbone.checkpoint}"
        caveats.append(f"- A micro model, for tests alone: {replaced}.")
    if record.training:
        for change in record.training.fallbacks:
            caveats.append(f"- {strip_places(change)}.")
    if is_synthetic:
        cause = "- Synthetic data: tunegrid made up every row"
        caveats.append(f"{cause}, so the scores say nothing about {task.dataset}.")
    if record.status != "passed":
        sentences = [f"Its run did not pass ({record.status}).", *record.missed]
        caveats.append(f"- {strip_places(' '.join(sentences))}")
    finetuned_from = base
    moving = ""
    if (folder / BASE).is_dir():
        finetuned_from += f", saved in `{BASE}/`"
        moving = (
            f" `adapter_config.json` names `{BASE}/` by its path (`base_model_name_or_path`): "
            "correct it if you move this folder."
        )
    data = hub.ModelCardData(
        base_model=base if has_public_base else None,
        datasets=None if is_synthetic else [task.dataset],
        library_name="peft" if cell.method.adapts else "transformers",
        model_name=cell.id,
        pipeline_tag=pipeline,
        tags=["tunegrid"],
    )
    card: hub.ModelCard = hub.ModelCard.from_template(
        data,
        model_id=f"{cell.id}, seed {record.seeds.seed}",
        model_description=(
            f"{cell.backbone.name}, fine-tuned for {task.name} by `{cell.method.id}` "
            f"with tunegrid {version('tunegrid')}. "
            f"The recipe, the bounds and all figures are in `record.json` beside this card.{moving}"
        ),
        base_model=finetuned_from,
        bias_risks_limitations="\n".join(caveats),
        results="\n".join(scores),
    )
    return card
