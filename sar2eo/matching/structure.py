"""Match a SAR image and an EO image without learning: by structure, phase or correlation.

Each method gives a surface: how well the images agree at each shift within a search radius. A shift
(rows, cols) says that what the EO image shows at pixel (r, c) is found in the SAR image at
(r + rows, c + cols), counted from the first pixel of each. The images may differ in size: one
may be a template to find in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage, signal

from sar2eo.errors import SettingsError
from sar2eo.matching.shifts import Aligner, Displacement, LocalShift, SceneDrift, fit_drift

Method = Literal["structure", "phase", "ncc"]
"""Edges by orientation, phases of the spectrum, or grey values."""

METHODS: tuple[str, ...] = get_args(Method)

# Pixels: the scale at which edges are found, and over which they are gathered.
_SCALE = 2.0
_SPREAD = 2.0
# Pixels: width of the peak of phase correlation.
_PHASE_SIGMA = 1.0
# A shift counts if the overlap is at least this share of the largest overlap of any shift.
_MIN_OVERLAP = 0.5
# The rival of a peak is the best shift at least this far from it, in pixels along either axis.
_APART = 5


@dataclass(frozen=True)
class Match:
    """Where the EO image lies in the SAR image, and how certain that is.

    Parameters
    ----------
    rows, cols : float
        Shift in pixels, with subpixel precision; NaN if nothing could be compared.
    score : float
        Agreement at the shift, at most 1.
    ratio : float
        Height of the peak over that of its best rival, another peak at least five pixels away, or over the
        surface's usual spread if that is more; both above the surface's median. 1 is a guess.
    surface : ndarray of float32, shape (row, col)
        Agreement at each whole shift; NaN where the overlap is too small.
    origin : tuple of int
        The shift (rows, cols) of the surface's first element.
    """

    rows: float
    cols: float
    score: float
    ratio: float
    surface: FloatArray
    origin: tuple[int, int]


def match(
    sar: npt.ArrayLike,
    eo: npt.ArrayLike,
    *,
    method: Method = "structure",
    radius_px: int | None = None,
) -> Match:
    """Find the shift at which a SAR image and an EO image agree best.

    Parameters
    ----------
    sar : array_like, shape (row, col)
        Amplitude, not negative; NaN where there is no data.
    eo : array_like, shape (row, col) or (row, col, 3)
        Grey or red, green, blue; NaN where there is no data.
    method : {"structure", "phase", "ncc"}
        Structure works between SAR and EO; the others are for comparison.
    radius_px : int or None
        Largest shift along each axis from the position where both centres coincide; None: as far as they
        overlap by half.

    Returns
    -------
    Match
    """
    if method not in METHODS:
        raise SettingsError(f"method={method!r}: must be one of {', '.join(METHODS)}")
    if radius_px is not None and radius_px < 1:
        raise SettingsError(f"radius_px={radius_px}: must be at least 1, or None to search everywhere")
    radar, optical = np.asarray(sar, np.float32), _grey(np.asarray(eo, np.float32))
    if radar.ndim != 2 or optical.ndim != 2 or 0 in radar.shape + optical.shape:
        raise SettingsError(
            f"sar of shape {np.shape(sar)}, eo of shape {np.shape(eo)}: must be (rows, cols), and for eo "
            "also (rows, cols, 3)"
        )
    lags = tuple(_lags(a, b, radius_px) for a, b in zip(radar.shape, optical.shape, strict=True))
    radar = _log_amplitude(radar)
    match method:
        case "structure":
            surface = _structure(radar, optical, lags)
        case "phase":
            surface = _phase(radar, optical, lags)
        case _:
            surface = _ncc(radar, optical, lags)
    return _peak(surface, (lags[0].start, lags[1].start))


def compare_structure(sar: FloatArray, eo: FloatArray) -> FloatArray:
    """Compare the structure of an EO template with a SAR image at every place where it fits in whole.

    `sar` is amplitude, shape (H, W); `eo` has shape (h, w) or (h, w, 3), and is no larger; both are NaN where
    there is no data. Returns the agreement, at most 1, shape (H - h + 1, W - w + 1); NaN where the overlap is
    too small.
    """
    lags = tuple(range(a - b + 1) for a, b in zip(sar.shape, eo.shape[:2], strict=True))
    return _structure(_log_amplitude(sar), _grey(eo), lags)


def _grey(image: FloatArray) -> FloatArray:
    """Return the luma of an RGB image (ITU-R BT.601), or a grey image unchanged."""
    if image.ndim == 3 and image.shape[2] == 3:
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        grey: FloatArray = image @ weights
        return grey
    return image


def _log_amplitude(amplitude: FloatArray) -> FloatArray:
    """Return log amplitude: speckle becomes additive, and edges of equal ratio equal."""
    valid = np.isfinite(amplitude)
    if not valid.any():
        return amplitude
    # Still water is near zero: without a floor its noise would make the strongest edges.
    floor = max(0.1 * float(np.median(amplitude[valid])), 1e-12)
    return np.log(np.maximum(amplitude, 0) + np.float32(floor))


def _lags(sar: int, eo: int, radius: int | None) -> range:
    """Return the shifts to try along one axis."""
    centre = (sar - eo) // 2
    reach = (sar + eo) // 2 if radius is None else radius
    return range(max(centre - reach, 1 - eo), min(centre + reach, sar - 1) + 1)


class _Correlator:
    """Sums over x of a(x + shift) b(x), for all shifts of a range, by FFT.

    Sized so that nothing wraps around into the shifts asked for.
    """

    def __init__(self, sar: tuple[int, ...], eo: tuple[int, ...], lags: tuple[range, ...]) -> None:
        self._size = tuple(
            fft.next_fast_len(max(a, b, a - lag.start, b + lag.stop - 1), real=True)
            for a, b, lag in zip(sar, eo, lags, strict=True)
        )
        self._at = np.ix_(
            *(np.arange(lag.start, lag.stop) % n for lag, n in zip(lags, self._size, strict=True))
        )

    def spectrum(self, image: FloatArray) -> npt.NDArray[np.complex64]:
        spectrum: npt.NDArray[np.complex64] = fft.rfft2(image, self._size)
        return spectrum

    def low_pass(self, spectrum: npt.NDArray[np.complex64], sigma: float) -> npt.NDArray[np.complex64]:
        """Return the spectrum of what a Gaussian of this sigma, in pixels, leaves."""
        passed: npt.NDArray[np.complex64] = ndimage.fourier_gaussian(spectrum, sigma, n=self._size[1])
        return passed

    def surface(self, product: npt.NDArray[np.complex64]) -> FloatArray:
        return self.inverse(product)[self._at]

    def inverse(self, product: npt.NDArray[np.complex64]) -> FloatArray:
        image: FloatArray = fft.irfft2(product, self._size)
        return image


def _structure(sar: FloatArray, eo: FloatArray, lags: tuple[range, ...]) -> FloatArray:
    """Cosine of the angle between the descriptors of what both share, less their means."""
    correlator = _Correlator(sar.shape, eo.shape, lags)
    a, a_valid = describe_structure(sar, scale=_SCALE, spread=_SPREAD)
    b, b_valid = describe_structure(eo, scale=_SCALE, spread=_SPREAD)
    masks = (
        correlator.spectrum(a_valid.astype(np.float32)),
        correlator.spectrum(b_valid.astype(np.float32)).conj(),
    )
    product = np.zeros_like(masks[0])
    energies = np.zeros(sar.shape, np.float32), np.zeros(eo.shape, np.float32)
    for first, second in zip(a, b, strict=True):
        for channel, valid, energy in zip((first, second), (a_valid, b_valid), energies, strict=True):
            channel[valid] -= channel[valid].mean() if valid.any() else 0
            energy += channel**2
        product += correlator.spectrum(first) * correlator.spectrum(second).conj()
    energy_a = correlator.surface(correlator.spectrum(energies[0]) * masks[1])
    energy_b = correlator.surface(masks[0] * correlator.spectrum(energies[1]).conj())
    shared = correlator.surface(masks[0] * masks[1])
    return _ratio(correlator.surface(product), energy_a * energy_b, shared)


def _ncc(sar: FloatArray, eo: FloatArray, lags: tuple[range, ...]) -> FloatArray:
    """Correlation coefficient of the grey values that both share (Padfield, IEEE TIP 21(5), 2012)."""
    correlator = _Correlator(sar.shape, eo.shape, lags)
    (f, m), (g, n) = _standardise(sar), _standardise(eo)
    F, M, F2 = (correlator.spectrum(part) for part in (f, m, f * f))
    G, N, G2 = (correlator.spectrum(part).conj() for part in (g, n, g * g))
    shared = correlator.surface(M * N)
    count: FloatArray = np.maximum(shared, np.float32(1))
    sum_f, sum_g = correlator.surface(F * N), correlator.surface(M * G)
    spread_f = np.maximum(correlator.surface(F2 * N) - sum_f**2 / count, 0)
    spread_g = np.maximum(correlator.surface(M * G2) - sum_g**2 / count, 0)
    return _ratio(correlator.surface(F * G) - sum_f * sum_g / count, spread_f * spread_g, shared)


def _phase(sar: FloatArray, eo: FloatArray, lags: tuple[range, ...]) -> FloatArray:
    """Correlation of the phases of both spectra alone (Kuglin and Hines, 1975), fine detail counting less."""
    correlator = _Correlator(sar.shape, eo.shape, lags)
    valid = [np.isfinite(image).astype(np.float32) for image in (sar, eo)]
    shared = correlator.surface(correlator.spectrum(valid[0]) * correlator.spectrum(valid[1]).conj())
    product = correlator.spectrum(_taper(sar)) * correlator.spectrum(_taper(eo)).conj()
    strength = np.abs(product)
    phases = product / np.maximum(strength, np.float32(1e-12))
    smooth = correlator.low_pass((strength > 0).astype(np.complex64), _PHASE_SIGMA)
    # What the peak of an image with itself would be.
    peak = float(correlator.inverse(smooth)[0, 0])
    surface = correlator.surface(correlator.low_pass(phases, _PHASE_SIGMA)) / np.float32(max(peak, 1e-12))
    return _ratio(surface, np.full_like(surface, np.float32(peak > 0)), shared)


def _taper(image: FloatArray) -> FloatArray:
    """Return an image less its mean, falling to 0 towards its border and towards holes.

    Both are edges at one place in both images, and would vote for no shift at all.
    """
    valid = np.isfinite(image)
    if not valid.any():
        return np.zeros_like(image)
    inside = np.clip(
        2 * ndimage.gaussian_filter(valid.astype(np.float32), 2 * _SCALE, mode="nearest") - 1, 0, 1
    )
    for axis, length in enumerate(image.shape):
        inside = inside * np.expand_dims(signal.windows.tukey(length, 0.5).astype(np.float32), 1 - axis)
    tapered: FloatArray = np.where(valid, image - image[valid].mean(), np.float32(0)) * inside
    return tapered


def _standardise(image: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return an image with mean 0 and deviation 1 where it is valid and 0 elsewhere, and its mask."""
    mean, valid = smooth_valid(image, _SCALE)
    mask = valid.astype(np.float32)
    if valid.any():
        mean = (mean - mean[valid].mean()) / max(float(mean[valid].std()), 1e-12)
    return mean * mask, mask


