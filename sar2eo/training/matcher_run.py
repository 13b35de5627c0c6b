"""Training of a matcher from settings to a folder, and calibration of its threshold."""

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
from sar2eo.settings import DataSettings, MatcherRecipe, MatcherSettings
from sar2eo.store.atomic import write_file
from sar2eo.training.loop import Outcome, Progress, create_accelerator
from sar2eo.training.matcher_task import MatcherTask
from sar2eo.training.setup import Preparation, build_recipe, check_identity, open_held_out, training_batches


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
    """Train a matcher (DCDM) on pairs, with templates cut at known places, or resume an interrupted run.

    Parameters
    ----------
    data : DataSettings, str or Path
        As in `sar2eo.train`. Pairs must be aligned, and should not overlap: a template must not lie in the
        search image of another pair.
    out : str or Path
        As in `sar2eo.train`, whose errors it raises, too.
    settings : MatcherSettings, optional
        Sizes, architecture, weights of the losses and the like; by default `MatcherSettings()`.
    vae : str or Path
        Folder with a trained VAE in ``vae/``, which is not trained further; "bundled" is the package's own.
    base : str or Path, optional
        Matcher to continue from, with its own architecture and VAE, instead of an untrained one on `vae`.
    progress : callable, optional
        As in `sar2eo.train`; called with ``trials`` and ``trials_total`` while the threshold is calibrated.
    **changes
        Fields of `MatcherSettings` that replace those of `settings`.

    Returns
    -------
    Path
        ``final`` in the run folder, for `sar2eo.match_dcdm`. Its threshold is calibrated on the validation
        pairs; without such pairs it has none and cannot match.

    Examples
    --------
    >>> train_matcher("pairs/", "runs/matcher", steps=10_000)  # doctest: +SKIP
    """
    paths = {"out": out, "vae": vae, "base": base}
    recipe = build_recipe(MatcherRecipe, data, settings or MatcherSettings(), changes, **paths)
    return run_matcher_training(recipe, progress=progress).final


def run_matcher_training(recipe: MatcherRecipe, *, progress: Progress | None = None) -> Outcome:
    """Run the training of a recipe, then measure the threshold; see `train_matcher`."""
    prepared = prepare_matcher_training(recipe)
    outcome = prepared.run(recipe.settings, recipe.out, progress)
    accelerator, held_out = prepared.accelerator, prepared.held_out
    if accelerator.is_main_process and held_out is not None:
        if not held_out.has_strangers:
            warnings.warn(
                "the validation pairs show a single place: no threshold can be calibrated, and without one "
                "the matcher cannot match",
                TrainingWarning,
                stacklevel=2,
            )
        elif MatcherCard.read(outcome.final).threshold is None:

            def report(done: int, total: int) -> None:
                if progress is not None:
                    progress({"trials": done, "trials_total": total})

            calibrate_matcher(outcome.final, held_out, recipe.settings, progress=report)
    accelerator.wait_for_everyone()
    return outcome


def prepare_matcher_training(recipe: MatcherRecipe) -> Preparation[MatcherTask]:
    """Open pairs, VAE and base, and check them against settings and run folder; nothing is written."""
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
    untrained = _create_or_load(recipe, pairs)
    known = {"vae": {"sha256": untrained.card.vae_sha256}}
    if recipe.base is not None:
        known["base"] = {"sha256": hash_values(untrained.denoiser)}
    identity = check_identity(recipe, accelerator, pairs, **known)
    task = MatcherTask(untrained, settings, accelerator.device, pairs.apart)
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


def _create_or_load(recipe: MatcherRecipe, pairs: PairsDataset) -> MatcherCheckpoint:
    """Load the base, or create an untrained matcher from the seed."""
    if recipe.base is not None:
        base = load_matcher(find_folder(recipe.base, own=BUNDLED_MATCHER))
        return dataclasses.replace(base, card=_create_card(recipe, base.card.vae_sha256, pairs))
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
        card=_create_card(recipe, hash_values(vae), pairs),
    )


