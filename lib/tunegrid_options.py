"""Says how the suite's options are written if pytest has not found the suite, which loads them.

pytest imports this wherever tunegrid is installed. It speaks only before pytest would refuse the
command line.
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
PATHS = ("--gate", "--grid")  # options whose value is a file


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(parser: pytest.Parser, args: list[str]) -> object:
    """Raises pytest.UsageError for an option of the suite that no plugin knows."""
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
