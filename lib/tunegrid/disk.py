"""Writes files whole or not at all: whatever is killed or full, what stood there stays or the new one stands."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
