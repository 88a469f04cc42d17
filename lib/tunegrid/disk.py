"""Writes files whole or not at all: whatever is killed or full, what stood there stays or the new one stands."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tunegrid.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` at the end, when the disk has it; without an end nothing changes.

    Raises:
        OSError: where the disk has no room or the folder cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may write the same; never the path itself
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write what a command was asked for; raises InputError where the place cannot be written."""
    try:
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); give another place") from None
