"""Downloads the weights and data sets of full-size cells, for runs without a network.

`tunegrid fetch` fills the cache of the Hugging Face hub: $HF_HOME, by default ~/.cache/huggingface.
With that cache, `HF_HUB_OFFLINE=1 tunegrid run -m full` needs no network. For a checkpoint, only
the safetensors, JSON and vocabulary files are downloaded.
"""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from tunegrid.data.sources import hub_tables, prefer_cache_if_unreachable
from tunegrid.errors import InputError, first_line
from tunegrid.grid.backbones import BERT, local_checkpoint
from tunegrid.grid.cells import Cell, add_file, study
from tunegrid.grid.recipes import FULL_PROFILE
from tunegrid.report.costs import GB
from tunegrid.terminal import say
from tunegrid.words import count

PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model"]
SUBFOLDERS = "*/*"  # subfolders hold other formats, such as ONNX


def checkpoints(cells: Iterable[Cell]) -> dict[str, str | None]:
    """The revision of each hub checkpoint that cells load; None means the newest revision."""
    from tunegrid.run.metrics import needs_bertscore  # imports torch

    revisions = {}
    for cell in cells:
        if local_checkpoint(cell.backbone, cell.profile) is None:
            revisions[cell.backbone.checkpoint] = cell.backbone.revision
        if needs_bertscore(cell.task):
            revisions[BERT.checkpoint] = BERT.revision
    return revisions


def fetch_weights(checkpoint: str, revision: str | None) -> int:
    """Downloads a checkpoint and returns its size in bytes.

    Raises InputError if the download fails, or if the checkpoint has no safetensors file.
    """
    import huggingface_hub  # reads its environment when it is imported

    try:
        folder = huggingface_hub.snapshot_download(
            checkpoint,
            revision=revision,
            allow_patterns=PATTERNS,
            ignore_patterns=SUBFOLDERS,
        )
    except Exception as error:  # whatever the HTTP client raises
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"cannot fetch {checkpoint} from the hub ({cause})") from None
    files = [path for path in Path(folder).iterdir() if path.is_file()]
    if not any(path.suffix == ".safetensors" for path in files):
        raise InputError(f"{checkpoint} has no safetensors; no other weights are loaded")
    return sum(path.stat().st_size for path in files)


def main(arguments: list[str] | None = None) -> int:
    """Download the checkpoints and data sets that the cells need; return 0."""
    parser = argparse.ArgumentParser(prog="tunegrid fetch", description=__doc__)
    add = parser.add_argument
    add("--cells", metavar="ID,ID", help="cells to fetch for (default: the study's 27)")
    text = "add the cells of this file; repeatable"
    add("--grid", action="append", default=[], type=Path, metavar="FILE.py", help=text)
    options = parser.parse_args(arguments)
    grid = study()
    for path in options.grid:
        add_file(path, grid)
    names = options.cells.split(",") if options.cells else grid.ids(FULL_PROFILE)
    cells = [grid.cell(name, FULL_PROFILE) for name in names]
    tasks = {cell.task.id: cell.task for cell in cells if cell.uses_hub}
    if os.environ.get("HF_HUB_OFFLINE"):
        raise InputError("HF_HUB_OFFLINE is set, which forbids downloads; unset it")
    if not prefer_cache_if_unreachable():
        hint = "run this where there is a network, and copy $HF_HOME"
        raise InputError(f"the hub cannot be reached; {hint}")
    revisions = checkpoints(cells)
    for checkpoint, revision in revisions.items():
        size = fetch_weights(checkpoint, revision)
        say(f"{checkpoint}: {size / GB:.2f} GB")
    for task in tasks.values():
        for name, table in hub_tables(task).items():
            say(f"{task.dataset}, {name}: {count(len(table), 'row')}")
    fetched = f"{count(len(revisions), 'checkpoint')} and {count(len(tasks), 'data set')}"
    run = " ".join(["tunegrid run -m full", *(f"--grid={path}" for path in options.grid)])
    if options.cells:
        run += f" --cells {options.cells}"
    say(f"Fetched: {fetched}. `HF_HUB_OFFLINE=1 {run}` needs no network now.")
    return 0
