"""Fine-tuning of a U-Net from settings to a checkpoint: `sar2eo.train` and the command of that name."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from sar2eo.datasets import Augmentation, PairsDataset, build_latent_cache, open_dataset
from sar2eo.errors import TrainingWarning
from sar2eo.model.card import TranslatorCard
from sar2eo.model.checkpoint import Checkpoint, load_checkpoint
from sar2eo.model.creation import adapt_base, find_base
from sar2eo.model.folder import ModelFolder, hash_files
from sar2eo.model.network import encode_images
from sar2eo.settings import DataSettings, TrainRecipe, TrainSettings, checked
from sar2eo.settings.toml import changed
from sar2eo.training.loop import Outcome, Progress, create_accelerator
from sar2eo.training.setup import Preparation, checked_identity, chosen_data, open_held_out, training_batches
from sar2eo.training.task import Batch
from sar2eo.training.unet_task import UNetTask

__all__ = ["Base", "open_base", "parts_sha256", "prepare_training", "run_training", "train"]

_ENCODED_AT_ONCE = 8


def train(
    data: DataSettings | str | Path,
    base: str | Path,
    out: str | Path,
    settings: TrainSettings | None = None,
    *,
    revision: str | None = None,
    latents: str | Path | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Path:
    """Fine-tune a U-Net on pairs (C-DiffSET, section 3.3), or go on with it.

    Parameters
    ----------
    data : DataSettings, str or Path
        Which pairs; a path is a folder of `sar2eo.build_pairs`.
    base : str or Path
        Checkpoint folder, or a Stable Diffusion folder or hub id, which is adapted. For the two stages
        of the authors' release: first with ``loss="l2"``, then on that run's final checkpoint.
    out : str or Path
        Run folder (see `sar2eo.training.run_folder`). The same call goes on where an interrupted one stopped,
        on a CPU bit for bit.
    settings : TrainSettings, optional
    revision : str, optional
        Of a hub id.
    latents : str or Path, optional
        Folder of the cache of latents, for runs on the same crops and VAE to share; by default in the run
        folder.
    progress : callable, optional
        Called after every step with ``steps``, ``steps_total``, ``rate`` (a second) and ``loss``.
    **changes
        Fields of `TrainSettings`, instead of those of `settings`.

    Returns
    -------
    Path
        The final checkpoint, for `sar2eo.translate`.

    Raises
    ------
    SettingsError, PairsError, CheckpointError
        For what cannot be, before anything is done.
    TrainingError
        If the folder holds another run, or a loss is not finite.
    OutputError
        If something cannot be written; the last state is kept.

    Examples
    --------
    >>> train("pairs/", "stable-diffusion-2-1-base/", "runs/first", steps=20_000)  # doctest: +SKIP
    """
    recipe = TrainRecipe(
        data=chosen_data(data),
        base=str(base),
        out=str(out),
        revision=revision,
        latents=None if latents is None else str(latents),
        settings=changed(settings or TrainSettings(), changes),
    )
    return run_training(recipe, progress=progress).final


def run_training(recipe: TrainRecipe, *, progress: Progress | None = None) -> Outcome:
    """Do what a recipe says; see `train`."""
    return prepare_training(recipe, progress=progress).run(recipe.settings, recipe.out, progress)


def prepare_training(recipe: TrainRecipe, *, progress: Progress | None = None) -> Preparation[UNetTask]:
    """Open data and base, and check all that can be checked before work starts.

    Nothing is written: latents are cached when the loop asks for the first batch.

    Raises
    ------
    SettingsError, PairsError, CheckpointError, TrainingError
        As `train`.
    """
    settings = checked(recipe.settings)
    accelerator = create_accelerator(settings)
    pairs = open_dataset(recipe.data, "train", augmentation=_augmentation(settings))
    held_out = open_held_out(recipe.data, Augmentation(crop=settings.crop, centre=True), pairs)
    base = open_base(recipe.base, recipe.revision)
    identity = checked_identity(recipe, accelerator, pairs, base={"sha256": base.sha256})
    checkpoint = base.load()
    card = _card(recipe, checkpoint, pairs)
    task = UNetTask(checkpoint, card, settings, accelerator.device)
    for images in (pairs, held_out):
        if images is not None:
            task.check_shape(images.shape)
    return Preparation(
        task=task,
        accelerator=accelerator,
        pairs=pairs,
        held_out=held_out,
        batches=_batches(recipe, pairs, task, accelerator, base.vae_sha256(), progress),
        identity=identity,
    )


def _augmentation(settings: TrainSettings) -> Augmentation:
    """Return the paper's: random crops, flips and quarter turns (section 4.2)."""
    return Augmentation(
        crop=settings.crop,
        flips=True,
        turns=True,
        gain=settings.gain_jitter,
        seed=settings.seed,
        # Of a cache, whose pairs are opened for their shape, it has only to be possible.
        fixed=settings.crops if settings.cache_latents else None,
    )


