"""Attacks: on what a model knows (membership scores from its log-probabilities) and on how well it forgot."""
