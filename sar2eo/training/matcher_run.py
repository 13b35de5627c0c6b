"""Training of a matcher from settings to a folder: `sar2eo.train_matcher` and the command of that name."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sar2eo.datasets import Augmentation, PairsDataset, collate, open_dataset
from sar2eo.errors import SettingsError, TrainingError, TrainingWarning
from sar2eo.matching.dcdm.checkpoint import MatcherCheckpoint, hash_values, load_matcher
from sar2eo.matching.dcdm.losses import WINDOW
from sar2eo.matching.dcdm.matcher import Matcher
from sar2eo.matching.dcdm.network import MatchingDenoiser
from sar2eo.matching.dcdm.similarity import MapWeights, pixel_multiple, plant_templates
from sar2eo.model.card import MatcherCard
from sar2eo.model.creation import load_vae
from sar2eo.model.diffusion import read_schedule
from sar2eo.model.folder import BUNDLED_MATCHER, find_folder
from sar2eo.settings import DataSettings, MatcherRecipe, MatcherSettings, replace_settings
from sar2eo.store.atomic import write_file
from sar2eo.training.loop import Outcome, Progress, create_accelerator
from sar2eo.training.matcher_task import MatcherTask
from sar2eo.training.setup import Preparation, checked_identity, chosen_data, open_held_out, training_batches

__all__ = [
    "calibrate_matcher",
    "prepare_matcher_training",
    "run_matcher_training",
    "threshold_for",
    "train_matcher",
]


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
        known["base"] = {"sha256": hash_values(begun.denoiser)}
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
        base = load_matcher(find_folder(recipe.base, own=BUNDLED_MATCHER))
        return dataclasses.replace(base, card=_card(recipe, base.card.vae_sha256, pairs))
    settings = recipe.settings
    vae = load_vae(find_folder(recipe.vae, allow=["vae/*.json", "vae/*.safetensors"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        denoiser = MatchingDenoiser(
            latent_channels=int(vae.config.latent_channels),
            widths=settings.widths,
            top_regions=settings.top_regions,
        )
    return MatcherCheckpoint(
        denoiser=denoiser,
        vae=vae,
        schedule=read_schedule({}, set_alpha_to_one=True),
        card=_card(recipe, hash_values(vae), pairs),
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


Values = npt.NDArray[np.float64]

_AT_ONCE = 8
_WEIGHTS = [
    MapWeights(pixels, structure)
    for structure in (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
    for pixels in (0.0, 0.5, 1.0, 2.0)
]
_RIGHT_PX, _NEARER_PX = 5.0, 2.0


class _Trials(NamedTuple):
    """Distances of the shifts found from where templates were cut, in pixels, and scores: (weight, trial)."""

    distances: Values
    scores: Values


class _Choice(NamedTuple):
    """The threshold of one choice of weights, and what ranks it: CMR(5), CMR(2), share accepted."""

    threshold: float
    rank: tuple[float, float, float]

    @classmethod
    def of(cls, distances: Values, scores: Values, strangers: Values, share: float) -> _Choice:
        off = np.where(distances > _RIGHT_PX, scores, 0.0)
        threshold = max(threshold_for(part, share) for part in (off, strangers))
        shares = (distances <= _RIGHT_PX, distances <= _NEARER_PX, scores >= threshold)
        near, nearer, accepted = (float(part.mean()) for part in shares)
        return cls(threshold, (near, nearer, accepted))


def threshold_for(scores: npt.ArrayLike, share: float) -> float:
    """Return the least threshold that at most a share of scores reach.

    Parameters
    ----------
    scores : array_like
        Of matches that are wrong, or 0 for those that are not.
    share : float
        0 to 1; of n scores, ``floor(share * n)`` may be accepted.
    """
    ordered = np.sort(np.asarray(scores, float))[::-1]
    allowed = math.floor(share * len(ordered) + 1e-9)
    return 0.0 if allowed >= len(ordered) else float(np.nextafter(ordered[allowed], np.inf))


def calibrate_matcher(
    folder: Path,
    pairs: PairsDataset,
    settings: MatcherSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> MatcherCard:
    """Choose the weights of the maps and the threshold of a matcher, and write them to its card.

    Half of the trials have the right search image, half that of another pair. Wrong is a place more than 5
    pixels from the truth, and every place in another pair's image; of either half at most
    ``settings.false_accepts`` reach the threshold.

    Parameters
    ----------
    folder : Path
        As `MatcherTask.export` wrote it.
    pairs : PairsDataset
        Of the validation split, cropped to the search images.
    settings : MatcherSettings
    progress : callable, optional
        Called with trials done and in all.

    Returns
    -------
    MatcherCard

    Raises
    ------
    TrainingError
        If all pairs show the same ground.
    """
    if not pairs.has_strangers:
        raise TrainingError(f"{len(pairs)} validation pairs of one place: a threshold needs two at least")
    matcher = Matcher(folder, device=settings.device, threads=settings.threads)
    right = _trials(matcher, pairs, settings, others=False, progress=progress)
    wrong = _trials(matcher, pairs, settings, others=True, progress=progress)
    chosen = [
        _Choice.of(*parts, settings.false_accepts)
        for parts in zip(right.distances, right.scores, wrong.scores, strict=True)
    ]
    best = max(range(len(_WEIGHTS)), key=lambda index: chosen[index].rank)  # of equals the first
    weights, choice = _WEIGHTS[best], chosen[best]
    strangers, off = wrong.scores[best], right.distances[best] > _RIGHT_PX
    taken = right.scores[best] >= choice.threshold
    metrics = {
        "calibration_trials": float(len(taken)),
        "calibration_cmr_5": choice.rank[0],
        "calibration_cmr_2": choice.rank[1],
        "calibration_accepted": choice.rank[2],
        "calibration_false_accepts": float((taken & off).mean()),
        "calibration_false_accepts_elsewhere": float((strangers >= choice.threshold).mean()),
    }
    card = dataclasses.replace(
        matcher.card,
        pixel_weight=weights.pixels,
        structure_weight=weights.structure,
        threshold=choice.threshold,
        false_accepts=settings.false_accepts,
        metrics=matcher.card.metrics | metrics,
    )
    write_file(matcher.folder / card.file_name, card.to_text().encode())
    return card


def _stranger(pairs: PairsDataset, number: int) -> int:
    """Return a pair of another place, another one at each pass through the pairs."""
    passed, index = divmod(number, len(pairs))
    others = pairs.strangers(index)
    return others[passed % len(others)]


def _trials(
    matcher: Matcher,
    pairs: PairsDataset,
    settings: MatcherSettings,
    *,
    others: bool,
    progress: Callable[[int, int], None] | None,
) -> _Trials:
    """Match templates in their own search image or in that of another pair, the same every time."""
    distances, scores = [], []
    for first in range(0, settings.trials, _AT_ONCE):
        numbers = range(first, min(first + _AT_ONCE, settings.trials))
        batch = collate([pairs.sample(number % len(pairs), 0) for number in numbers])
        generator = torch.Generator().manual_seed(settings.seed + first)
        images, _, offsets = plant_templates(batch, settings.template, generator)
        if others:
            strange = collate([pairs.sample(_stranger(pairs, number), 0) for number in numbers])
            images = images._replace(search=strange["sar"], search_valid=strange["valid"])
        maps = matcher.compare(images, seed=settings.seed)
        found = [maps.find_best(weights) for weights in _WEIGHTS]
        true = offsets.numpy()
        distances.append([np.hypot(*(f.shifts - true).T) for f in found])
        scores.append([f.scores for f in found])
        if progress is not None:
            progress(numbers.stop + (settings.trials if others else 0), 2 * settings.trials)
    return _Trials(np.concatenate(distances, axis=1), np.concatenate(scores, axis=1))
