"""Find an optical template in a SAR image by translating it, or report that it cannot be matched."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sar2eo.compute.device import default_threads, resolve_device
from sar2eo.errors import CheckpointError, SettingsError
from sar2eo.geo.radiometry import fill_invalid, to_eo_bytes, to_model_range
from sar2eo.matching.dcdm.checkpoint import MatcherCheckpoint, load_matcher
from sar2eo.matching.dcdm.similarity import Images, MapWeights, SimilarityMaps, compare_images, pixel_multiple
from sar2eo.model.card import MatcherCard
from sar2eo.model.folder import BUNDLED_MATCHER, ModelFolder, find_folder

FloatArray = npt.NDArray[np.float32]

_PERCENTILE = 99.0


@dataclass(frozen=True, eq=False)
class DcdmMatch:
    """Result of matching a template.

    Parameters
    ----------
    matched : bool
        Whether the score reaches the threshold.
    shift : tuple of float or None
        (rows, cols): what the template shows at pixel (r, c) is found in the search image at
        (r + rows, c + cols). None where it cannot be matched.
    score : float
        Probability of the match, 0 to 1 (see `sar2eo.matching.dcdm.similarity.compute_match_probability`).
    threshold : float
        Threshold of the matcher's card.
    surface : ndarray of float32, shape (H - h + 1, W - w + 1)
        Similarity at each place of the template's first pixel.
    translated : ndarray of uint8, shape (h, w, 3)
        The template in the SAR domain, decoded.
    before, after : ndarray of float32, shape (h', w', H', W')
        Attention of the template's tokens, 16 pixels wide, to the search image's at the last step, before
        and after the calibration block; rows of the last two axes sum to 1.
    """

    matched: bool
    shift: tuple[float, float] | None
    score: float
    threshold: float
    surface: FloatArray
    translated: npt.NDArray[np.uint8]
    before: FloatArray
    after: FloatArray


class Matcher:
    """A matcher whose weights are loaded on first use.

    Parameters
    ----------
    model : str or Path
        A folder, a hub id, or "bundled".
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    threads : int or None
        Torch threads on a CPU; None: all cores.

    Raises
    ------
    CheckpointError
        If there is no such folder, or it is not a matcher.
    SettingsError
        For a device that this machine lacks.
    """

    def __init__(self, model: str | Path, *, device: str = "auto", threads: int | None = None) -> None:
        self.folder = find_folder(model, own=BUNDLED_MATCHER)
        files = ModelFolder(self.folder, MatcherCard)
        files.files()
        self.card = files.card()
        self.device = resolve_device(device)
        self.threads = threads or default_threads()
        self._lock = threading.Lock()

    @property
    def weights(self) -> MapWeights:
        """Weights of the similarity maps, from the card."""
        return MapWeights(self.card.pixel_weight, self.card.structure_weight)

    @cached_property
    def checkpoint(self) -> MatcherCheckpoint:
        """The networks in memory."""
        return load_matcher(self.folder, device=self.device)

    def compare(self, images: Images, *, steps: int | None = None, seed: int = 2025) -> SimilarityMaps:
        """Compare templates with search images (`compare_images`), one batch at a time."""
        with self._lock:
            if self.device == "cpu" and torch.get_num_threads() != self.threads:
                torch.set_num_threads(self.threads)
            moved = Images(*(part.to(self.device) for part in images))
            chosen = self.card.steps if steps is None else steps
            return compare_images(self.checkpoint, moved, steps=chosen, seed=seed)


def match_dcdm(
    template: npt.ArrayLike,
    search: npt.ArrayLike,
    *,
    model: str | Path | Matcher,
    scaling: float | None = None,
    steps: int | None = None,
    seed: int = 2025,
) -> DcdmMatch:
    """Find an optical template in a SAR image by translating it into the SAR domain.

    Parameters
    ----------
    template : array_like, shape (h, w) or (h, w, 3)
        Grey, near infrared, or red, green, blue; 0 to 255, NaN where there is no data.
    search : array_like, shape (H, W) or (polarisation, H, W)
        SAR amplitude of the polarisations that the matcher's card names, NaN where there is no data; larger
        than the template along both axes.
    model : str, Path or Matcher
        For many matches open a `Matcher` once.
    scaling : float, optional
        Amplitude that becomes 1 for a card with scaling "p99"; by default the 99th percentile of the search
        image, which differs from that of its scene.
    steps : int, optional
        Sampling steps; by default the card's.
    seed : int
        Seed of the starting noise.

    Returns
    -------
    DcdmMatch
        With ``shift=None`` where the template cannot be matched.

    Raises
    ------
    SettingsError
        For arrays of other shapes or without valid pixels.
    CheckpointError
        If the matcher is incomplete, or its threshold not calibrated.
    """
    matcher = model if isinstance(model, Matcher) else Matcher(model)
    card = matcher.card
    if card.threshold is None:
        raise CheckpointError(
            f"{matcher.folder}: its card has no threshold, so it cannot reject matches: calibrate it, "
            "as 'sar2eo train-matcher' does"
        )
    eo, sar = _to_optical(np.asarray(template, np.float32)), np.atleast_3d(np.asarray(search, np.float32))
    sar = np.moveaxis(sar, -1, 0) if np.ndim(search) == 2 else sar
    if len(sar) != len(card.polarisations) or any(
        a >= b for a, b in zip(eo.shape[1:], sar.shape[1:], strict=True)
    ):
        raise SettingsError(
            f"search of shape {np.shape(search)} for a template of {eo.shape[1]} x {eo.shape[2]} pixels: "
            f"must be larger, and of the polarisations {', '.join(card.polarisations)}"
        )
    places = (sar.shape[1] - eo.shape[1] + 1, sar.shape[2] - eo.shape[2] + 1)
    images = _prepare_images(eo, sar, card, scaling, pixel_multiple(matcher.checkpoint.factor))
    maps = matcher.compare(images, steps=steps, seed=seed)
    found = maps.find_best(matcher.weights, within=places)
    score = float(found.scores[0])
    matched = bool(score >= card.threshold)
    translated = maps.translated[0, :, : eo.shape[1], : eo.shape[2]].cpu().numpy()
    before, after = (part[0].float().cpu().numpy() for part in (maps.last.before, maps.last.after))
    return DcdmMatch(
        matched=matched,
        shift=(float(found.shifts[0, 0]), float(found.shifts[0, 1])) if matched else None,
        score=score,
        threshold=card.threshold,
        surface=found.surface[0],
        translated=np.ascontiguousarray(np.moveaxis(to_eo_bytes(translated), 0, -1)),
        before=before,
        after=after,
    )


def _to_optical(template: FloatArray) -> FloatArray:
    """Return a template of shape (3, h, w)."""
    if template.ndim == 2:
        template = np.repeat(template[..., None], 3, axis=2)
    if template.ndim != 3 or template.shape[2] != 3 or 0 in template.shape:
        raise SettingsError(f"template of shape {template.shape}: must be (rows, cols) or (rows, cols, 3)")
    return np.moveaxis(template, -1, 0)


def _prepare_images(
    eo: FloatArray, sar: FloatArray, card: MatcherCard, scaling: float | None, multiple: int
) -> Images:
    """Scale, fill and pad a template and a search image; padding is not valid."""
    eo_valid, sar_valid = (np.asarray(np.isfinite(part).all(axis=0)) for part in (eo, sar))
    if not eo_valid.any() or not sar_valid.any():
        raise SettingsError("template or search image has no valid pixel: is its nodata right?")
    if card.scaling == "p99":
        known = [float(np.percentile(band[sar_valid], _PERCENTILE)) for band in sar]
        divisors = known if scaling is None else [scaling] * len(sar)
    else:
        divisors = [float(card.scaling)] * len(sar)
    if not min(divisors) > 0:
        raise SettingsError(
            f"search image: the amplitude that becomes 1 is {min(divisors):g}, must be above 0: is it empty?"
        )
    sar = to_model_range(_fill(sar, sar_valid), divisors, card.polarisations, card.channels)
    eo = _fill(eo, eo_valid) / np.float32(127.5) - np.float32(1)
    template = _pad(eo, eo_valid, multiple, (0, 0))
    # The padded template must fit in at every place where the template itself does.
    more = tuple(p - n for p, n in zip(template[0].shape[-2:], eo.shape[1:], strict=True))
    return Images(*template, *_pad(sar, sar_valid, multiple, more))


def _fill(values: FloatArray, valid: npt.NDArray[np.bool_]) -> FloatArray:
    return values if valid.all() else fill_invalid(values, valid)


def _pad(
    image: FloatArray, valid: npt.NDArray[np.bool_], multiple: int, more: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Pad by at least `more` pixels to the next multiple, with the border's values, not valid."""
    sides = [-(-(n + extra) // multiple) * multiple for n, extra in zip(valid.shape, more, strict=True)]
    widths = [(0, side - n) for side, n in zip(sides, valid.shape, strict=True)]
    filled = np.pad(image, [(0, 0), *widths], mode="edge")
    mask = np.pad(valid, widths).astype(np.float32)
    return torch.from_numpy(filled)[None], torch.from_numpy(mask)[None, None]
