"""Two runs judged: by numerics, quality, memory, speed and instruments. Needs no torch."""
