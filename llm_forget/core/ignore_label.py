"""The label of positions that all losses and metrics ignore."""

IGNORE = -100
