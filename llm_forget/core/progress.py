"""Hide the progress bars of short operations."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bar_if_long(rows: int, *, at_least: int = 2000) -> Iterator[None]:
    """Hide the progress bars of `datasets` within a ``with`` block if ``rows`` is below ``at_least``."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if rows >= at_least or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
