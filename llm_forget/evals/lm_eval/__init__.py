"""Tasks of lm-eval, and lm-eval as a probe."""
