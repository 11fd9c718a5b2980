"""Models in other file formats."""
