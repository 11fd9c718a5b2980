"""The hash-chained ledger: what was trained on which rows, measured, deleted and published."""
