"""Sends where a training stands to whoever shows it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

SEND_SECONDS = 0.25  # between two states; a person sees no more


@dataclass(frozen=True, kw_only=True)
class ProgressState:
    """Where one training stands; `name` is the cell's, or the test's."""

    name: str
    stage: str = "load"
    done: int = 0
    total: int = 0
    detail: str = ""


class Progress:
    """Sends where one training stands, a few times a second at most."""

    def __init__(self, name: str, send: Callable[[ProgressState], None], stage: str = "train") -> None:
        """States go to `send`."""
        self._name, self._send, self._stage = name, send, stage
        self._next = time.monotonic()

    def stage(self, name: str) -> "Progress":
        """The same for another stage."""
        return Progress(self._name, self._send, name)

    def at(self, done: int, total: int, detail: str = "") -> None:
        """Report `done` of `total`; sends only when it is time."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + SEND_SECONDS
            self._send(ProgressState(name=self._name, stage=self._stage, done=done, total=total, detail=detail))
