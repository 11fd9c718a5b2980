"""Measure the cost of a training step, relative to fine-tuning and a naive implementation, and as sizes grow."""
