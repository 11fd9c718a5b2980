"""Evidence of deletions: requests, a ledger of what was trained on which rows, versions of models, and certificates."""
