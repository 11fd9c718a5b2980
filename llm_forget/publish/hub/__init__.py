"""Push publications to the Hub, pull and verify them, and remove withdrawn versions."""
