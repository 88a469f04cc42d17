"""Fixtures of the project's own tests."""

import pytest

from tunegrid.tests import strangers


@pytest.fixture
def attack(request, capsys):
    """Tries an answer with each seed, and says how it went: `pytest lib/tunegrid/tests -m hostile -n 0` does it at length."""

    def attack(answer, seeds):
        counts = strangers.attacked(answer, seeds)
        if request.node.get_closest_marker("hostile"):
            told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
            with capsys.disabled():
                print(f"\n{request.node.name}: seeds {seeds.start} to {seeds.stop - 1}: {told}")
        return counts

    return attack
