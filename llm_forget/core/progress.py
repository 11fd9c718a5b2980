"""Progress bars only where there is something to wait for."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bar_if_long(rows: int, *, at_least: int = 2000) -> Iterator[None]:
    """Within the block `datasets` draws its bars only for ``at_least`` rows or more; below that they just flicker."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if rows >= at_least or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
