"""The command line: each command parses, calls one function, and tells what came of it.

Subcommands are imported when they are called, and the overview needs none of them, so ``sar2eo --help``
answers at once.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import warnings
from typing import Any

import click

from sar2eo._version import __version__
from sar2eo.cli.progress import say
from sar2eo.errors import Sar2eoError, Sar2eoWarning, one_line

__all__ = ["cli", "main"]

_COMMANDS = {
    "build-pairs": ("build_pairs", "build_pairs_command", "Cut SAR and EO scenes into paired chips."),
    "coregister": ("coregister", "coregister_command", "Move a scene to where it lies on another one."),
    "evaluate-matcher": ("evaluate", "evaluate_matcher_command", "Measure what a matcher is worth."),
    "evaluate": ("evaluate", "evaluate_command", "Measure what a model is worth on pairs."),
    "info": ("info", "info", "Show what a SAR scene is and how it will be read."),
    "match": ("match", "match_command", "Find an optical image in a SAR image."),
    "model": ("model", "model", "Make, import and describe checkpoints."),
    "run": ("run", "run", "Run a recipe, a TOML file."),
    "simulate": ("simulate", "simulate", "Simulate a pair of SAR and EO scenes with known truth."),
    "train-matcher": ("train", "train_matcher_command", "Train a matcher on pairs."),
    "train-vae": ("train", "train_vae_command", "Train a VAE on the images of pairs."),
    "train": ("train", "train_command", "Fine-tune a model on pairs of SAR and EO images."),
    "translate": ("translate", "translate_command", "Translate SAR scenes into EO images (COGs)."),
}
_INTERRUPTED = 130


class _Commands(click.Group):
    """A group whose overview does not import its commands, and that turns errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"sar2eo.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])

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
            _tell(error)
            ctx.exit(error.exit_code if isinstance(error, Sar2eoError) else 1)


def _tell(error: Exception) -> None:
    text = one_line(error)
    if not isinstance(error, Sar2eoError):
        text = f"{type(error).__name__}: {text} (unexpected; --debug shows where)"
    say(f"Error: {text}", err=True)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    # Warnings of libraries are for developers, not for users.
    if issubclass(category, Sar2eoWarning):
        say(f"Warning: {one_line(message)}", err=True)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sar2eo")
def cli() -> None:
    """Translate georeferenced SAR scenes into EO images.

    \b
    sar2eo translate scene.tif --out eo.tif --model checkpoint/
    sar2eo info scene.tif
    """  # noqa: D301  (click's mark for lines that stay as they are)


def main() -> None:
    """Run the command line as a program."""
    try:
        cli()
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            # Threads may be inside the model for minutes; the journal is safe at any moment.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)
        # Looking for garbage among all that was imported takes a quarter of a second, and all of it goes now.
        gc.freeze()
        raise