def _ratio(product: FloatArray, power: FloatArray, shared: FloatArray) -> FloatArray:
    """Return product / sqrt(power) where enough is shared, NaN elsewhere."""
    enough = (shared >= max(_MIN_OVERLAP * float(shared.max()), 1)) & (
        power > 1e-6 * max(float(power.max()), 1e-12)
    )
    return np.where(enough, product / np.sqrt(np.where(enough, power, 1)), np.float32(np.nan)).astype(
        np.float32
    )


def _peak(surface: FloatArray, origin: tuple[int, int]) -> Match:
    """Find the highest point of a surface, to a fraction of a pixel, and its best rival."""
    known = np.isfinite(surface)
    if not known.any():
        return Match(np.nan, np.nan, 0.0, 1.0, surface, origin)
    filled = np.where(known, surface, -np.inf)
    top = np.unravel_index(int(np.argmax(filled)), surface.shape)
    score, base = float(surface[top]), float(np.median(surface[known]))
    noise = 1.4826 * float(np.median(np.abs(surface[known] - base)))
    rivals = filled == ndimage.maximum_filter(filled, 3)
    rivals[tuple(slice(max(t - _APART + 1, 0), t + _APART) for t in top)] = False
    rival = float(filled[rivals & known].max(initial=base))
    place = [float(t) + find_vertex(filled.take(top[1 - i], 1 - i), int(t)) for i, t in enumerate(top)]
    ratio = (score - base) / max(rival - base, noise, 1e-6)
    return Match(origin[0] + place[0], origin[1] + place[1], score, ratio, surface, origin)


