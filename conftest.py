"""Names the plugins that make the suite; nothing else lives here."""

# Each imports only those before it: pytest rewrites the assertions of a plugin when it loads it.
STAGES = """
options session selection planning pipeline journal results gating isolation gpu_summary page
""".split()
pytest_plugins = tuple(f"fixtures.{stage}" for stage in STAGES)
