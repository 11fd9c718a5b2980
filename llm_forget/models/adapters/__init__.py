"""Write, check and load adapter files."""
