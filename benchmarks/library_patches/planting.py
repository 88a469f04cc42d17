"""Puts patches in place by pytest's monkeypatch, and counts how often they act: a plant that never acts proves nothing."""

import functools
from collections.abc import Callable
from multiprocessing import Value
from typing import Any


class Planting:
    """Pytest's monkeypatch with a count.

    A function that is put in place counts its calls, a plain value of a class how often it is read. A patch that changes
    nothing in most calls is put in place with `counted=False`, and calls `act` where it changes something.

    """

    def __init__(self, monkeypatch: Any) -> None:
        """Patches go by this monkeypatch, which also undoes them."""
        self._monkeypatch, self._acts = monkeypatch, Value("q", 0)

    @property
    def acts(self) -> int:
        """How often a patch acted so far, in the processes that this one forked, too."""
        return int(self._acts.value)

    def act(self) -> None:
        """Count one act."""
        with self._acts.get_lock():
            self._acts.value += 1

    def setattr(self, target: Any, name: str, value: Any, *, raising: bool = True, counted: bool = True) -> None:
        """Put a value in place of an attribute."""
        if counted:
            value = self._counted(value) if _is_code(value) else self._read(value) if isinstance(target, type) else value
        self._monkeypatch.setattr(target, name, value, raising=raising)

    def setitem(self, target: Any, name: Any, value: Any, *, counted: bool = True) -> None:
        """Put a value in place of an entry."""
        self._monkeypatch.setitem(target, name, self._counted(value) if counted and _is_code(value) else value)

    def _counted(self, value: Any) -> Any:
        if isinstance(value, staticmethod):
            return staticmethod(self._counted(value.__func__))

        @functools.wraps(value, updated=() if isinstance(value, type) else ("__dict__",))
        def counting(*args: Any, **options: Any) -> Any:
            self.act()
            return value(*args, **options)

        return counting

    def _read(self, value: Any) -> Any:
        return _Read(value, self.act)


class _Read:
    """A value of a class that counts how often it is read."""

    def __init__(self, value: Any, act: Callable[[], None]) -> None:
        self._value, self._act = value, act

    def __get__(self, instance: Any, owner: type) -> Any:
        self._act()
        return self._value


def _is_code(value: Any) -> bool:
    return callable(value) or isinstance(value, staticmethod)
