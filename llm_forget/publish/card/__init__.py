"""Write the model card of a run: its text, its YAML header and its code examples."""
