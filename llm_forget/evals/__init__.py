"""Evaluation: suites, records, metrics, and the bounds and policies that decide whether the numbers are acceptable."""
