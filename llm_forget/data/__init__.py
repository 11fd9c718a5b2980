"""Read rows from their sources, check them, and turn them into tokens."""
