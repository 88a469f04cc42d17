"""A cell at work: build, train, evaluate, measure."""
