"""``sar2eo run``."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sar2eo.cli.describing import lines
from sar2eo.cli.options import debug_option
from sar2eo.cli.progress import say

__all__ = ["run"]

_RUNNERS = {
    "simulate": ("simulating", "simulate_files"),
    "coregister": ("coregistering", "coregister_all"),
    "build-pairs": ("pairing", "build_all"),
    "train-vae": ("vae_training", "train_vae_all"),
    "model-init": ("modelling", "init_folder"),
    "train": ("training", "train_all"),
    "train-matcher": ("matcher_training", "train_matcher_all"),
    "translate": ("translating", "translate_all"),
    "evaluate": ("evaluating", "evaluate_all"),
    "evaluate-matcher": ("match_evaluating", "evaluate_matcher_all"),
    "confidence": ("confidence", "confidence_all"),
}
"""Module and function that run the recipe of each stage."""


@click.command()
@click.argument("path", metavar="FILE.toml", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As translate.out=eo.tif.")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Worker processes; 0: this process.")
@click.option("--scheduler", metavar="ADDRESS", help="Join this Dask cluster.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@debug_option
def run(path: Path, overrides: tuple[str, ...], workers: int, scheduler: str | None, dry_run: bool) -> None:
    """Run a recipe, a TOML file.

    Each table holds what the command of its name takes, and they run in the order of the file. The same
    command goes on where an interrupted one stopped.
    """
    from sar2eo.recipe import apply_overrides, read_recipe, stages_of

    stages = stages_of(apply_overrides(read_recipe(path), overrides))
    common = {"workers": workers, "scheduler": scheduler, "dry_run": dry_run}
    for number, (name, recipe) in enumerate(stages, start=1):
        if len(stages) > 1:
            say(f"[{number}/{len(stages)}] {name}")
        if dry_run and len(stages) > 1:
            # What later stages take is made by those before them.
            say("\n".join(lines(dataclasses.asdict(recipe), "  ")))
            continue
        runner = _runner(name)
        takes = inspect.signature(runner).parameters
        runner(recipe, **{key: value for key, value in common.items() if key in takes})


def _runner(name: str) -> Callable[..., Any]:
    module, function = _RUNNERS[name]
    runner: Callable[..., Any] = getattr(importlib.import_module(f"sar2eo.cli.{module}"), function)
    return runner
