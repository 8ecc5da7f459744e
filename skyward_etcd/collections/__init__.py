"""The collections: one concept, one file. Each operation is written once and offered twice, `x` and `x_async`."""
