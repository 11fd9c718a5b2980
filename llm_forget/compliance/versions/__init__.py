"""Keep versions of a model, switch between them, roll back and purge."""
