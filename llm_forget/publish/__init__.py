"""Publish a run: collect its files, write its model card, and push them to the Hub."""
