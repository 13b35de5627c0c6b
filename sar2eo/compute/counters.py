"""Counters of what this process has done: tiles, blocks, and seconds by kind of work.

Tasks add to them; the driver reads its own and those of the worker processes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def add(name: str, amount: float) -> None:
    """Add to a counter."""
    with _lock:
        _counts[name] += amount  # type: ignore[assignment]


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the wall seconds of a block, summed over threads, to a counter."""
    start = time.perf_counter()
    try:
        yield
    finally:
        add(name, time.perf_counter() - start)


def snapshot() -> dict[str, float]:
    """Return all counters of this process."""
    with _lock:
        return dict(_counts)


def reset() -> None:
    """Set all counters of this process to zero."""
    with _lock:
        _counts.clear()
