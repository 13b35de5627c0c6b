"""Fine-tuning of a U-Net from settings to a checkpoint: `sar2eo.train`, ``sar2eo train``, its dry run."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from sar2eo.compute.dask_run import peak_rss_bytes
from sar2eo.datasets import Augmentation, PairsDataset, build_latent_cache, collate, open_dataset
from sar2eo.errors import SettingsError, TrainingWarning
from sar2eo.model.card import TranslatorCard
from sar2eo.model.checkpoint import Checkpoint, load_checkpoint
from sar2eo.model.creation import adapt_base, find_base
from sar2eo.model.folder import ModelFolder, hash_files
from sar2eo.model.network import encode_images
from sar2eo.settings import DataSettings, TrainRecipe, TrainSettings
from sar2eo.training.loop import Outcome, Progress, create_accelerator, describe_environment
from sar2eo.training.phase import Phase
from sar2eo.training.setup import Preparation, build_recipe, check_identity, open_held_out, training_batches
from sar2eo.training.task import Batch
from sar2eo.training.unet_task import UNetTask

_ENCODED_AT_ONCE = 8
_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")


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
    """Fine-tune a U-Net on pairs (C-DiffSET, section 3.3), or resume an interrupted run.

    Parameters
    ----------
    data : DataSettings, str or Path
        The pairs; a path is a folder of `sar2eo.build_pairs`.
    base : str or Path
        Checkpoint folder, or a Stable Diffusion folder or hub id, which is adapted. For the two stages
        of the authors' release: first with ``loss="l2"``, then on that run's final checkpoint.
    out : str or Path
        Run folder (see `sar2eo.training.run_folder`). The same call resumes an interrupted run, on a CPU bit
        for bit.
    settings : TrainSettings, optional
        Loss, steps, learning rate and the like; by default `TrainSettings()`.
    revision : str, optional
        Branch, tag or commit of a hub id.
    latents : str or Path, optional
        Folder of the cache of latents, which runs with the same crops and VAE can share; by default in the
        run folder.
    progress : callable, optional
        Called after every step with ``steps``, ``steps_total``, ``rate`` (steps per second) and ``loss``.
    **changes
        Fields of `TrainSettings` that replace those of `settings`.

    Returns
    -------
    Path
        The final checkpoint, for `sar2eo.translate`.

    Raises
    ------
    SettingsError, PairsError, CheckpointError
        For invalid settings, pairs or base, before training starts.
    TrainingError
        If the folder holds another run, or a loss is not finite.
    OutputError
        If a file cannot be written; the last state is kept.

    Examples
    --------
    >>> train("pairs/", "stable-diffusion-2-1-base/", "runs/first", steps=20_000)  # doctest: +SKIP
    """
    paths = {"base": base, "out": out, "revision": revision, "latents": latents}
    recipe = build_recipe(TrainRecipe, data, settings or TrainSettings(), changes, **paths)
    return run_training(recipe, progress=progress).final


def run_training(recipe: TrainRecipe, *, progress: Progress | None = None) -> Outcome:
    """Run the training of a recipe; see `train`."""
    return prepare_training(recipe, progress=progress).run(recipe.settings, recipe.out, progress)


def prepare_training(recipe: TrainRecipe, *, progress: Progress | None = None) -> Preparation[UNetTask]:
    """Open pairs and base, and check them against settings and run folder; errors as of `train`.

    Nothing is written: latents are cached when the loop asks for the first batch.
    """
    settings = recipe.settings
    accelerator = create_accelerator(settings)
    pairs = open_dataset(recipe.data, "train", augmentation=_create_augmentation(settings))
    held_out = open_held_out(recipe.data, Augmentation(crop=settings.crop, centre=True), pairs)
    base = find_base(recipe.base, recipe.revision)
    adapted = (base / TranslatorCard.file_name).is_file()
    sha256 = ModelFolder(base, TranslatorCard).sha256() if adapted else hash_parts(base, _PARTS)
    identity = check_identity(recipe, accelerator, pairs, base={"sha256": sha256})
    checkpoint = load_checkpoint(base) if adapted else adapt_base(base)
    if checkpoint.encoder is not None:
        if settings.cache_latents:
            raise SettingsError(
                "cache_latents: latents of an encoder are not cached; leave it out with this base"
            )
        pairs = pairs.with_channels_of(checkpoint.card)
        held_out = None if held_out is None else held_out.with_channels_of(checkpoint.card)
    card = _create_card(recipe, checkpoint, pairs)
    task = UNetTask(checkpoint, card, settings, accelerator.device)
    for images in (pairs, held_out):
        if images is not None:
            task.check_shape(images.shape)
    return Preparation(
        task=task,
        accelerator=accelerator,
        pairs=pairs,
        held_out=held_out,
        batches=_create_loader(recipe, pairs, task, accelerator, hash_parts(base, ("vae",)), progress),
        identity=identity,
    )


def _create_augmentation(settings: TrainSettings) -> Augmentation:
    """Return the paper's augmentation: random crops, flips and quarter turns (section 4.2)."""
    return Augmentation(
        crop=settings.crop,
        flips=True,
        turns=True,
        gain=settings.gain_jitter,
        seed=settings.seed,
        # The cache of latents has its own list of crops; here the number only has to be valid.
        fixed=settings.crops if settings.cache_latents else None,
    )


