"""The one exception a user is meant to read. Every room may raise it; the pytest plugins print it without a traceback."""


class InputError(ValueError):
    """Something the user gave cannot be used: one sentence that names the cause and the way out."""


def first_line(error: BaseException) -> str:
    """What an error says, without its traceback."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
