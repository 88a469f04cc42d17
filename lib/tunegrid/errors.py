"""The one exception that users are meant to read.

Any package may raise it; the command line and the pytest plugins print it without a traceback.
"""

from contextlib import suppress

from tunegrid.terminal import defuse
from tunegrid.words import shorten

LONGEST_LINE = 500  # characters; a message may quote a whole file


class InputError(ValueError):
    """Unusable input from the user; one sentence states the cause and, usually, the remedy."""

    def __str__(self) -> str:
        """The message on one line; text quoted from a file cannot affect the terminal."""
        return defuse(super().__str__())


def first_line(error: BaseException) -> str:
    """The first nonempty line of an error's message, shortened and safe to print on a terminal.

    If the message is empty or unavailable, returns the name of the error's type.
    """
    with suppress(Exception):  # str() of a user's own exception may fail
        line = next(filter(None, str(error).splitlines()))
        return shorten(defuse(line), LONGEST_LINE)
    return type(error).__name__
