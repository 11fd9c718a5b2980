"""Adapter files: written, checked and loaded."""
