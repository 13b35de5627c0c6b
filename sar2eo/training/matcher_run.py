"""Training of a matcher from settings to a folder: `sar2eo.train_matcher` and the command of that name."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch

from sar2eo.datasets import Augmentation, PairsDataset, open_dataset
from sar2eo.errors import SettingsError, TrainingWarning
from sar2eo.matching.dcdm.checkpoint import MatcherCheckpoint, load_matcher, values_sha256
from sar2eo.matching.dcdm.evidence import pixel_multiple
from sar2eo.matching.dcdm.losses import WINDOW
from sar2eo.matching.dcdm.matcher_card import MatcherCard, matcher_folder
from sar2eo.matching.dcdm.network import MatchingDenoiser
from sar2eo.model.diffusion import schedule_config
from sar2eo.model.hub import find_folder
from sar2eo.model.stable_diffusion import pretrained_vae
from sar2eo.settings import DataSettings, MatcherRecipe, MatcherSettings, replace_settings
from sar2eo.training.accelerator import create_accelerator
from sar2eo.training.loop import Outcome, Progress
from sar2eo.training.matcher_task import MatcherTask
from sar2eo.training.matcher_threshold import calibrate_matcher
from sar2eo.training.setup import Preparation, checked_identity, chosen_data, open_held_out, training_batches

__all__ = ["prepare_matcher_training", "run_matcher_training", "train_matcher"]


def train_matcher(
    data: DataSettings | str | Path,
    out: str | Path,
    settings: MatcherSettings | None = None,
    *,
    vae: str | Path = "bundled",
    base: str | Path | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Path:
    """Train a matcher (DCDM) on pairs, with templates cut at known places, or go on with it.

    Parameters
    ----------
    data : DataSettings, str or Path
        As of `sar2eo.train`. Aligned pairs teach places; and they should not overlap, for a template must
        not lie in the search image of another pair.
    out : str or Path
        As of `sar2eo.train`.
    settings : MatcherSettings, optional
    vae : str or Path
        Folder with a trained VAE in ``vae/``, which stays as it is; "bundled" is the package's own.
    base : str or Path, optional
        A matcher to go on from, with its own architecture and VAE, instead of an untrained one on `vae`.
    progress : callable, optional
        As of `sar2eo.train`, and called with ``trials`` and ``trials_total`` while the threshold is measured.
    **changes
        Fields of `MatcherSettings`, instead of those of `settings`.

    Returns
    -------
    Path
        ``final`` in the run folder, for `sar2eo.match_dcdm`. Its threshold is measured on the validation
        pairs; without such pairs it has none, and does not match.

    Raises
    ------
    SettingsError, PairsError, CheckpointError, TrainingError, OutputError
        As of `sar2eo.train`.

    Examples
    --------
    >>> train_matcher("pairs/", "runs/matcher", steps=10_000)  # doctest: +SKIP
    """
    recipe = MatcherRecipe(
        data=chosen_data(data),
        out=str(out),
        vae=str(vae),
        base=None if base is None else str(base),
        settings=replace_settings(settings or MatcherSettings(), changes),
    )
    return run_matcher_training(recipe, progress=progress).final


def run_matcher_training(recipe: MatcherRecipe, *, progress: Progress | None = None) -> Outcome:
    """Do what a recipe says; see `train_matcher`."""
    prepared = prepare_matcher_training(recipe)
    outcome = prepared.run(recipe.settings, recipe.out, progress)
    accelerator, held_out = prepared.accelerator, prepared.held_out
    if accelerator.is_main_process and held_out is not None:
        if not held_out.has_strangers:
            warnings.warn(
                "the validation pairs show one place only: no threshold can be measured, and without one the "
                "matcher does not match",
                TrainingWarning,
                stacklevel=2,
            )
        elif MatcherCard.read(outcome.final).threshold is None:

            def tell(done: int, total: int) -> None:
                if progress is not None:
                    progress({"trials": done, "trials_total": total})

            calibrate_matcher(outcome.final, held_out, recipe.settings, progress=tell)
    accelerator.wait_for_everyone()
    return outcome


def prepare_matcher_training(recipe: MatcherRecipe) -> Preparation[MatcherTask]:
    """Open data and VAE, and check all that can be checked before work starts; nothing is written.

    Raises
    ------
    SettingsError, PairsError, CheckpointError, TrainingError
        As `train_matcher`.
    """
    settings = recipe.settings
    accelerator = create_accelerator(settings)
    augmentation = Augmentation(crop=settings.crop, flips=True, turns=True, seed=settings.seed)
    pairs = open_dataset(recipe.data, "train", augmentation=augmentation)
    held_out = open_held_out(recipe.data, Augmentation(crop=settings.crop, centre=True), pairs)
    for images in (pairs, held_out):
        if images is not None and min(images.shape) < settings.crop:
            raise SettingsError(
                f"crop={settings.crop}: images have {images.shape[0]} x {images.shape[1]} pixels; choose a "
                "smaller crop and template, or build larger pairs"
            )
    begun = _begun(recipe, pairs)
    known = {"vae": {"sha256": begun.card.vae_sha256}}
    if recipe.base is not None:
        known["base"] = {"sha256": values_sha256(begun.denoiser)}
    identity = checked_identity(recipe, accelerator, pairs, **known)
    task = MatcherTask(begun, settings, accelerator.device, pairs.apart)
    multiple = pixel_multiple(task.factor)
    if settings.crop % multiple or settings.template % multiple:
        raise SettingsError(
            f"crop={settings.crop}, template={settings.template}: with this VAE of factor {task.factor} they "
            f"must be multiples of {multiple}"
        )
    if settings.template < WINDOW * task.factor:
        raise SettingsError(
            f"template={settings.template}: must be at least {WINDOW} latents of {task.factor} pixels, the "
            "window of SSIM"
        )
    return Preparation(
        task=task,
        accelerator=accelerator,
        pairs=pairs,
        held_out=held_out,
        batches=training_batches(pairs, settings, accelerator),
        identity=identity,
    )


def _begun(recipe: MatcherRecipe, pairs: PairsDataset) -> MatcherCheckpoint:
    """Return the matcher that training begins with: the base, or an untrained one, the same every time."""
    if recipe.base is not None:
        base = load_matcher(matcher_folder(recipe.base))
        return dataclasses.replace(base, card=_card(recipe, base.card.vae_sha256, pairs))
    settings = recipe.settings
    vae = pretrained_vae(find_folder(recipe.vae, allow=["vae/*.json", "vae/*.safetensors"]))
    sizes: dict[str, Any] = {"calibration": 0} if settings.uncalibrated else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        denoiser = MatchingDenoiser(
            latent_channels=int(vae.config.latent_channels),
            widths=settings.widths,
            top_regions=settings.top_regions,
            dense=settings.dense,
            **sizes,
        )
    return MatcherCheckpoint(
        denoiser=denoiser,
        vae=vae,
        schedule=schedule_config({}, set_alpha_to_one=True),
        card=_card(recipe, values_sha256(vae), pairs),
    )


def _card(recipe: MatcherRecipe, vae_sha256: str, pairs: PairsDataset) -> MatcherCard:
    """Return the card of a matcher that learns from these pairs, without figures."""
    return MatcherCard(
        name=Path(recipe.out).resolve().name,
        quantity=pairs.quantity,
        calibration=pairs.calibration,
        polarisations=pairs.polarisations,
        channels=pairs.channels,
        gsd_m=pairs.gsd_m,
        scaling=pairs.scaling,
        template_px=recipe.settings.template,
        search_px=recipe.settings.crop,
        vae_sha256=vae_sha256,
        training_data=pairs.describe(),
    )
