"""Attacks that try to recover unlearned rows; membership inference is in `llm_forget.evals.membership`."""
