"""Probes: passes of a model over the rows of a split, which write records."""
