"""Explains the suite's options when pytest has not found the suite, which defines them.

pytest imports this module wherever tunegrid is installed. The module acts only when pytest is about
to reject the command line.
"""

import pytest

OURS = (
    "--gate",
    "--gate-on",
    "--grid",
    "--cells",
    "--seeds",
    "--set",
    "--ask",
    "--resume",
    "--list-cells",
)
PATHS = ("--gate", "--grid")  # options that take a file


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(parser: pytest.Parser, args: list[str]) -> object:
    """Raises pytest.UsageError for an option of the suite that no plugin defines."""
    result = yield
    unknown = parser.parse_known_and_unknown_args(args)[1]
    for word in unknown:
        name = word.partition("=")[0]
        if name in PATHS and word == name:
            raise pytest.UsageError(
                f"write {name}=FILE: after a blank, pytest takes FILE for tests to collect"
            )
        if name in OURS:
            raise pytest.UsageError(
                f"{name} is an option of tunegrid's suite: write `tunegrid run` in place of pytest"
            )
    return result
