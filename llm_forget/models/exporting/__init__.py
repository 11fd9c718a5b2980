"""Export models to other file formats."""
