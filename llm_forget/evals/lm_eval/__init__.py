"""Run tasks of lm-eval (lm-evaluation-harness) on models in memory."""
