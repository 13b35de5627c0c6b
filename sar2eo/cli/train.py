"""``sar2eo train``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from sar2eo.cli.info import lines
from sar2eo.cli.options import data_options, debug_option, recipe_from_flags, recipe_options, settings_options
from sar2eo.cli.progress import ProgressLine, clock, say
from sar2eo.settings import MatcherRecipe, MatcherSettings, TrainRecipe, TrainSettings, VaeRecipe, VaeSettings

__all__ = [
    "LOOP_HELP",
    "RUN_HELP",
    "show_run",
    "steps_line",
    "train_all",
    "train_command",
    "train_matcher_all",
    "train_matcher_command",
    "train_told",
    "train_vae_all",
    "train_vae_command",
]

LOOP_HELP = {
    "steps": "Optimiser steps.",
    "batch": "Images per pass and device.",
    "accumulate": "Passes per step.",
    "lr": "Peak learning rate.",
    "warmup": "Steps to reach it.",
    "decay": "How it falls then; a constant one lets a run be extended.",
    "weight_decay": "Of AdamW.",
    "max_grad_norm": "Longer gradients are clipped.",
    "crop": "Side of random crops in pixels.",
    "seed": "Of order, crops, noise and timesteps.",
    "ema": "Decay of the averaged weights; 0: none.",
}
RUN_HELP = {
    "device": "cpu, cuda or cuda:N.",
    "dtype": "float32, bfloat16 or float16.",
    "threads": "Torch threads.  [default: all cores]",
    "validate_every": "Steps between validations; 0: only at the end.",
    "save_every": "Steps between states to go on from; 0: only at the end.",
    "keep": "States kept.",
}
_HELP = {
    "loss": "Likelihood, the same with the release's weight, or squared error.",
    "prediction_type": "[default: as the base says]",
    **LOOP_HELP,
    "dropout": "Share of values left out in residual blocks, against learning by heart.",
    "gain_jitter": "Largest random change of the SAR's brightness, a share.",
    "gradient_checkpointing": "Less memory, a third more time.",
    "cache_latents": "Encode fixed crops once, before training.",
    "crops": "Of each image in a cache.",
    "lora": "Train adapters of this rank instead of all weights.",
    **RUN_HELP,
}


@click.command("train")
@data_options
@click.option("--out", metavar="DIR", help="Folder of the run; the same command goes on in it.")
@click.option("--base", metavar="DIR|HUB_ID", help="A checkpoint, or a Stable Diffusion model.")
@click.option("--revision", help="Of a base on a hub.")
@click.option("--latents", metavar="DIR", help="Cache of latents to share.  [default: in the run's folder]")
@settings_options(TrainSettings, _HELP)
@recipe_options("train")
@debug_option
def train_command(recipe_file: Path | None, overrides: tuple[str, ...], dry_run: bool, **_: Any) -> None:
    """Fine-tune a model on pairs of SAR and EO images.

    \b
    sar2eo train --pairs pairs/ --out runs/first --base stable-diffusion-2-1-base/
    sar2eo translate scene.tif --out eo.tif --model runs/first/final

    The same command goes on where an interrupted one stopped. For several GPUs, begin it with
    'accelerate launch --no_python'.
    """  # noqa: D301  (click's mark for lines that stay as they are)
    recipe = recipe_from_flags(TrainRecipe, "train", recipe_file=recipe_file, overrides=overrides)
    train_all(recipe, dry_run=dry_run)


def train_all(recipe: TrainRecipe, *, dry_run: bool) -> None:
    """Do what a recipe says, or show what it would take."""
    from sar2eo.training.dry_run import plan_training
    from sar2eo.training.unet_run import run_training

    if dry_run:
        click.echo("\n".join(lines(plan_training(recipe))))
        return
    train_told(run_training, recipe)


def steps_line(counts: Mapping[str, float], _: float) -> str:
    """Say how far training is."""
    if "images_encoded" in counts:
        return f"{counts['images_encoded']:.0f} images encoded"
    left = (counts["steps_total"] - counts["steps"]) / counts["rate"]
    return (
        f"step {counts['steps']:.0f} of {counts['steps_total']:.0f}, loss {counts['loss']:.4g}, "
        f"{counts['rate']:.2f} a second, {clock(left)} left"
    )


def train_told(
    run: Callable[..., Any], recipe: Any, text: Callable[[Mapping[str, float], float], str] = steps_line
) -> None:
    """Do a training run, saying how far it is and what came of it."""
    click.get_current_context().meta["sar2eo.resume"] = ": run the same command again to go on"
    with ProgressLine(text) as progress:
        outcome = run(recipe, progress=progress)
    say(_summary(outcome, recipe.settings.steps))


def show_run(recipe: Any, prepared: Any, network: Any) -> None:
    """Say what would be trained: a recipe, its pairs and the network."""
    count = sum(p.numel() for p in network.parameters())
    facts = {"pairs": prepared.pairs.describe(), "factor": prepared.task.factor, "parameters": count}
    click.echo("\n".join(lines({**dataclasses.asdict(recipe), "would train": facts})))


def _summary(outcome: Any, steps: int) -> str:
    """Say what came of a run."""
    if outcome.begun_at == steps:
        return f"{outcome.final}: all {steps} steps were done before"
    before = f", {outcome.begun_at} were done before" if outcome.begun_at else ""
    found = "".join(f", {name} {value:.4g}" for name, value in outcome.metrics.items())
    return f"{outcome.final}: {steps} steps in {outcome.seconds:.1f} s{before}{found}"


_MATCHER_HELP = {
    "template": "Side of the templates in pixels.",
    "widths": "Channels at strides 8 and 16; 64,128 makes a small one.",
    "top_regions": "Regions of the search image that a region of the template attends to.",
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
@settings_options(MatcherSettings, _MATCHER_HELP)
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


_VAE_HELP = {
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
@settings_options(VaeSettings, _VAE_HELP)
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
