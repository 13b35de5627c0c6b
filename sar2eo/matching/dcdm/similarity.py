"""Translate a template, compare it with every place of a search image, and find the best place.

Matching, validation and the calibration of the threshold all use this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from sar2eo.errors import SettingsError
from sar2eo.matching.dcdm.checkpoint import MatcherCheckpoint, compute_alpha_bars, create_matching_scheduler
from sar2eo.matching.dcdm.network import FEATURE_SCALE, REGION, Denoised, MatchingDenoiser, SearchContext
from sar2eo.matching.structure import compare_structure, find_vertex
from sar2eo.model.card import TRAIN_TIMESTEPS
from sar2eo.model.diffusion import set_timesteps
from sar2eo.model.network import decode_latents, encode_images, pool_validity
from sar2eo.model.noise import draw_scene_noise

FloatArray = npt.NDArray[np.float32]


class Images(NamedTuple):
    """Templates and search images of a batch.

    Parameters
    ----------
    template : Tensor, shape (B, 3, h, w)
        Optical, in [-1, 1].
    template_valid : Tensor, shape (B, 1, h, w)
        0 or 1.
    search : Tensor, shape (B, 3, H, W)
        SAR, in [-1, 1].
    search_valid : Tensor, shape (B, 1, H, W)
    """

    template: Tensor
    template_valid: Tensor
    search: Tensor
    search_valid: Tensor


class PlantedTemplates(NamedTuple):
    """Templates cut at known places, to learn from, to calibrate with and to evaluate on.

    Parameters
    ----------
    truth : Tensor, shape (B, 3, h, w)
        The SAR image at the template's place.
    offsets : Tensor of int64, shape (B, 2)
        Rows and columns of the templates' first pixels in the search images.
    """

    images: Images
    truth: Tensor
    offsets: Tensor


def plant_templates(batch: Mapping[str, Any], side: int, generator: torch.Generator) -> PlantedTemplates:
    """Cut a template from each EO image at a random place; the whole SAR image is its search image.

    Parameters
    ----------
    batch : mapping
        With "sar", "eo" and "valid".
    side : int
        Side of the templates, in pixels.
    generator : torch.Generator
        On the CPU.
    """
    sar, eo, valid = batch["sar"], batch["eo"], batch["valid"]
    limits = torch.tensor(sar.shape[-2:]) - side + 1
    offsets = (torch.rand((len(sar), 2), generator=generator) * limits).long()
    places = [(slice(row, row + side), slice(col, col + side)) for row, col in offsets.tolist()]

    def cut(images: Tensor) -> Tensor:
        return torch.stack([image[:, rows, cols] for image, (rows, cols) in zip(images, places, strict=True)])

    images = Images(cut(eo), cut(valid), sar, valid)
    return PlantedTemplates(images, cut(sar), offsets.to(sar.device))


class MapWeights(NamedTuple):
    """Weights of the other maps against 1 for the learned features (own choice; from validation pairs)."""

    pixels: float
    structure: float


class BestPlaces(NamedTuple):
    """Where templates lie.

    Parameters
    ----------
    shifts : ndarray of float64, shape (B, 2)
        Row and column of the template's first pixel in the search image, in pixels.
    scores : ndarray of float64, shape (B,)
        Probability of the match, 0 to 1.
    surface : ndarray of float32, shape (B, H - h + 1, W - w + 1)
        Similarity at each place.
    """

    shifts: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    surface: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SimilarityMaps:
    """How similar templates and search images are at each place, by features, pixels and structure.

    Parameters
    ----------
    last : Denoised
        Output of the last step.
    translated : Tensor of float32, shape (B, 3, h, w)
        The template in the SAR domain, in [-1, 1].
    features : Correlation
        By latent features, at a place every `step` pixels.
    pixels : Correlation
        By pixels of translated template and search image.
    images : Images
        The images compared.
    step : int
        Pixels between the places of `features`.
    sharpness, none : Tensor
        See `compute_match_probability`.
    """

    last: Denoised
    translated: Tensor
    features: Correlation
    pixels: Correlation
    images: Images
    step: int
    sharpness: Tensor
    none: Tensor

    @cached_property
    def learned(self) -> Tensor:
        """The map of `features` at every pixel, shape (B, H - h + 1, W - w + 1)."""
        return interpolate_to_pixels(self.features.surface, self.step)

    @cached_property
    def structure(self) -> Tensor:
        """Agreement of edges, without translation, shape of `learned`; -1 where the overlap is too small.

        See `sar2eo.matching.structure.compare_structure`.
        """
        return _structure(self.images)

    def find_best(self, weights: MapWeights, within: tuple[int, int] | None = None) -> BestPlaces:
        """Find the best place in the weighted sum of the maps.

        `within` is the number of rows and columns of places that count, from the first; by default all.
        """
        total = self.learned + weights.pixels * self.pixels.surface
        if weights.structure:
            total = total + weights.structure * self.structure
        rows, cols = within or total.shape[1:]
        total = total[:, :rows, :cols]
        maps = (total / (1 + sum(weights))).float().cpu().numpy()
        shifts = np.array([find_subpixel_peak(one) for one in maps], np.float64)
        places = torch.from_numpy(shifts).to(total.device)
        scores = compute_match_probability(total, places, self.sharpness, self.none, step=self.step)
        return BestPlaces(shifts, scores.cpu().numpy(), maps)


def pixel_multiple(factor: int) -> int:
    """Return the number that sides of images must be multiples of: whole regions of latents."""
    return REGION * factor


def correlate_features(
    template_features: Tensor,
    template_valid: Tensor,
    search_features: Tensor,
    search_valid: Tensor,
    step: int,
) -> Correlation:
    """Correlate features; validity is of pixels, `step` of them for each feature along an axis."""
    return correlate(
        template_features,
        pool_validity(template_valid, step),
        search_features,
        pool_validity(search_valid, step),
    )


def translate_latents(
    network: MatchingDenoiser,
    optical: Tensor,
    context: SearchContext,
    schedule: dict[str, object],
    steps: int,
    seed: int,
) -> Denoised:
    """Translate optical latents into the SAR domain in a few steps (DDIM, eta 0, of a predicted x0).

    Latents have shape (B, C, h, w); the schedule is that of `sar2eo.model.diffusion.read_schedule`. Of 1 to
    1000 steps the supplement takes 5 (section 2.2). The starting noise is the same for every template of a
    batch.
    """
    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise SettingsError(f"steps={steps}: must be 1 to {TRAIN_TIMESTEPS}")
    scheduler = create_matching_scheduler(schedule)
    set_timesteps(scheduler, steps)
    bars = compute_alpha_bars(schedule)
    drawn = draw_scene_noise(seed, range(optical.shape[2]), range(optical.shape[3]), optical.shape[1])
    latents = torch.from_numpy(drawn).to(optical.device).expand_as(optical)
    timesteps = scheduler.timesteps.tolist()
    for timestep, after in zip(timesteps, [*timesteps[1:], None], strict=True):
        times = torch.full((len(optical),), timestep, device=optical.device)
        last = network.denoise(latents, optical, context, times)
        if after is not None:
            signal, sigma = bars[timestep].sqrt(), (1 - bars[timestep]).sqrt()
            noise = (latents - signal * last.clean) / sigma
            latents = bars[after].sqrt() * last.clean + (1 - bars[after]).sqrt() * noise
    return last


@torch.no_grad()
def compare_images(checkpoint: MatcherCheckpoint, images: Images, *, steps: int, seed: int) -> SimilarityMaps:
    """Translate templates, and compare them with every place of their search images.

    Sides are multiples of `pixel_multiple`; `steps` and `seed` are those of `translate_latents`.
    """
    network, vae, factor = checkpoint.denoiser, checkpoint.vae, checkpoint.factor
    optical, search = encode_images(vae, images.template), encode_images(vae, images.search)
    context = network.encode_search(search, pool_validity(images.search_valid, factor))
    last = translate_latents(network, optical, context, checkpoint.schedule, steps, seed)
    step = factor // FEATURE_SCALE
    features = correlate_features(
        network.features(last.clean),
        images.template_valid,
        network.features(search),
        images.search_valid,
        step,
    )
    translated = decode_latents(vae, last.clean).clamp(-1, 1)
    # Polarisations count alike.
    grey = [part.mean(dim=1, keepdim=True) for part in (translated, images.search)]
    pixels = correlate(grey[0], images.template_valid, grey[1], images.search_valid)
    level = network.sharpness.detach(), network.none.detach()
    return SimilarityMaps(last, translated, features, pixels, images, step, *level)


def _structure(images: Images) -> Tensor:
    """Compare the edges of templates and search images, each as `sar2eo.matching.structure` does."""
    template, template_valid, search, search_valid = (part.float().cpu().numpy() for part in images)
    height, width = (a - b + 1 for a, b in zip(search.shape[-2:], template.shape[-2:], strict=True))
    maps = np.full((len(search), height, width), -1, np.float32)
    for index, found in enumerate(maps):
        amplitude = _known(search[index].mean(axis=0, keepdims=True) + 1, search_valid[index, 0])
        colour = _known(template[index], template_valid[index, 0])
        if any(a < b for a, b in zip(amplitude.shape[1:], colour.shape[1:], strict=True)):
            continue  # of the search image less is known than the template covers
        surface = compare_structure(amplitude[0], np.moveaxis(colour, 0, -1))[:height, :width]
        found[: surface.shape[0], : surface.shape[1]] = np.nan_to_num(surface, nan=-1)
    return torch.from_numpy(maps).to(images.search.device)


def _known(image: FloatArray, valid: FloatArray) -> FloatArray:
    """Return an image, NaN where it is not valid, without what was added at its end: that is no hole."""
    rows, cols = (int(np.flatnonzero(valid.any(axis=1 - axis)).max(initial=0)) + 1 for axis in (0, 1))
    return np.where(valid > 0, image, np.float32(np.nan))[:, :rows, :cols]


_MIN_SHARED = 0.5  # of the template's valid pixels
_NEAR = 2.0  # cells around a place that count as the place
_FLAT = 1e-4  # of an image's usual power: what has less is flat, and correlates with nothing


class Correlation(NamedTuple):
    """A similarity map.

    Parameters
    ----------
    surface : Tensor of float32, shape (B, H - h + 1, W - w + 1)
        Correlation coefficient, -1 to 1, for each place of the template's first pixel in the search image.
    known : Tensor of bool, of the same shape
        Where enough is valid in both; elsewhere the surface is -1.
    """

    surface: Tensor
    known: Tensor


def correlate(template: Tensor, template_valid: Tensor, search: Tensor, search_valid: Tensor) -> Correlation:
    """Correlate a template with every place of a search image in which it lies as a whole.

    Of what is valid in both, each channel's mean is taken away; the channels share one norm. Images have
    shapes (B, F, h, w) and (B, F, H, W), their validity, 1 or 0, one channel.
    """
    size = search.shape[-2:]
    places = tuple(whole - part + 1 for whole, part in zip(size, template.shape[-2:], strict=True))
    m, n = template_valid.float(), search_valid.float()
    # So the sums below lose fewer digits; the result does not depend on mean and scale.
    f, g = _standardise(template.float(), m), _standardise(search.float(), n)

    def spectrum(image: Tensor) -> Tensor:
        found: Tensor = torch.fft.rfft2(image, s=size)
        return found

    def at_places(product: Tensor) -> Tensor:
        found: Tensor = torch.fft.irfft2(product, s=size)
        return found[..., : places[0], : places[1]]

    M, N, F, G = spectrum(m).conj(), spectrum(n), spectrum(f).conj(), spectrum(g)
    shared = at_places(M * N)[:, 0].round()
    count = shared.clamp_min(1)
    sum_f, sum_g = at_places(F * N), at_places(M * G)  # [B, F, ...]
    product = at_places((F * G).sum(dim=1)) - (sum_f * sum_g).sum(dim=1) / count
    power_f = at_places(spectrum((f * f).sum(dim=1)).conj() * N[:, 0]) - sum_f.square().sum(dim=1) / count
    power_g = at_places(M[:, 0] * spectrum((g * g).sum(dim=1))) - sum_g.square().sum(dim=1) / count
    least = _MIN_SHARED * m.sum(dim=(1, 2, 3)).clamp_min(2)[:, None, None]
    flat = _FLAT * count
    known = (shared >= least) & (power_f > flat) & (power_g > flat)
    norm = torch.where(known, power_f * power_g, torch.ones_like(product)).sqrt()
    surface = torch.where(known, product / norm, torch.full_like(product, -1.0)).clamp(-1, 1)
    return Correlation(surface, known)


def _standardise(image: Tensor, valid: Tensor) -> Tensor:
    """Return an image whose valid pixels have channel means 0 and a common power 1; 0 elsewhere."""
    total = valid.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    centred = (image - (image * valid).sum(dim=(2, 3), keepdim=True) / total) * valid
    power = centred.square().sum(dim=(1, 2, 3), keepdim=True) / total
    return centred / power.clamp_min(1e-12).sqrt()


def compute_match_probability(
    surface: Tensor, places: Tensor, sharpness: Tensor, none: Tensor, *, step: int = 1
) -> Tensor:
    """Return how probable it is that templates lie where they were found, and nowhere else, or not at all.

    A softmax over the places of the map and, as one more outcome, no match.

    Parameters
    ----------
    surface : Tensor, shape (B, n, m)
        Similarity at each place, in the units of `correlate`.
    places : Tensor, shape (B, 2)
        Row and column in the map; those within two cells count as the place.
    sharpness, none : Tensor, scalars
        Logarithm of the softmax's factor, and the correlation that stands for no match.
    step : int
        Places of the map along a cell of the one that these two were learnt on.

    Returns
    -------
    Tensor of float64, shape (B,)
        0 to 1.
    """
    factor = sharpness.double().exp()
    rows, cols = (torch.arange(length, device=surface.device) for length in surface.shape[1:])
    near_rows = (rows - places[:, :1]).abs() <= _NEAR * step
    near_cols = (cols - places[:, 1:]).abs() <= _NEAR * step
    near = near_rows[:, :, None] & near_cols[:, None]
    logits = factor * surface.double()
    here = logits.masked_fill(~near, -torch.inf).flatten(1).logsumexp(dim=1)
    # A map with so many more places has so much more weight against the one that is no place.
    level = (factor * none.double() + 2 * math.log(step)).expand(len(surface), 1)
    return (here - torch.cat([logits.flatten(1), level], dim=1).logsumexp(dim=1)).exp()


def interpolate_to_pixels(surface: Tensor, step: int) -> Tensor:
    """Interpolate a map with a place every `step` pixels to every pixel (bicubic), between its corners.

    From shape (B, n, m) to (B, (n - 1) * step + 1, (m - 1) * step + 1).
    """
    size = [(length - 1) * step + 1 for length in surface.shape[1:]]
    fine = functional.interpolate(surface[:, None], size=size, mode="bicubic", align_corners=True)
    return fine[:, 0]


def find_subpixel_peak(surface: FloatArray) -> tuple[float, float]:
    """Return row and column of the highest place, to a fraction by a parabola along either axis."""
    row, col = (int(i) for i in np.unravel_index(int(np.argmax(surface)), surface.shape))
    return row + find_vertex(surface[:, col], row), col + find_vertex(surface[row], col)
