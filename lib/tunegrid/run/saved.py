"""Models that `--save-models=DIR` kept: each in a folder of its cell and seed, with its record and its card."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as hf

from tunegrid.codecs import codec_of
from tunegrid.codecs.base import Codec
from tunegrid.data.splits import Splits, load_splits
from tunegrid.disk import replacing
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.profiles import FULL_PROFILE, QUICK_PROFILE, Profile
from tunegrid.record import Record, from_json, to_json
from tunegrid.record.parts import BaseKind
from tunegrid.run.build import from_hub_or_folder, loading
from tunegrid.run.model_card import CARD, base_name, card_of
from tunegrid.run.serving import BASE, Serving

RECORD = "record.json"
PROFILES = {profile.id: profile for profile in (QUICK_PROFILE, FULL_PROFILE)}
READ_BY = ("max_length", "doc_stride", "max_target_length", "text", "prefix", "generation")  # what of a recipe scores depend on
HINT = "`pytest --save-models=DIR` leaves a folder for each cell and seed"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """One saved model: the cell that it is of, and the record of its run."""

    folder: Path
    cell: Cell
    record: Record

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.name

    def served(self, device: torch.device) -> tuple[Any, Codec]:
        """The model as it was saved, an adapter over its base, and the codec over its tokenizer."""
        with loading(str(self.folder)):
            model, tokenizer = Serving().load(self.cell, self.folder, device)
        return model, codec_of(self.cell, tokenizer)

    def unlike_record(self, score: float) -> str:
        """A sentence where the model, loaded again, has another score than its record, to the last digit; empty where not."""
        recorded = self.record.scores.get(self.record.main_score)
        return "" if score == recorded else f"{self.name} scores {score} loaded again, but its record has {recorded}"

    def codec(self) -> Codec:
        """Text to tensors and back, over the saved tokenizer."""
        return codec_of(self.cell, from_hub_or_folder(hf.AutoTokenizer, str(self.folder), {}))

    def merged(self, device: torch.device) -> Any:
        """The model as plain weights: an adapter is merged, onto its base's own numbers where that is packed to 4 bits."""
        serving = Serving()
        base: BaseKind = "unpacked" if self.cell.quantization else "packed"  # a base that is not packed is loaded as it is
        with loading(str(self.folder)):
            if not self.cell.method.adapts:
                return serving.load(self.cell, self.folder, device)[0]
            return serving.merge(serving.load_onto(base, self.cell, self.folder, device))

    def splits(self) -> Splits:
        """The rows of its run; raises InputError where they are others by now."""
        splits = load_splits(self.cell.task, self.cell.profile)
        if self.record.data is None or splits.fingerprint != self.record.data.fingerprint:
            raise InputError(f"{self.folder}: the rows are not those of its run; give the same data with --data-root")
        return splits


Fact = Callable[[Saved], object]
SAME_TASK: Mapping[str, Fact] = {
    "the backbone": lambda saved: saved.cell.backbone.id,
    "the task": lambda saved: saved.cell.task.id,
    "the hash of all rows": lambda saved: saved.record.data and saved.record.data.fingerprint,
}


def unlike(first: Saved, second: Saved, facts: Mapping[str, Fact]) -> str:
    """The first of these facts that is another one of each, and what it is; empty where all are the same."""
    both = ((what, fact(first), fact(second)) for what, fact in facts.items())
    return next((f"{what} is {ours} and {theirs}" for what, ours, theirs in both if ours != theirs), "")


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
        with replacing(folder / RECORD) as part:
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


def read(folder: Path, data_root: Path | None = None, checkpoint_root: Path | None = None) -> Saved:
    """What `save` kept; raises InputError where it is not there, or its cell is not one of the study's as it is now."""
    try:
        record = from_json(json.loads((folder / RECORD).read_text(encoding="utf-8")), str(folder / RECORD))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} holds no saved model ({type(error).__name__} of {RECORD}); {HINT}") from None
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} holds no weights, only a record; {HINT}")
    if record.profile not in PROFILES:
        raise InputError(f"{folder} is of profile {record.profile}: only {' and '.join(PROFILES)} models are read")
    cell = STUDY.cell(record.cell, _profile(record, data_root, checkpoint_root))
    for name in READ_BY:
        ours, theirs = getattr(cell.recipe, name), getattr(record.recipe, name)
        if ours != theirs:
            raise InputError(
                f"{folder} was scored with {name} {theirs}, but the recipe has {ours}: save it without --set {name}"
            )
    return Saved(folder=folder, cell=cell, record=record)


def _profile(record: Record, data_root: Path | None, checkpoint_root: Path | None) -> Profile:
    """The record's profile, its seed and its limits of rows."""
    base, limits = PROFILES[record.profile], record.limits
    profile = replace(base, seed=record.seeds.seed or 0, perturbation=record.seeds.perturbation, own_test=limits.own_test)
    if limits.train_rows != base.cap(record.task, "train"):
        profile = replace(profile, train_rows=limits.train_rows or 0)
    if limits.test_rows != base.cap(record.task, "test"):
        profile = replace(profile, eval_rows=limits.test_rows or 0)
    return replace(profile, data_root=data_root or base.data_root, checkpoint_root=checkpoint_root or base.checkpoint_root)
