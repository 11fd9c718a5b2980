"""The hash-chained ledger of how models were trained, evaluated and published, and of which rows were deleted."""
