"""Versions of a model in an evidence folder: add and list them, switch between them, roll back and purge."""
