"""A cell at work: build, train, evaluate, measure. In: a `Cell` and its `Splits`. Out: what `tunegrid.results` records."""
