"""Benchmark of training steps: their cost next to fine-tuning and naive implementations, and its growth with size."""
