"""Distillation from a teacher: run its models, add its texts to the rows, and cache its distributions on disk."""
