"""Says where a backbone's checkpoint is, and whether a local folder holds all that one needs. Reads no weights."""

from pathlib import Path
from typing import Any

from tunegrid.errors import InputError
from tunegrid.grid.backbones import Backbone
from tunegrid.grid.profiles import Profile

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")


def checkpoint_of(backbone: Backbone, profile: Profile) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is given: a local folder, or the hub's id with the pinned revision where there is one.

    Raises InputError where a local folder is missing or lacks a config, a tokenizer or safetensors weights.
    """
    if profile.checkpoint_root is None:
        return backbone.checkpoint, {"revision": backbone.revision} if backbone.revision else {}
    folder = profile.checkpoint_root / ((profile.micro and backbone.micro) or backbone.folder)
    _check_folder(folder)
    return str(folder), {}


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"no checkpoint folder {folder.name!r} below {folder.parent}; it is named as the hub's model")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; save it there with save_pretrained")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}); save it there with save_pretrained")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        reason = f"only {pickles[0]}, a pickle, which can run code when it is read" if pickles else "no weights"
        raise InputError(f"{folder} has {reason}; save model.safetensors there (save_pretrained writes it)")
