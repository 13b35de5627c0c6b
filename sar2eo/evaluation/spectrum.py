"""Power and correlation per octave: whether detail is there, and whether it is the truth's.

Noise or sharpening raises the power of fine octaves and not their correlation with the truth; blur
lowers the power. Octave 0 holds wavelengths below 4 pixels, octave k those of 2**(k + 1) to
2**(k + 2) pixels, up to half of the image's shorter side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["OctavePowers", "octave_count", "octave_powers"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OctavePowers:
    """Sums over each octave, from the finest on; they add up over images, of any sizes.

    Parameters
    ----------
    prediction, truth : ndarray of float64, shape (octaves,)
        Squared magnitudes of the spectra.
    cross : ndarray of float64, shape (octaves,)
        Real part of the cross-spectrum.
    """

    prediction: FloatArray
    truth: FloatArray
    cross: FloatArray

    def __add__(self, other: OctavePowers) -> OctavePowers:
        octaves = max(len(self.truth), len(other.truth))

        def total(a: FloatArray, b: FloatArray) -> FloatArray:
            return np.pad(a, (0, octaves - len(a))) + np.pad(b, (0, octaves - len(b)))

        return OctavePowers(
            total(self.prediction, other.prediction),
            total(self.truth, other.truth),
            total(self.cross, other.cross),
        )

    @property
    def ratios(self) -> FloatArray:
        """Power of the prediction over that of the truth; NaN where the truth has none."""
        return _quotient(self.prediction, self.truth)

    @property
    def coherence(self) -> FloatArray:
        """Correlation of both images' parts in the octave, -1 to 1; NaN where one has none."""
        return _quotient(self.cross, np.sqrt(self.prediction * self.truth))


def octave_powers(prediction: npt.ArrayLike, truth: npt.ArrayLike, valid: npt.ArrayLike) -> OctavePowers:
    """Sum spectra over octaves.

    Both images lose their mean over valid pixels and are multiplied by the same window: a Hann window,
    0 where they are invalid.

    Parameters
    ----------
    prediction, truth : array_like, shape (H, W) or (C, H, W)
        Of several bands, the powers are added.
    valid : array_like, shape (H, W)
        True or 1 where pixels count.
    """
    predicted, true = (np.asarray(image, dtype=np.float64) for image in (prediction, truth))
    height, width = true.shape[-2:]
    window = np.outer(_hann(height), _hann(width)) * (np.asarray(valid) > 0)
    spectra = [np.fft.fft2(_centred(image, window) * window) for image in (predicted, true)]
    octaves = _octave_of(height, width)
    count = octave_count(height, width)

    def summed(values: FloatArray) -> FloatArray:
        flat = values.reshape(-1, height * width).sum(axis=0)
        # What is coarser than the coarsest octave goes to one more, which is dropped.
        sums = np.bincount(octaves.ravel(), weights=flat, minlength=count + 1)
        return np.asarray(sums[:count], dtype=np.float64)

    return OctavePowers(
        summed(np.abs(spectra[0]) ** 2),
        summed(np.abs(spectra[1]) ** 2),
        summed((spectra[0] * spectra[1].conj()).real),
    )


def octave_count(height: int, width: int) -> int:
    """Return how many octaves an image has: wavelengths up to half of its shorter side."""
    return max(1, int(np.log2(min(height, width))) - 2)


def _octave_of(height: int, width: int) -> npt.NDArray[np.intp]:
    """Return the octave of each place of a two-dimensional FFT; the count where it is in none."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))  # cycles per pixel
    count = octave_count(height, width)
    lower_edges = 0.5 ** np.arange(2, count + 2)  # 1/4, 1/8 ...
    return np.asarray((radius[..., None] < lower_edges).sum(axis=-1), dtype=np.intp)


def _hann(size: int) -> FloatArray:
    # Half a step off, so that no pixel of the image is left out altogether.
    return np.asarray(np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2)


def _centred(image: FloatArray, window: FloatArray) -> FloatArray:
    weights = (window > 0).astype(np.float64)
    mean = (image * weights).sum(axis=(-2, -1), keepdims=True) / max(weights.sum(), 1.0)
    return np.asarray(image - mean)


def _quotient(over: FloatArray, under: FloatArray) -> FloatArray:
    return np.divide(over, under, out=np.full_like(over, np.nan), where=under > 0)
