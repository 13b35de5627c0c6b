"""What commands print: lines, tables, and how far the work is."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import click

from sar2eo.errors import OutputError


def say(text: object, *, err: bool = False) -> None:
    """Print on standard output or error, in the words of the command line; nobody reading it is no error."""
    with _ignore_closed(sys.stderr if err else sys.stdout):
        words = re.sub(r"\b(force|overwrite|restart)=True\b", r"--\1", str(text))
        click.echo(re.sub(r"\bresolution=(?=\d)", "--resolution ", words), err=err)


def show(text: object) -> None:
    """Print what a command was asked for: where it cannot be written, the command has failed."""
    try:
        with _ignore_closed(sys.stdout, BrokenPipeError):  # whoever stops reading has read enough
            click.echo(text)
    except OSError as error:
        _discard(sys.stdout)
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


@contextmanager
def _ignore_closed(stream: Any, kind: type[OSError] = OSError) -> Iterator[None]:
    """Let work of hours go on where its terminal is gone, or nobody reads the other end of a pipe."""
    try:
        yield
    except kind:
        _discard(stream)
    except ValueError:
        pass  # closed


def _discard(stream: Any) -> None:
    """Lead a stream nowhere: what is in its buffer would fail once more when the process ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def allow_resuming() -> None:
    """From now on, say after an interruption that the same command goes on."""
    click.get_current_context().meta["sar2eo.resume"] = (
        ": run the same command again to go on where it stopped"
    )


def format_table(table: Mapping[str, Any], indent: str = "") -> str:
    """Lay a nested table out as aligned lines."""
    width = max((len(key) for key in table), default=0)
    lines = [
        f"{indent}{key}\n{format_table(value, indent + '  ')}".rstrip("\n")
        if isinstance(value, dict)
        else f"{indent}{key:<{width}}  {_format_value(value)}"
        for key, value in table.items()
    ]
    return "\n".join(lines)


def _format_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_format_value, value))
    if isinstance(value, float):
        return f"{value:.10g}"
    return "-" if value is None else str(value)


class ProgressLine:
    """A line on standard error that renews itself on a terminal, and is printed now and then otherwise.

    Parameters
    ----------
    text : callable
        Makes the line of counts and the seconds since the start.
    """

    PLAIN_SECONDS = 30.0

    def __init__(self, text: Callable[[Mapping[str, float], float], str]) -> None:
        self.text = text
        self.start = self.printed = time.monotonic()
        self.stream = sys.stderr  # None where it was closed
        self.live = self.stream is not None and not self.stream.closed and self.stream.isatty()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove the line, so that something else can be printed."""
        if self.live:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        if self.stream is not None:
            with _ignore_closed(self.stream):
                self.stream.write(text)
                self.stream.flush()

    def __call__(self, counts: Mapping[str, float]) -> None:
        """Print the line, unless one was printed just now."""
        now = time.monotonic()
        if not self.live and now - self.printed < self.PLAIN_SECONDS:
            return
        self.printed = now
        text = self.text(counts, now - self.start)
        self._write(f"\r\x1b[K{text}" if self.live else f"{text}\n")


@contextmanager
def show_stages() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that prints what is being done, how many are done, and how many there are."""
    stage = ""

    def text(counts: Mapping[str, float], _: float) -> str:
        return f"{stage}: {counts['done']:.0f} of {counts['total']:.0f}"

    with ProgressLine(text) as line:

        def progress(name: str, done: int, total: int) -> None:
            nonlocal stage
            stage = name
            line({"done": done, "total": total})

        yield progress


def format_duration(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds, "0:02:00"."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