def _batches(
    recipe: TrainRecipe,
    pairs: PairsDataset,
    task: UNetTask,
    accelerator: Accelerator,
    vae_sha256: str,
    progress: Progress | None,
) -> Callable[[int, int], Iterable[Batch]]:
    """Return where the loop takes batches from: pairs, or a cache of their latents in the run's folder."""
    settings = recipe.settings
    if not settings.cache_latents:
        return training_batches(pairs, settings, accelerator)

    encoded = 0

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        nonlocal encoded
        encoded += len(images)
        if progress is not None:
            progress({"images_encoded": encoded})
        with accelerator.autocast():  # in half precision its error is far below the noise that is added
            return encode_images(task.vae, images.to(accelerator.device))

    def cached(start: int, stop: int) -> Iterable[Batch]:
        with accelerator.main_process_first():
            latents = build_latent_cache(
                pairs,
                encode,
                Path(recipe.latents or Path(recipe.out) / "latents"),
                crops=settings.crops,
                crop=settings.crop,
                factor=task.factor,
                seed=settings.seed,
                gain=settings.gain_jitter,
                model_sha256=vae_sha256,
                batch=_ENCODED_AT_ONCE,
            )
        return training_batches(latents, settings, accelerator)(start, stop)

    return cached


def _card(recipe: TrainRecipe, checkpoint: Checkpoint, pairs: PairsDataset) -> TranslatorCard:
    """Fill the card of the result: what it was trained on, and how the base wants to be sampled."""
    base = checkpoint.card
    if base.training_data != TranslatorCard.training_data and base.channels != pairs.channels:
        warnings.warn(
            f"the base was trained on {_told(base.channels)}, and goes on with {_told(pairs.channels)}: "
            "pairs of its own polarisations would use what it knows",
            TrainingWarning,
            stacklevel=2,
        )
    return dataclasses.replace(
        checkpoint.card,
        name=Path(recipe.out).resolve().name,
        quantity=pairs.quantity,
        calibration=pairs.calibration,
        polarisations=pairs.polarisations,
        channels=pairs.channels,
        gsd_m=pairs.gsd_m,
        scaling=pairs.scaling,
        temperature=1.0,  # that of the base was chosen for the base
        prediction_type=recipe.settings.prediction_type or checkpoint.card.prediction_type,
        training_data=pairs.describe(),
        metrics={},
    )


def _told(channels: Sequence[Sequence[str]]) -> str:
    return ", ".join("+".join(names) for names in channels)


_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")


class Base(NamedTuple):
    """A base found and not yet loaded."""

    folder: Path
    sha256: str

    def vae_sha256(self) -> str:
        """Hash the VAE alone: what latents come from."""
        return parts_sha256(self.folder, ("vae",))

    def load(self) -> Checkpoint:
        """Load it in float32, adapting what is not yet a C-DiffSET network.

        Raises
        ------
        CheckpointError
            If it is not what it should be.
        """
        if (self.folder / TranslatorCard.file_name).is_file():
            return load_checkpoint(self.folder)
        return adapt_base(self.folder)


def open_base(base: str | Path, revision: str | None = None) -> Base:
    """Find a base, fetching it if it is a hub id, and hash it.

    Raises
    ------
    CheckpointError
        If it cannot be found, or is incomplete.
    """
    folder = find_base(base, revision)
    if (folder / TranslatorCard.file_name).is_file():
        return Base(folder, ModelFolder(folder, TranslatorCard).sha256())
    return Base(folder, parts_sha256(folder, _PARTS))


def parts_sha256(folder: Path, parts: Iterable[str]) -> str:
    """Hash the files of some parts of a checkpoint, such as its ``vae/``."""
    found = (path for part in parts for path in (folder / part).glob("*") if path.is_file())
    return hash_files(folder, sorted(found))
