"""Distillation from a teacher: its models, its texts, and its distributions, cached on disk."""