def find_vertex(line: FloatArray, top: int) -> float:
    """Return the offset of a parabola's peak from the highest sample, at most half a sample."""
    if not 0 < top < len(line) - 1:
        return 0.0
    left, middle, right = (float(v) for v in line[top - 1 : top + 2])
    bend = left - 2 * middle + right
    return 0.5 * (left - right) / bend if np.isfinite(bend) and bend < 0 else 0.0


@dataclass
class StructuralAligner:
    """Matches structure in square neighbourhoods, and fits a smooth drift to their shifts.

    A local shift is sure from `min_score` and `min_ratio` on; see `Match`. The defaults are measured on
    Sentinel-1 and Sentinel-2 scenes at 10 m. Of local shifts that score above 0.2, 93 % are within 4 pixels
    of the prediction from distant neighbourhoods; below 0.12, a quarter are. Neighbourhoods of 512 pixels are
    as sure as those of 1024, and follow relief better.
    """

    neighbourhood_px: int = 512
    radius_px: int = 24
    min_score: float = 0.12
    min_ratio: float = 2.0

    def displacement(self, sar: FloatArray, eo: FloatArray) -> LocalShift:
        """Find the shift of one neighbourhood; at the edge of the search it is not sure."""
        found = match(sar, eo, method="structure", radius_px=self.radius_px)
        inside = max(abs(found.rows), abs(found.cols)) <= self.radius_px - 1
        return LocalShift(found.rows, found.cols, found.score, inside and self.is_sure(found, "structure"))

    def is_sure(self, found: Match, method: Method) -> bool:
        """Whether a match is far enough above its rival and, by structure, similar enough."""
        return found.ratio >= self.min_ratio and (method != "structure" or found.score >= self.min_score)

    def drift(self, displacements: Sequence[Displacement]) -> SceneDrift | None:
        """Fit the drift of one scene pair; None if too few shifts agree."""
        return fit_drift(displacements, apart_px=self.neighbourhood_px)


