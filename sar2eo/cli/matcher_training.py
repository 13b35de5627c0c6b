"""``sar2eo train-matcher``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sar2eo.cli.flags import data_options, recipe_from_flags, recipe_options, settings_options
from sar2eo.cli.options import debug_option
from sar2eo.cli.training import LOOP_HELP, RUN_HELP, show_run, steps_line, train_told
from sar2eo.recipe import MatcherRecipe, MatcherSettings

__all__ = ["train_matcher_all", "train_matcher_command"]

_HELP = {
    "template": "Side of the templates in pixels.",
    "widths": "Channels at strides 8 and 16; 64,128 makes a small one.",
    "top_regions": "Regions of the search image that a region of the template attends to.",
    "dense": "Attend to all of them, without gates: an ablation.",
    "uncalibrated": "Leave the attention calibration block out: an ablation.",
    "ssim": "Weight of 1 - SSIM of the translated latents.",
    "position": "Weight of the attention's position term.",
    "similarity": "Weight of the cross-entropy on the similarity map.",
    "truth": "Share of templates that are noised from the truth, not as in sampling.",
    "negatives": "Share of a batch that is shown again with another place's search image.",
    "false_accepts": "Share of wrong matches that may be accepted.",
    "trials": "Matches of either kind that the threshold is measured on.",
    **LOOP_HELP,
    "crop": "Side of the search images in pixels.",
    **RUN_HELP,
}


@click.command("train-matcher")
@data_options
@click.option("--out", metavar="DIR", help="Folder of the run; the same command goes on in it.")
@click.option("--vae", metavar="DIR", help="Folder with a trained VAE.  [default: the package's own]")
@click.option("--base", metavar="DIR", help="A matcher to go on from, with its own architecture and VAE.")
@settings_options(MatcherSettings, _HELP)
@recipe_options("train-matcher")
@debug_option
def train_matcher_command(
    recipe_file: Path | None, overrides: tuple[str, ...], dry_run: bool, **_: Any
) -> None:
    """Train a matcher on pairs, with templates cut at known places.

    \b
    sar2eo train-matcher --pairs pairs/ --vae runs/vae/final --out runs/matcher
    sar2eo match --search sar.tif --template eo.tif --method dcdm --model runs/matcher/final

    The same command goes on where an interrupted one stopped.
    """  # noqa: D301  (click's mark for lines that stay as they are)
    recipe = recipe_from_flags(MatcherRecipe, "train-matcher", recipe_file=recipe_file, overrides=overrides)
    train_matcher_all(recipe, dry_run=dry_run)


def train_matcher_all(recipe: MatcherRecipe, *, dry_run: bool) -> None:
    """Train a matcher, or go on with it, or say what would be trained."""
    from sar2eo.training.matcher_run import prepare_matcher_training, run_matcher_training

    if dry_run:
        prepared = prepare_matcher_training(recipe)
        show_run(recipe, prepared, prepared.task.phases["denoiser"])
    else:
        train_told(run_matcher_training, recipe, _text)


def _text(counts: Mapping[str, float], seconds: float) -> str:
    """Say how far training, or the measuring of the threshold, is."""
    if "trials" in counts:
        return f"threshold: {counts['trials']:.0f} of {counts['trials_total']:.0f} matches"
    return steps_line(counts, seconds)
