"""Sends where a training stands to whoever shows it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

SEND_SECONDS = 0.25  # between two states; a person sees no more


@dataclass(frozen=True, kw_only=True)
class ProgressState:
    """Where one training stands; `name` is the cell's or the test's, `seconds_left` of the stage, at its pace so far."""

    name: str
    stage: str = "load"
    done: int = 0
    total: int = 0
    detail: str = ""
    seconds_left: float = 0.0


class Progress:
    """Sends where one training stands, a few times a second at most."""

    def __init__(self, name: str, send: Callable[[ProgressState], None], stage: str = "train") -> None:
        """States go to `send`; the stage begins now."""
        self._name, self._send, self._stage = name, send, stage
        self._began = self._next = time.monotonic()

    def stage(self, name: str) -> "Progress":
        """The same for another stage."""
        return Progress(self._name, self._send, name)

    def at(self, done: int, total: int, detail: str = "") -> None:
        """Report `done` of `total`; sends only when it is time."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + SEND_SECONDS
            left = (now - self._began) / max(done, 1) * (total - done)
            state = ProgressState(name=self._name, stage=self._stage, done=done, total=total, detail=detail, seconds_left=left)
            self._send(state)
