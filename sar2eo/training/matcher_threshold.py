"""When a matcher says "cannot match": a threshold measured on validation pairs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sar2eo.datasets import PairsDataset, collate
from sar2eo.errors import TrainingError
from sar2eo.matching.dcdm.matcher import Matcher
from sar2eo.matching.dcdm.similarity import MapWeights, plant_templates
from sar2eo.model.card import MatcherCard
from sar2eo.settings import MatcherSettings
from sar2eo.store.atomic import write_atomically

__all__ = ["calibrate_matcher", "threshold_for"]

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
    write_atomically(matcher.folder / card.file_name, card.to_text().encode())
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
