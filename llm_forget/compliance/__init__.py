"""Evidence of deletions: requests, a ledger of the rows that each model learned or forgot, versions, certificates."""
