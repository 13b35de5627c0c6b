"""``sar2eo train``, ``train-vae`` and ``train-matcher``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sar2eo.cli.output import ProgressLine, allow_resuming, format_duration, format_table, say, show
from sar2eo.settings import MatcherRecipe, TrainRecipe, VaeRecipe


def train(recipe: TrainRecipe, *, dry_run: bool) -> None:
    """Fine-tune a model on pairs of SAR and EO images.

    \b
    sar2eo train --pairs pairs/ --out runs/first --base stable-diffusion-2-1-base/
    sar2eo translate scene.tif --out eo.tif --model runs/first/final

    The same command goes on where an interrupted one stopped. For several GPUs, begin it with
    'accelerate launch --no_python'.
    """  # noqa: D301  (click's mark for lines that stay as they are)
    from sar2eo.training.unet_run import plan_training, run_training

    if dry_run:
        show(format_table(plan_training(recipe)))
    else:
        _run(run_training, recipe)


def train_vae(recipe: VaeRecipe, *, dry_run: bool) -> None:
    """Train a VAE on the images of pairs, where no pretrained one can be had.

    A U-Net made by 'sar2eo model init --size region --vae RUN/final' is then trained on its latents.
    """
    from sar2eo.training.vae_run import prepare_vae_training, run_vae_training

    if dry_run:
        prepared = prepare_vae_training(recipe)
        _show_plan(recipe, prepared, prepared.task.vae)
    else:
        _run(run_vae_training, recipe)


def train_matcher(recipe: MatcherRecipe, *, dry_run: bool) -> None:
    """Train a matcher on pairs, with templates cut at known places.

    \b
    sar2eo train-matcher --pairs pairs/ --vae runs/vae/final --out runs/matcher
    sar2eo match --search sar.tif --template eo.tif --method dcdm --model runs/matcher/final

    The same command goes on where an interrupted one stopped.
    """  # noqa: D301  (click's mark for lines that stay as they are)
    from sar2eo.training.matcher_run import prepare_matcher_training, run_matcher_training

    if dry_run:
        prepared = prepare_matcher_training(recipe)
        _show_plan(recipe, prepared, prepared.task.phases["denoiser"])
    else:
        _run(run_matcher_training, recipe)


def _show_plan(recipe: Any, prepared: Any, network: Any) -> None:
    count = sum(p.numel() for p in network.parameters())
    facts = {"pairs": prepared.pairs.describe(), "factor": prepared.task.factor, "parameters": count}
    show(format_table({**dataclasses.asdict(recipe), "would train": facts}))


def _run(run: Callable[..., Any], recipe: Any) -> None:
    """Train, with a line of progress, and a line of the result."""
    allow_resuming()
    with ProgressLine(_progress) as progress:
        outcome = run(recipe, progress=progress)
    steps = recipe.settings.steps
    if outcome.begun_at == steps:
        say(f"{outcome.final}: all {steps} steps were done before")
        return
    before = f", {outcome.begun_at} were done before" if outcome.begun_at else ""
    metrics = "".join(f", {name} {value:.4g}" for name, value in outcome.metrics.items())
    say(f"{outcome.final}: {steps} steps in {outcome.seconds:.1f} s{before}{metrics}")


def _progress(counts: Mapping[str, float], _: float) -> str:
    if "trials" in counts:
        return f"threshold: {counts['trials']:.0f} of {counts['trials_total']:.0f} matches"
    if "images_encoded" in counts:
        return f"{counts['images_encoded']:.0f} images encoded"
    left = (counts["steps_total"] - counts["steps"]) / counts["rate"]
    return (
        f"step {counts['steps']:.0f} of {counts['steps_total']:.0f}, loss {counts['loss']:.4g}, "
        f"{counts['rate']:.2f} a second, {format_duration(left)} left"
    )