def _create_card(recipe: MatcherRecipe, vae_sha256: str, pairs: PairsDataset) -> MatcherCard:
    """Create the card of a matcher trained on these pairs, without metrics."""
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
    """Matches at every choice of weights, shape (weights, trials)."""

    distances: Values
    """From the place that was found to where the template was cut, in pixels."""
    scores: Values


class _Choice(NamedTuple):
    """The threshold for one choice of weights, and its rank: CMR(5), CMR(2), share accepted."""

    threshold: float
    rank: tuple[float, float, float]

    @classmethod
    def from_trials(cls, distances: Values, scores: Values, strangers: Values, share: float) -> _Choice:
        off = np.where(distances > _RIGHT_PX, scores, 0.0)
        threshold = max(threshold_for(part, share) for part in (off, strangers))
        shares = (distances <= _RIGHT_PX, distances <= _NEARER_PX, scores >= threshold)
        near, nearer, accepted = (float(part.mean()) for part in shares)
        return cls(threshold, (near, nearer, accepted))


def threshold_for(scores: npt.ArrayLike, share: float) -> float:
    """Return the lowest threshold that at most a share of the scores reach.

    Parameters
    ----------
    scores : array_like, shape (n,)
        Scores of wrong matches, and 0 for right ones.
    share : float
        0 to 1; ``floor(share * n)`` scores may be accepted.
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
    """Calibrate a matcher's threshold and the weights of its maps, and write them to its card.

    Half of the trials have the right search image, half that of another pair. A match is wrong if it is more
    than 5 pixels from the true place, or in another pair's image; of either half, at most the share
    ``settings.false_accepts`` reaches the threshold.

    Parameters
    ----------
    folder : Path
        Folder that `MatcherTask.export` wrote.
    pairs : PairsDataset
        Validation split, cropped to the search images; pairs of a single place are refused.
    settings : MatcherSettings
        Number of trials, accepted share of wrong matches, seed, device.
    progress : callable, optional
        Called with the number of finished and of all trials.
    """
    if not pairs.has_strangers:
        raise TrainingError(f"{len(pairs)} validation pairs of one place: a threshold needs two or more")
    matcher = Matcher(folder, device=settings.device, threads=settings.threads)
    right = _run_trials(matcher, pairs, settings, others=False, progress=progress)
    wrong = _run_trials(matcher, pairs, settings, others=True, progress=progress)
    chosen = [
        _Choice.from_trials(*parts, settings.false_accepts)
        for parts in zip(right.distances, right.scores, wrong.scores, strict=True)
    ]
    best = max(range(len(_WEIGHTS)), key=lambda index: chosen[index].rank)  # the first of equals
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


def _pick_stranger(pairs: PairsDataset, number: int) -> int:
    """Return a pair of another place, a different one at each pass through the pairs."""
    passed, index = divmod(number, len(pairs))
    others = pairs.strangers(index)
    return others[passed % len(others)]


def _run_trials(
    matcher: Matcher,
    pairs: PairsDataset,
    settings: MatcherSettings,
    *,
    others: bool,
    progress: Callable[[int, int], None] | None,
) -> _Trials:
    """Match templates in their own search image, or in that of another pair; the same every time."""
    distances, scores = [], []
    for first in range(0, settings.trials, _AT_ONCE):
        numbers = range(first, min(first + _AT_ONCE, settings.trials))
        batch = collate([pairs.sample(number % len(pairs), 0) for number in numbers])
        generator = torch.Generator().manual_seed(settings.seed + first)
        images, _, offsets = plant_templates(batch, settings.template, generator)
        if others:
            strange = collate([pairs.sample(_pick_stranger(pairs, number), 0) for number in numbers])
            images = images._replace(search=strange["sar"], search_valid=strange["valid"])
        maps = matcher.compare(images, seed=settings.seed)
        found = [maps.find_best(weights) for weights in _WEIGHTS]
        true = offsets.numpy()
        distances.append([np.hypot(*(f.shifts - true).T) for f in found])
        scores.append([f.scores for f in found])
        if progress is not None:
            progress(numbers.stop + (settings.trials if others else 0), 2 * settings.trials)
    return _Trials(np.concatenate(distances, axis=1), np.concatenate(scores, axis=1))
