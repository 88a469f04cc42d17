"""A line now and then while something takes long. In: how far it is. Out: lines to a writer; none under five seconds."""

import time
from collections.abc import Callable

FIRST_SECONDS = 5.0
EVERY_SECONDS = 15.0


class Progress:
    """Says where one cell stands: `bert_sa_sft  train 40/80  loss 0.310  85 samples/s  7 s left`.

    Whole lines, no carriage returns, so that a CI log reads like a terminal.
    """

    def __init__(
        self, title: str, write: Callable[[str], None], now: Callable[[], float] = time.monotonic, stage: str = "train"
    ) -> None:
        """Lines go to `write`; `now` is the clock; the stage's time counts from here."""
        self._title, self._write, self._now, self._stage = title, write, now, stage
        self._began = now()
        self._next = self._began + FIRST_SECONDS

    def stage(self, name: str) -> "Progress":
        """The same for another stage, which begins now."""
        return Progress(self._title, self._write, self._now, name)

    def at(self, done: int, total: int, detail: str = "") -> None:
        """Report `done` of `total`; writes only when it is time."""
        now = self._now()
        if now < self._next or done >= total:
            return
        self._next = now + EVERY_SECONDS
        left = (now - self._began) / done * (total - done)
        self._write(f"{self._title}  {self._stage} {done}/{total}  {detail}{'  ' if detail else ''}{left:.0f} s left")
