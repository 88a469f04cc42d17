"""Names the plugins that make the suite; nothing else lives here."""

# Each imports only those before it: pytest rewrites the assertions of a plugin when it loads it.
BEFORE = ("options", "session", "selection", "sharding", "planning", "progress")
RUN = ("pipeline", "journal", "results")
AFTER = ("gate", "answer", "isolation", "ray.plugin", "gpu_summary", "page")
pytest_plugins = tuple(f"fixtures.{stage}" for stage in (*BEFORE, *RUN, *AFTER))
