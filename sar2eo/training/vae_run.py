"""Training of a VAE from settings to weights: `sar2eo.train_vae` and the command of that name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sar2eo.datasets import Augmentation, PairsDataset, collate, open_dataset
from sar2eo.model.creation import load_vae
from sar2eo.settings import DataSettings, VaeRecipe, VaeSettings, checked
from sar2eo.settings.toml import changed
from sar2eo.training.loop import Outcome, Progress, create_accelerator
from sar2eo.training.setup import Preparation, checked_identity, chosen_data, open_held_out, training_batches
from sar2eo.training.task import Batch
from sar2eo.training.unet_run import parts_sha256
from sar2eo.training.vae_task import VaeTask

__all__ = ["prepare_vae_training", "run_vae_training", "train_vae"]

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
        As of `sar2eo.train`.
    settings : VaeSettings, optional
    base : str or Path, optional
        Folder of a VAE to go on from, such as the ``final`` of another run.
    **changes
        Fields of `VaeSettings`, instead of those of `settings`.

    Returns
    -------
    Path
        ``final`` in the run folder: the VAE in ``vae/``, in diffusers' layout, for
        ``sar2eo model init --vae``; and ``vae.json`` with its figures. ``best`` beside it is the same of
        the validation with the lowest score (see `sar2eo.training.vae_task.VaeTask`).

    Raises
    ------
    SettingsError, PairsError, CheckpointError, TrainingError, OutputError
        As of `sar2eo.train`.

    Examples
    --------
    >>> train_vae("pairs/", "runs/vae", latent_channels=8, crop=128)  # doctest: +SKIP
    """
    recipe = VaeRecipe(
        data=chosen_data(data),
        out=str(out),
        base=None if base is None else str(base),
        settings=changed(settings or VaeSettings(), changes),
    )
    return run_vae_training(recipe, progress=progress).final


def run_vae_training(recipe: VaeRecipe, *, progress: Progress | None = None) -> Outcome:
    """Do what a recipe says; see `train_vae`."""
    return prepare_vae_training(recipe).run(recipe.settings, recipe.out, progress)


def prepare_vae_training(recipe: VaeRecipe) -> Preparation[VaeTask]:
    """Open the data and check all that can be checked before work starts; nothing is written.

    Raises
    ------
    SettingsError, PairsError, TrainingError
        As `train_vae`.
    """
    settings = checked(recipe.settings)
    accelerator = create_accelerator(settings)
    augmentation = Augmentation(crop=settings.crop, flips=True, turns=True, seed=settings.seed)
    pairs = open_dataset(recipe.data, "train", augmentation=augmentation)
    base = None if recipe.base is None else load_vae(Path(recipe.base))
    task = VaeTask(settings, lambda: _measured(whole), base)
    whole = _whole(pairs, task.factor)
    held_out = open_held_out(recipe.data, Augmentation(centre=True), pairs)
    held_out = None if held_out is None else _whole(held_out, task.factor)
    for images in (pairs, whole, held_out):
        if images is not None:
            task.check_shape(images.shape)
    known = {} if recipe.base is None else {"base": {"sha256": parts_sha256(Path(recipe.base), ("vae",))}}
    return Preparation(
        task=task,
        accelerator=accelerator,
        pairs=pairs,
        held_out=held_out,
        batches=training_batches(pairs, settings, accelerator),
        identity=checked_identity(recipe, accelerator, pairs, **known),
    )


def _whole(pairs: PairsDataset, factor: int) -> PairsDataset:
    """Return pairs neither turned nor cropped, but for the sides that are no multiple of the factor."""
    if not any(side % factor for side in pairs.size):
        return pairs.augmented(Augmentation(centre=True))
    return pairs.augmented(Augmentation(crop=max(1, min(pairs.size) // factor) * factor, centre=True))


def _measured(pairs: PairsDataset) -> Iterator[Batch]:
    """Load pairs spread over the training split, not turned, on which latents are measured."""
    chosen = np.linspace(0, len(pairs) - 1, min(_MEASURED_PAIRS, len(pairs))).astype(int).tolist()
    for first in range(0, len(chosen), _MEASURED_BATCH):
        yield collate([pairs.sample(index, 0) for index in chosen[first : first + _MEASURED_BATCH]])
