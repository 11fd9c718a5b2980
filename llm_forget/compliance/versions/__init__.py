"""Versions of a model: kept, switched, rolled back, purged."""
