"""A marker of the project's own tests."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """The marker of tests that CI leaves out."""
    config.addinivalue_line("markers", "slow: takes over five seconds; CI leaves it out by -m 'not slow'")
