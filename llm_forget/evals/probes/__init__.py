"""Expensive passes of a model over a split; each writes records."""
