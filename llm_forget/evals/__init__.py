"""Evaluation: suites, probes, records and metrics, and policies that decide whether a run passes."""
