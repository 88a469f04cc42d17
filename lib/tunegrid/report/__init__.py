"""What is said of runs: verdict, summary, tables, comparison. Needs no torch."""
