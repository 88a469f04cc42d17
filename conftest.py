"""Names the plugins that make the suite; nothing else lives here."""

import sys
from importlib.metadata import Distribution
from importlib.util import find_spec

# What the plugins import. The checkout itself may be found wherever pytest comes from.
NEEDED = (
    *("pydantic", "pytest_benchmark", "pytest_timeout", "filelock"),
    *("numpy", "torch", "transformers", "peft"),
)

missing = [name for name in NEEDED if find_spec(name) is None]
if missing or not list(Distribution.discover(name="tunegrid")):
    sys.stderr.write(
        f"ERROR: {sys.executable} is not the Python that tunegrid is installed in (it lacks "
        f"{', '.join(missing or ['tunegrid'])}): activate its environment, or `pip install -e .`\n"
    )
    raise SystemExit(4)  # an exception of pytest's would come with the lines of this file

# Each imports only those before it: pytest rewrites the assertions of a plugin when it loads it.
BEFORE = ("options", "session", "selection", "progress")
RUN = ("pipeline", "record", "results", "confirm")
AFTER = ("gate", "processes", "reports")  # processes bring ray, if an option asks
pytest_plugins = tuple(f"fixtures.{stage}" for stage in (*BEFORE, *RUN, *AFTER))
