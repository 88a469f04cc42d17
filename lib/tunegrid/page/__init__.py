"""A run as one HTML file. In: records, of a run and of older ones. Out: a page that needs no network. No torch."""
