"""Benchmark of training steps: cost compared with fine-tuning and with naive implementations, and growth with size."""
