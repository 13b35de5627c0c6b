"""``sar2eo train``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from sar2eo.cli.describing import lines
from sar2eo.cli.flags import data_options, recipe_from_flags, recipe_options, settings_options
from sar2eo.cli.options import debug_option
from sar2eo.cli.progress import ProgressLine, clock, say
from sar2eo.recipe import TrainRecipe, TrainSettings

__all__ = ["LOOP_HELP", "RUN_HELP", "show_run", "steps_line", "train_all", "train_command", "train_told"]

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
    from sar2eo.training.fine_tuning import run_training
    from sar2eo.training.planning import plan_training

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
