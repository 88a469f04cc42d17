"""Names the plugins that make the suite; nothing else lives here."""

import sys
from importlib.metadata import Distribution

import pytest

if not list(Distribution.discover(name="tunegrid")):
    pytest.exit(
        f"{sys.executable} is not the Python that tunegrid is installed in: activate its environment, or `pip install -e .`",
        returncode=4,
    )

# Each imports only those before it: pytest rewrites the assertions of a plugin when it loads it.
BEFORE = ("options", "session", "interrupts", "selection", "sharding", "planning", "progress")
RUN = ("pipeline", "library_warnings", "journal", "results", "failures", "first_updates", "asked_for", "stock")
AFTER = ("gate", "answer", "junit", "isolation", "time_limit", "ray.plugin", "gpu_summary")
INSTRUMENTS = ("merges", "shifted", "forgetting")
pytest_plugins = tuple(f"fixtures.{stage}" for stage in (*BEFORE, *RUN, *AFTER, *INSTRUMENTS, "page", "report_to"))
