"""The libraries' own path beside ours: what most people run, held to our loop as its oracle, stage by stage."""
