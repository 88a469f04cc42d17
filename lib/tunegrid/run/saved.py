"""Models that `--save-models=DIR` kept: each in a folder of its cell and seed, with its record and its card."""

import json
from pathlib import Path
from typing import Any

import peft
import transformers as hf

from tunegrid.disk import replacing
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.record import Record, to_json
from tunegrid.run.model_card import CARD, base_name, card_of
from tunegrid.run.serving import BASE, Serving


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
