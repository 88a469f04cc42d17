"""Writes the figures that the pages quote to reports/measured.json, one section per command."""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from tunegrid import ROOT
from tunegrid.disk import replacing
from tunegrid.errors import InputError

MEASURED = ROOT / "reports" / "measured.json"


def read(path: Path = MEASURED) -> dict[str, Any]:
    """All sections; none where the file is not there. Raises InputError where it is not JSON."""
    try:
        sections: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); remove it, and run `python -m tunegrid.lab measure`") from None
    return sections


def note(path: Path | None, section: str, figures: Mapping[str, Any]) -> None:
    """Write a command's figures, with the day, in place of its older ones; without a path nothing is written."""
    if path is None:
        return
    sections = read(path) | {section: {"date": str(date.today()), **figures}}
    with replacing(path) as part:
        part.write_text(json.dumps(dict(sorted(sections.items())), indent=1) + "\n", encoding="utf-8")
