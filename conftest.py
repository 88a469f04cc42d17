"""Names the plugins that make the suite; nothing else lives here."""

pytest_plugins = ("fixtures.options", "fixtures.planning", "fixtures.pipeline", "fixtures.results")
