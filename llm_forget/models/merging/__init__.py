"""Combine adapters with each other or with their base model."""
