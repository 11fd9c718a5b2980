"""Push publications to the Hub, pull and verify them, and purge withdrawn versions."""
