"""Evaluation: suites, probes, records, metrics, and policies that decide whether a run passes."""
