"""Text in. In: a `Cell`'s task and profile. Out: `Splits` of rows in the hub's own schema."""
