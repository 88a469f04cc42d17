"""Names the plugins that make the suite; nothing else lives here."""

pytest_plugins = tuple(f"fixtures.{stage}" for stage in ("options", "planning", "pipeline", "journal", "results", "gating"))
