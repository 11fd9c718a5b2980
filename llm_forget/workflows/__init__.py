"""Workflows: one module for each action that writes a run, a model or results, such as `unlearn` and `evaluate`."""
