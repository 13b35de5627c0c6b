"""How long work goes on, on standard error."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import click

__all__ = ["ProgressLine", "clock", "say", "staged"]


def say(text: object, *, err: bool = False) -> None:
    """Say a line on standard output or error, if anybody is there to hear it."""
    with _heard_or_not(sys.stderr if err else sys.stdout):
        click.echo(text, err=err)


@contextmanager
def _heard_or_not(stream: Any) -> Iterator[None]:
    """Let work of hours go on where its terminal is gone, or nobody reads the other end of a pipe."""
    try:
        yield
    except OSError:
        # What waits in the stream's buffer would fail once more when the process ends.
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except ValueError:
        pass  # closed


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
        self.stream = sys.stderr  # None where it was closed
        self.live = self.stream is not None and not self.stream.closed and self.stream.isatty()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the line away, for something else to be said."""
        if self.live:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        if self.stream is not None:
            with _heard_or_not(self.stream):
                self.stream.write(text)
                self.stream.flush()

    def __call__(self, counts: Mapping[str, float]) -> None:
        """Say how far it is, unless it was said just now."""
        now = time.monotonic()
        if not self.live and now - self.told < self.PLAIN_SECONDS:
            return
        self.told = now
        text = self.text(counts, now - self.start)
        self._write(f"\r\x1b[K{text}" if self.live else f"{text}\n")


@contextmanager
def staged() -> Iterator[Callable[[str, int, int], None]]:
    """Give what says on a line what is being done, how many are done, and how many there are."""
    stage = ""

    def text(counts: Mapping[str, float], _: float) -> str:
        return f"{stage}: {counts['done']:.0f} of {counts['total']:.0f}"

    with ProgressLine(text) as line:

        def progress(name: str, done: int, total: int) -> None:
            nonlocal stage
            stage = name
            line({"done": done, "total": total})

        yield progress


def clock(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
