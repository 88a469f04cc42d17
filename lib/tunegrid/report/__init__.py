"""Reports on runs: verdict, summary, tables and comparison. Needs no torch."""
