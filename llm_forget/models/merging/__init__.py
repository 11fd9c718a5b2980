"""Adapters combined with each other or with their base model."""
