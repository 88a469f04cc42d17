"""Keeps a trained model for `--save-models=DIR`: in a folder of its cell and seed, with its record and its card."""

import json
from pathlib import Path
from typing import Any

from tunegrid.disk import replacing
from tunegrid.errors import InputError
from tunegrid.grid.cells import Cell
from tunegrid.record import Record, to_json
from tunegrid.run.model_card import write_card
from tunegrid.run.serving import Serving


def save(cell: Cell, model: Any, tokenizer: Any, record: Record, root: Path, serving: Serving) -> Path:
    """Keep a trained model, its record and its card below `root`; return the folder.

    Raises InputError where it cannot be written.
    """
    folder = root / f"{cell.id}-seed{cell.profile.seed}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        serving.save(cell, model, tokenizer, folder)
        write_card(cell, model, record, folder)
        with replacing(folder / "record.json") as part:
            part.write_text(json.dumps(to_json(record)), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}); give --save-models another place") from None
    return folder
