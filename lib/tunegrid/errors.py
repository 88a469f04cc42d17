"""The one exception a user is meant to read.

Every room may raise it; the pytest plugins print it without a traceback.
"""

from contextlib import suppress

from tunegrid.terminal import defuse


class InputError(ValueError):
    """Something the user gave cannot be used: one sentence that names the cause and the way out."""

    def __str__(self) -> str:
        """The sentence, on one line; what it quotes of a file has no effect on a terminal."""
        return defuse(super().__str__())


def first_line(error: BaseException) -> str:
    """What an error says, without its traceback; what it quotes of a file has no effect on a
    terminal.
    """
    with suppress(Exception):  # a user's own may not even have a text
        return defuse(next(filter(None, str(error).splitlines())))
    return type(error).__name__
