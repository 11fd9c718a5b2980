"""The label of positions that no loss or metric looks at."""

IGNORE = -100
