"""``sar2eo train-vae``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sar2eo.cli.flags import data_options, recipe_from_flags, recipe_options, settings_options
from sar2eo.cli.options import debug_option
from sar2eo.cli.training import LOOP_HELP, RUN_HELP, show_run, train_told
from sar2eo.recipe import VaeRecipe, VaeSettings

__all__ = ["train_vae_all", "train_vae_command"]

_HELP = {
    "architecture": "Stable Diffusion's (kl), or a deep-compression autoencoder (dc), which learns faster.",
    "latent_channels": "Channels of the latents.",
    "widths": "Channels of each level; one level more doubles the factor.",
    "layers": "Residual blocks per level.",
    "images": "Which images of the pairs.",
    "sar": "Share of the gradient that SAR images get, where EO images get 1.",
    "l1": "Weight of the absolute error.",
    "l2": "Weight of the squared error.",
    "gradient": "Weight of the error of the image's gradient.",
    "texture": "Weight of the error of how much detail there is.",
    "kl": "Weight of the latents' divergence from a standard normal.",
    "adversarial": "Weight of a patch discriminator; 0: none.",
    "adversarial_from": "Share of the steps after which it joins.",
    "decoder_only": "Of a base: keep the encoder, and with it the latents.",
    **LOOP_HELP,
    **RUN_HELP,
}


@click.command("train-vae")
@data_options
@click.option("--out", metavar="DIR", help="Folder of the run; the same command goes on in it.")
@click.option("--base", metavar="FOLDER", help="A VAE to go on from, with its own architecture.")
@settings_options(VaeSettings, _HELP)
@recipe_options("train-vae")
@debug_option
def train_vae_command(recipe_file: Path | None, overrides: tuple[str, ...], dry_run: bool, **_: Any) -> None:
    """Train a VAE on the images of pairs, where no pretrained one can be had.

    Its latents are what a U-Net made by 'sar2eo model init --size region --vae RUN/final' is trained on.
    """
    recipe = recipe_from_flags(VaeRecipe, "train-vae", recipe_file=recipe_file, overrides=overrides)
    train_vae_all(recipe, dry_run=dry_run)


def train_vae_all(recipe: VaeRecipe, *, dry_run: bool) -> None:
    """Train a VAE, or go on with it, or say what would be trained."""
    from sar2eo.training.vae_run import prepare_vae_training, run_vae_training

    if dry_run:
        prepared = prepare_vae_training(recipe)
        show_run(recipe, prepared, prepared.task.vae)
    else:
        train_told(run_vae_training, recipe)
