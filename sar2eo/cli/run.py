"""``sar2eo run``."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sar2eo.cli.info import lines
from sar2eo.cli.options import debug_option
from sar2eo.cli.progress import say

__all__ = ["run"]

_RUNNERS = {
    "simulate": ("simulate", "simulate_files"),
    "coregister": ("coregister", "coregister_all"),
    "build-pairs": ("build_pairs", "build_all"),
    "train-vae": ("train", "train_vae_all"),
    "model-init": ("model", "init_folder"),
    "train": ("train", "train_all"),
    "train-matcher": ("train", "train_matcher_all"),
    "translate": ("translate", "translate_all"),
    "evaluate": ("evaluate", "evaluate_all"),
    "evaluate-matcher": ("evaluate", "evaluate_matcher_all"),
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
    from sar2eo.settings import apply_overrides, read_recipe, stages_of

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
