"""``sar2eo train-vae``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from sar2eo.cli.options import debug_option
from sar2eo.cli.progress import ProgressLine, clock
from sar2eo.recipe import DataSettings, VaeRecipe, VaeSettings, apply_overrides, from_table, read_recipe
from sar2eo.recipe.training import Dataset

__all__ = ["train_vae_command", "train_vae_files"]

_TABLE = "train-vae"
_SPLITS = get_type_hints(DataSettings)["split_by"]
_DATA = ("pairs", "dataset", "root", "split_by")

_HELP = {
    "latent_channels": "Channels of the latents.",
    "widths": "Channels of each level, as 32,64,96,128; one level more doubles the factor.",
    "layers": "Residual blocks per level.",
    "images": "Which images of the pairs.",
    "l1": "Weight of the absolute error.",
    "gradient": "Weight of the error of the image's gradient.",
    "kl": "Weight of the latents' divergence from a standard normal.",
    "adversarial": "Weight of a patch discriminator; 0: none.",
    "adversarial_from": "Share of the steps after which it joins.",
    "steps": "Optimiser steps.",
    "batch": "Pairs per device and pass.",
    "accumulate": "Passes per step.",
    "lr": "Peak learning rate.",
    "warmup": "Steps to reach it.",
    "decay": "What it does then.",
    "weight_decay": "Of AdamW.",
    "max_grad_norm": "Longer gradients are cut to this.",
    "crop": "Side of random crops in pixels.",
    "seed": "Of weights, order, crops and noise.",
    "ema": "Decay of the averaged weights; 0: none.",
    "device": "cpu, cuda or cuda:N.",
    "dtype": "float32, bfloat16 or float16.",
    "threads": "Torch threads.  [default: the cores]",
    "validate_every": "Steps between validations; 0: only at the end.",
    "save_every": "Steps between states; 0: only at the end.",
    "keep": "States kept for going on.",
}
"""Help of the flag of each field of `VaeSettings`; defaults and choices are the field's own."""


def _settings_options(command: Any) -> Any:
    hints = get_type_hints(VaeSettings)
    for field in reversed(dataclasses.fields(VaeSettings)):
        name, text = field.name, _HELP[field.name]
        if field.default is not None:
            default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            text = f"{text}  [default: {default}]"
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, name, type=_kind(hints[name]), help=text)(command)
    return command


def _kind(hint: Any) -> Any:
    """Return click's type for a field's; tuples come as text with commas."""
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    if get_origin(hint) is tuple:
        return str
    return next((option for option in get_args(hint) if option is not type(None)), hint)


@click.command(_TABLE)
@click.option("--pairs", metavar="DIR", help="Folder of build-pairs.")
@click.option("--dataset", type=click.Choice(get_args(Dataset)), help="A published data set instead.")
@click.option("--root", metavar="DIR", help="Its folder.")
@click.option("--split-by", type=click.Choice(get_args(_SPLITS)), help="How that is split.")
@click.option("--out", metavar="RUN", help="Run folder; the same command goes on in it.")
@_settings_options
@click.option(
    "--recipe", metavar="FILE.toml", type=click.Path(path_type=Path), help="Read [train-vae] first."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As train-vae.settings.lr=1e-3.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@debug_option
def train_vae_command(
    *, recipe: Path | None, overrides: tuple[str, ...], dry_run: bool, **flags: Any
) -> None:
    """Train a VAE on the images of pairs, where no pretrained one can be had.

    Its latents are what a U-Net made by 'sar2eo model init --size region --vae RUN/final' is trained on.
    """
    table = apply_overrides({} if recipe is None else read_recipe(recipe), overrides)
    made = from_table(VaeRecipe, _with_flags(table.get(_TABLE, {}), flags), _TABLE)
    train_vae_files(made, dry_run=dry_run)


def train_vae_files(recipe: VaeRecipe, *, dry_run: bool) -> None:
    """Train a VAE, or go on with it, or say what would be trained."""
    from sar2eo.cli.describing import lines
    from sar2eo.training.vae_run import prepare_vae_training, run_vae_training

    if dry_run:
        prepared = prepare_vae_training(recipe)
        count = sum(p.numel() for p in prepared.task.vae.parameters())
        facts = {"pairs": prepared.pairs.describe(), "factor": prepared.task.factor, "parameters": count}
        click.echo("\n".join(lines({**dataclasses.asdict(recipe), "would train": facts})))
        return
    context = click.get_current_context()
    context.meta["sar2eo.resume"] = ": run the same command again to go on where it stopped"
    with ProgressLine(_progress) as progress:
        outcome = run_vae_training(recipe, progress=progress)
    click.echo(f"{outcome.final}: {_figures(outcome.metrics)} after {recipe.settings.steps} steps")


def _with_flags(table: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's table with the flags that were given in their places."""
    given = {name: value for name, value in flags.items() if value is not None}
    if "widths" in given:
        given["widths"] = _widths(given["widths"])
    parts: dict[str, Any] = {"out": {}, "data": {}, "settings": {}}
    for name, value in given.items():
        parts["out" if name == "out" else "data" if name in _DATA else "settings"][name] = value
    merged = {key: {**table.get(key, {}), **parts[key]} for key in ("data", "settings")}
    return {**table, **merged, **parts["out"]}


def _widths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} must be numbers, as 32,64,96,128", param_hint="--widths"
        ) from error


def _progress(counts: Mapping[str, float], seconds: float) -> str:
    done, total, rate = counts["steps"], counts["steps_total"], counts["rate"]
    left = clock((total - done) / rate) if rate else "?"
    return f"step {done:.0f} of {total:.0f}, {rate:.2f} a second, loss {counts['loss']:.4f}, {left} left"


def _figures(metrics: Mapping[str, float]) -> str:
    found = [
        f"{name.removesuffix('_psnr').upper()} {value:.2f} dB"
        for name, value in metrics.items()
        if name.endswith("_psnr")
    ]
    return ", ".join(found) or "not validated"
