"""The label of positions that no loss or metric looks at."""

from __future__ import annotations

IGNORE = -100
