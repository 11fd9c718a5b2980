"""Load, adapt, save, merge and export models."""