_: type[Aligner] = StructuralAligner

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

_ORIENTATIONS = 8
# Share of the typical contrast below which an edge counts less and less: speckle is not structure.
_FLOOR = 0.5
_REACH = 2.0


def smooth_valid(image: FloatArray, sigma: float) -> tuple[FloatArray, BoolArray]:
    """Smooth an image over its valid pixels by a Gaussian, and tell where holes, NaN, have no influence.

    The mean has no NaN; far from valid pixels it is that of all valid ones. Valid are then pixels with no
    hole within two sigma; the border of the image is not a hole.
    """
    valid = np.isfinite(image)
    if valid.all():
        return ndimage.gaussian_filter(image, sigma, mode="nearest"), valid
    middle = np.float32(image[valid].mean()) if valid.any() else np.float32(0)
    blurred = ndimage.gaussian_filter(np.where(valid, image - middle, np.float32(0)), sigma, mode="nearest")
    weight = ndimage.gaussian_filter(valid.astype(np.float32), sigma, mode="nearest")
    mean = middle + blurred / np.maximum(weight, np.float32(1e-3))
    return mean, ndimage.minimum_filter(valid, 2 * round(_REACH * sigma) + 1, mode="nearest")


def describe_structure(image: FloatArray, *, scale: float, spread: float) -> tuple[FloatArray, BoolArray]:
    """Describe every pixel by the strength of edges around it in eight orientations.

    For SAR the image is the logarithm of amplitude, so that the same ratio is the same edge in dark and
    bright ground; NaN where there is no data. `scale` is the sigma, in pixels, of the Gaussian whose
    derivatives find the edges: large enough for speckle. Edges are gathered over a sigma of `spread`.

    Returns channels, shape (orientation, row, col), not negative, of norm below one at each pixel, 0 where
    there is no data; and where only valid pixels contribute.
    """
    mean, valid = smooth_valid(image, scale)
    down, right = (ndimage.correlate1d(mean, [-0.5, 0, 0.5], axis=axis, mode="nearest") for axis in (0, 1))
    down[~valid] = 0
    right[~valid] = 0
    channels = np.empty((_ORIENTATIONS, *image.shape), np.float32)
    for channel, angle in zip(channels, np.arange(_ORIENTATIONS) * np.pi / _ORIENTATIONS, strict=True):
        np.abs(np.float32(np.cos(angle)) * right + np.float32(np.sin(angle)) * down, out=channel)
        ndimage.gaussian_filter(channel, spread, mode="nearest", output=channel)
    # Neighbouring orientations share a quarter each; the last is the first one's neighbour.
    channels = (np.roll(channels, 1, axis=0) + 2 * channels + np.roll(channels, -1, axis=0)) / 4
    norm = np.sqrt(np.einsum("krc,krc->rc", channels, channels))
    typical = float(np.median(norm[valid])) if valid.any() else 1.0
    channels /= np.maximum(norm, 1e-12) + np.float32(_FLOOR * typical)
    channels[:, ~valid] = 0
    return channels, valid
