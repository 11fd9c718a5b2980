"""Probes: passes of a model over the rows of a split. Each pass writes records, from which metrics are computed."""
