"""Cost of a training step: against plain fine-tuning, against a naive implementation, and as sizes grow."""
