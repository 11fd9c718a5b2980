"""Sources of rows, rows as tokens, and the order in which rows are seen."""
