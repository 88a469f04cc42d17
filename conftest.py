"""Names the plugins that make the suite; nothing else lives here."""

STAGES = ("session", "options", "selection", "planning", "pipeline", "journal", "results", "gating")
pytest_plugins = tuple(f"fixtures.{stage}" for stage in STAGES)
