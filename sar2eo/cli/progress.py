"""How long work goes on, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

__all__ = ["ProgressLine", "clock"]


class ProgressLine:
    """A line that renews itself on a terminal, and comes now and then otherwise.

    Parameters
    ----------
    text : callable
        Of counts and seconds since the start to what the line says.
    """

    PLAIN_SECONDS = 30.0

    def __init__(self, text: Callable[[Mapping[str, float], float], str]) -> None:
        self.text = text
        self.start = self.told = time.monotonic()
        self.stream = sys.stderr
        self.live = self.stream.isatty()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the line away, for something else to be said."""
        if self.live:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def __call__(self, counts: Mapping[str, float]) -> None:
        """Say how far it is, unless it was said just now."""
        now = time.monotonic()
        if not self.live and now - self.told < self.PLAIN_SECONDS:
            return
        self.told = now
        text = self.text(counts, now - self.start)
        self.stream.write(f"\r\x1b[K{text}" if self.live else f"{text}\n")
        self.stream.flush()


def clock(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
