"""The command line: each command parses, calls one function, and reports the result.

Commands are imported when they are called, so ``sar2eo --help`` answers at once.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

import click

from sar2eo._version import __version__
from sar2eo.cli.commands import CommandGroup
from sar2eo.cli.output import say
from sar2eo.errors import Sar2eoError, Sar2eoWarning, explain, one_line

_INTERRUPTED = 130


class _CommandLine(CommandGroup):
    """The commands, with every error in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except KeyboardInterrupt:
            say(f"\ninterrupted{ctx.meta.get('sar2eo.resume', '')}", err=True)
            ctx.exit(_INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if ctx.meta.get("sar2eo.debug"):
                raise
            text = explain(error)
            if text.startswith(type(error).__name__):
                text += " (unexpected; --debug shows where)"
            say(f"Error: {text}", err=True)
            ctx.exit(error.exit_code if isinstance(error, Sar2eoError) else 1)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    # Warnings of libraries are for developers, not for users.
    if issubclass(category, Sar2eoWarning):
        say(f"Warning: {one_line(message)}", err=True)


@click.command(cls=_CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sar2eo")
def cli() -> None:
    """Translate georeferenced SAR scenes into EO images.

    \b
    sar2eo translate scene.tif --out eo.tif
    sar2eo info scene.tif
    """  # noqa: D301  (click's mark for lines that stay as they are)


def main() -> None:
    """Run the command line as a program."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(AttributeError):  # of another kind
            stream.reconfigure(errors="backslashreplace")  # names of any alphabet
    try:
        cli()
    except OSError as error:  # --help into a full disk
        say(f"Error: {explain(error)}", err=True)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            # Threads may be inside the model for minutes; the journal is safe at any moment.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)
        # Looking for garbage among all that was imported takes a quarter of a second, and all of it goes now.
        gc.freeze()
        raise
