"""Attacks that try to recover forgotten rows from an unlearned model, or to infer which rows it has forgotten."""