def _create_loader(
    recipe: TrainRecipe,
    pairs: PairsDataset,
    task: UNetTask,
    accelerator: Accelerator,
    vae_sha256: str,
    progress: Progress | None,
) -> Callable[[int, int], Iterable[Batch]]:
    """Return the batch loader of the loop: of the pairs, or of a cache of their latents."""
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
        with accelerator.autocast():  # half precision: its error is far below the noise that training adds
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


def _create_card(recipe: TrainRecipe, checkpoint: Checkpoint, pairs: PairsDataset) -> TranslatorCard:
    """Create the card of the result: radiometry of the pairs, sampling of the base."""
    base = checkpoint.card
    own = {name: getattr(pairs, name) for name in ("polarisations", "channels", "scaling")}
    if base.encoder:
        own = {}  # it takes what is there of its polarisations
    elif base.training_data != TranslatorCard.training_data and base.channels != pairs.channels:
        warnings.warn(
            f"the base was trained on {_format_channels(base.channels)}, these pairs have "
            f"{_format_channels(pairs.channels)}: pairs with the base's polarisations would suit it better",
            TrainingWarning,
            stacklevel=2,
        )
    return dataclasses.replace(
        checkpoint.card,
        name=Path(recipe.out).resolve().name,
        quantity=pairs.quantity,
        calibration=pairs.calibration,
        gsd_m=pairs.gsd_m,
        temperature=1.0,  # the base's temperature was fitted to the base's variance
        prediction_type=recipe.settings.prediction_type or checkpoint.card.prediction_type,
        training_data=pairs.describe(),
        metrics={},
        **own,
    )


def _format_channels(channels: Sequence[Sequence[str]]) -> str:
    return ", ".join("+".join(names) for names in channels)


def hash_parts(folder: Path, parts: Iterable[str]) -> str:
    """Hash the files in some folders of a checkpoint, such as its ``vae/``."""
    found = (path for part in parts for path in (folder / part).glob("*") if path.is_file())
    return hash_files(folder, sorted(found))


_STATE_BYTES = 16  # of a trained weight: weight, average, two moments
_TIMED_STEPS = 2


def plan_training(recipe: TrainRecipe) -> dict[str, Any]:
    """Estimate what a training run will take (``--dry-run``); nothing is written.

    Two steps are timed on one batch and thrown away.

    Returns
    -------
    dict
        Nested, for printing: data, model, steps; memory and disk in GB; seconds a step.
    """
    prepared = prepare_training(recipe)
    settings, unet = recipe.settings, prepared.task.phases["unet"]
    total = sum(p.numel() for p in unet.parameters())
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    images = settings.steps * settings.batch * settings.accumulate * prepared.accelerator.num_processes
    seconds = _seconds_per_step(prepared, recipe)
    disk = _STATE_BYTES * trained * (settings.keep + 1) + 2 * 4 * total
    return {
        "data": {
            "pairs": len(prepared.pairs),
            "of": prepared.pairs.describe(),
            "crop": list(prepared.pairs.shape),
            "validation": "yes" if prepared.held_out else "none",
        },
        "model": {
            "base": recipe.base,
            "parameters": total,
            "trained": trained,
            "predicts": prepared.task.card.prediction_type,
            "loss": settings.loss,
        },
        "steps": {"steps": settings.steps, "images": images, "passes": images / len(prepared.pairs)},
        "takes": {
            **describe_environment(prepared.accelerator),
            "memory, GB": round(_peak_memory(prepared) / 1e9, 2),
            "memory available, GB": round(psutil.virtual_memory().available / 1e9, 1),
            "disk without cached latents, GB": round(disk / 1e9, 2),
            "seconds a step": round(seconds, 3),
            "hours, estimated": round(settings.steps * seconds / 3600, 2),
        },
        "out": str(Path(recipe.out)),
    }


def _seconds_per_step(prepared: Preparation[UNetTask], recipe: TrainRecipe) -> float:
    """Time two steps on one batch; return the seconds of the quicker one."""
    settings = recipe.settings
    pairs = [prepared.pairs.sample(index % len(prepared.pairs), 0) for index in range(settings.batch)]
    device = prepared.accelerator.device
    batch: Batch = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in collate(pairs).items()
    }
    if settings.cache_latents:
        batch = prepared.task.encode_batch(batch)
    phase = Phase("unet", prepared.task, prepared.accelerator, settings)
    many = settings.accumulate
    seconds = []
    for step in range(_TIMED_STEPS):
        start = time.perf_counter()
        phase.update(step, [batch] * many, [torch.Generator().manual_seed(step)] * many)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _peak_memory(prepared: Preparation[UNetTask]) -> float:
    """Return the peak memory of the steps on the device, in bytes."""
    if prepared.accelerator.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(prepared.accelerator.device))
    return peak_rss_bytes()
