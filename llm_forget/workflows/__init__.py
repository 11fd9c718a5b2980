"""Workflows: each module implements one action that writes a run, a model or results."""
