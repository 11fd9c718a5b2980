"""Run tasks of lm-eval (lm-evaluation-harness) on models that are already in memory."""
