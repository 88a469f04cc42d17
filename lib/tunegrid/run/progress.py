"""Tells a listener where a training stands, or writes it to a log."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

SEND_SECONDS = 0.25  # between two states that are sent; a person sees no more
FIRST_SECONDS = 5.0  # of a stage, before it has a line in a log
EVERY_SECONDS = 15.0  # between its lines


@dataclass(frozen=True, kw_only=True)
class ProgressState:
    """Where one training stands.

    Attributes:
        name: the cell, or the test.
        seconds: what the stage has taken so far.
    """

    name: str
    stage: str = "load"
    done: int = 0
    total: int = 0
    detail: str = ""
    seconds: float = 0.0

    @property
    def line(self) -> str:
        """As a log shows it: `bert_sa_sft  train 40/80  loss 0.310  85 samples/s  7 s left`."""
        left = self.seconds / self.done * (self.total - self.done)
        return (
            f"{self.name}  {self.stage} {self.done}/{self.total}  {self.detail}{'  ' if self.detail else ''}{left:.0f} s left"
        )


class Progress:
    """Sends where one training stands, a few times a second at most."""

    def __init__(
        self, name: str, send: Callable[[ProgressState], None], now: Callable[[], float] = time.monotonic, stage: str = "train"
    ) -> None:
        """States go to `send`; `now` is the clock; the stage's time counts from here."""
        self._name, self._send, self._now, self._stage = name, send, now, stage
        self._began = now()
        self._next = self._began

    def stage(self, name: str) -> "Progress":
        """The same for another stage, which begins now."""
        return Progress(self._name, self._send, self._now, name)

    def at(self, done: int, total: int, detail: str = "") -> None:
        """Report `done` of `total`; sends only when it is time."""
        now = self._now()
        if now < self._next:
            return
        self._next = now + SEND_SECONDS
        seconds = now - self._began
        self._send(ProgressState(name=self._name, stage=self._stage, done=done, total=total, detail=detail, seconds=seconds))


class LogThrottle:
    """When a log says where trainings stand: no line under five seconds, then one every fifteen."""

    def __init__(self) -> None:
        """No line was written yet."""
        self._next: dict[tuple[str, str], float] = {}

    def due(self, states: Iterable[ProgressState]) -> list[str]:
        """The lines that it is time for."""
        return [state.line for state in states if self._is_due(state)]

    def _is_due(self, state: ProgressState) -> bool:
        key = (state.name, state.stage)
        if state.seconds < self._next.get(key, 0.0) - EVERY_SECONDS:  # the stage began anew, as after another epoch
            del self._next[key]
        if not 0 < state.done < state.total or state.seconds < self._next.get(key, FIRST_SECONDS):
            return False
        self._next[key] = state.seconds + EVERY_SECONDS
        return True
