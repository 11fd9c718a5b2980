"""Benchmark of training steps: cost relative to fine-tuning and to naive implementations, and growth with size."""
