"""Sources of rows, and rows as tokens."""
