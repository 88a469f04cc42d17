"""What a run leaves behind. In: plain figures. Out: a record, its verdict against bounds, a summary. Needs no torch."""
