"""Evaluation: suites, records, metrics, and the bounds and policies that turn numbers into answers."""
