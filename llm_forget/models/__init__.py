"""Load, adapt, save, merge and export models; only one copy of a model is in memory."""
