"""Processes of two environments that work in turn. Each answers in JSON; whatever fails is an InputError."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.run.turn import READY


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of ours.

    Attributes:
        errors: what it says on stderr.
        failure: begins the sentence that says why it failed.
    """

    process: subprocess.Popen[str]
    errors: IO[str]
    failure: str

    def until_ready(self) -> None:
        """Return when it has done its part and waits for its turn; raises InputError where it ends before."""
        assert self.process.stdout, "a pipe"
        for line in self.process.stdout:
            if line.rstrip() == READY:
                return
        raise self._failed()

    def go(self) -> None:
        """Let it do its next part."""
        assert self.process.stdin, "a pipe"
        with suppress(BrokenPipeError):  # it has ended, which reading will tell
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def end(self) -> None:
        """End it, whatever it does."""
        assert self.process.stdin, "a pipe"
        self.process.kill()
        with suppress(BrokenPipeError):  # a turn that it did not live to read is written again when its pipe closes
            self.process.stdin.close()

    def answer(self) -> Any:
        """Let it work to its end; return the last JSON that it prints, since a library may print, too."""
        assert self.process.stdout, "a pipe"
        self.go()
        lines = self.process.stdout.read().splitlines()
        if self.process.wait() == 0:
            for line in reversed(lines):
                with suppress(ValueError):
                    return json.loads(line)
        raise self._failed()

    def _failed(self) -> InputError:
        code = self.process.wait()
        self.errors.seek(0)
        return InputError(f"{self.failure}: {[f'exit code {code}', *self.errors.read().strip().splitlines()][-1]}")


@contextmanager
def started(command: Sequence[str], failure: str) -> Iterator[Process]:
    """A process that runs a command with the code of this checkout; it ends with the context."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    own["PYTHONPATH"] = str(ROOT / "lib")  # the same suite on both sides
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    with (
        TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(command, env=own, cwd=ROOT, stderr=errors, **pipes) as process,
    ):
        ours = Process(process=process, errors=errors, failure=failure)
        try:
            yield ours
        finally:
            ours.end()


def answer_of(command: Sequence[str], failure: str) -> Any:
    """The JSON that a command prints; raises InputError where it fails."""
    with started(command, failure) as process:
        return process.answer()


def in_turn(commands: Sequence[Sequence[str]], number: int, updates: int) -> tuple[Any, Any]:
    """What two processes measured that made their updates in turn, A B B A ...; in every second round B is first.

    Each update has one of the other side right beside it, so that whatever slows the machine slows both.
    """
    order = (0, 1) if number % 2 else (1, 0)
    with ExitStack() as stack:
        processes = [stack.enter_context(started([*command, "--in-turn"], shlex.join(command))) for command in commands]
        for process in processes:
            process.until_ready()
        for update in range(updates):
            for side in reversed(order) if update % 2 else order:
                processes[side].go()
                processes[side].until_ready()
        answers = {side: processes[side].answer() for side in order}
    return answers[0], answers[1]
