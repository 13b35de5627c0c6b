"""Training of a VAE from settings to weights: `sar2eo.train_vae` and the command of that name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sar2eo.datasets import Augmentation, PairsDataset, collate, open_dataset
from sar2eo.model.creation import load_vae
from sar2eo.settings import DataSettings, VaeRecipe, VaeSettings
from sar2eo.training.loop import Outcome, Progress, create_accelerator
from sar2eo.training.setup import Preparation, build_recipe, check_identity, open_held_out, training_batches
from sar2eo.training.task import Batch
from sar2eo.training.unet_run import hash_parts
from sar2eo.training.vae_task import VaeTask

_MEASURED_PAIRS, _MEASURED_BATCH = 128, 4


def train_vae(
    data: DataSettings | str | Path,
    out: str | Path,
    settings: VaeSettings | None = None,
    *,
    base: str | Path | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Path:
    """Train a VAE on the EO and SAR images of pairs, for when no pretrained one can be had.

    Parameters
    ----------
    data, out, progress
        As in `sar2eo.train`, whose errors it raises, too.
    settings : VaeSettings, optional
        Architecture, weights of the losses, steps and the like; by default `VaeSettings()`.
    base : str or Path, optional
        Folder of a VAE to continue from, such as the ``final`` of another run.
    **changes
        Fields of `VaeSettings` that replace those of `settings`.

    Returns
    -------
    Path
        ``final`` in the run folder: the VAE in ``vae/``, in diffusers' layout, for
        ``sar2eo model init --vae``; and ``vae.json`` with its metrics. ``best`` beside it holds the VAE of
        the validation with the lowest score (see `sar2eo.training.vae_task.VaeTask`).

    Examples
    --------
    >>> train_vae("pairs/", "runs/vae", latent_channels=8, crop=128)  # doctest: +SKIP
    """
    recipe = build_recipe(VaeRecipe, data, settings or VaeSettings(), changes, out=out, base=base)
    return run_vae_training(recipe, progress=progress).final


def run_vae_training(recipe: VaeRecipe, *, progress: Progress | None = None) -> Outcome:
    """Run the training of a recipe; see `train_vae`."""
    return prepare_vae_training(recipe).run(recipe.settings, recipe.out, progress)


def prepare_vae_training(recipe: VaeRecipe) -> Preparation[VaeTask]:
    """Open pairs and base, and check them against settings and run folder; nothing is written."""
    settings = recipe.settings
    accelerator = create_accelerator(settings)
    augmentation = Augmentation(crop=settings.crop, flips=True, turns=True, seed=settings.seed)
    pairs = open_dataset(recipe.data, "train", augmentation=augmentation)
    base = None if recipe.base is None else load_vae(Path(recipe.base))
    task = VaeTask(settings, lambda: _load_measured(whole), base)
    whole = _centre_crop(pairs, task.factor)
    held_out = open_held_out(recipe.data, Augmentation(centre=True), pairs)
    held_out = None if held_out is None else _centre_crop(held_out, task.factor)
    for images in (pairs, whole, held_out):
        if images is not None:
            task.check_shape(images.shape)
    known = {} if recipe.base is None else {"base": {"sha256": hash_parts(Path(recipe.base), ("vae",))}}
    return Preparation(
        task=task,
        accelerator=accelerator,
        pairs=pairs,
        held_out=held_out,
        batches=training_batches(pairs, settings, accelerator),
        identity=check_identity(recipe, accelerator, pairs, **known),
    )


def _centre_crop(pairs: PairsDataset, factor: int) -> PairsDataset:
    """Return whole pairs without augmentation, cropped only if a side is no multiple of the VAE's factor."""
    if not any(side % factor for side in pairs.size):
        return pairs.with_augmentation(Augmentation(centre=True))
    return pairs.with_augmentation(Augmentation(crop=max(1, min(pairs.size) // factor) * factor, centre=True))


def _load_measured(pairs: PairsDataset) -> Iterator[Batch]:
    """Load up to 128 pairs, spread over the training split, to compute statistics of the latents."""
    chosen = np.linspace(0, len(pairs) - 1, min(_MEASURED_PAIRS, len(pairs))).astype(int).tolist()
    for first in range(0, len(chosen), _MEASURED_BATCH):
        yield collate([pairs.sample(index, 0) for index in chosen[first : first + _MEASURED_BATCH]])
