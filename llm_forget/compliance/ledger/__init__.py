"""The hash-chained ledger. It records how models were trained, evaluated and published, and which rows were deleted."""
