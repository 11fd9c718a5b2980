"""Tasks of lm-eval, and a runner for models in memory."""
