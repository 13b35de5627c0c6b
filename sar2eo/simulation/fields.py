"""Settings of a simulated scene, and seeded random fields with a power-law spectrum."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, sparse

from sar2eo.errors import PolarisationError, SettingsError
from sar2eo.geo.radiometry import POLARISATIONS

FloatArray = npt.NDArray[np.float32]

MARGIN = 48
"""Pixels of landscape around the scene, so that its edges are like its middle. The same for every shift."""

MAX_SHIFT = 32.0
"""Largest shift along one axis, in pixels; the rest of the margin is for displacement by relief."""

MIN_SIZE, MAX_SIZE = 64, 8192

GSD_M = 10.0
"""Ground sample distance."""


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """Settings of a simulated pair of scenes; the same settings give the same pixels.

    Parameters
    ----------
    size : int or tuple of int
        Rows and columns, or one number for both.
    seed : int
        Seed of the landscape, the objects and the speckle.
    polarisations : tuple of str
        Bands of the SAR scene, in order.
    shift : tuple of float
        Shift of the SAR against the EO, in pixels down and to the right, also fractions. What the EO shows
        at ``(row, col)`` the SAR shows at ``(row + shift[0], col + shift[1])``.
    nodata_edges : bool
        Whether slanted edges of the two products cut the scene.
    discrepancies : bool
        Whether some of the planted objects differ between the two dates. Else both sensors see all of
        them, in the same places.
    """

    size: int | tuple[int, int] = 2048
    seed: int = 1
    polarisations: tuple[str, ...] = ("VH",)
    shift: tuple[float, ...] = (0.0, 0.0)
    nodata_edges: bool = True
    discrepancies: bool = True

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or not all(MIN_SIZE <= n <= MAX_SIZE for n in self.shape):
            raise SettingsError(
                f"size={self.size}: rows and columns must be from {MIN_SIZE} to {MAX_SIZE} pixels"
            )
        if self.seed < 0:
            raise SettingsError(f"seed={self.seed}: must not be negative")
        if len(self.shift) != 2 or not all(math.isfinite(s) and abs(s) <= MAX_SHIFT for s in self.shift):
            raise SettingsError(
                f"shift={self.shift}: must be two numbers, rows and columns, of at most {MAX_SHIFT:g} pixels"
            )
        known = set(self.polarisations) <= set(POLARISATIONS)
        if not self.polarisations or not known or len(set(self.polarisations)) < len(self.polarisations):
            raise PolarisationError(
                f"polarisations={self.polarisations}: must be some of {', '.join(POLARISATIONS)}, each once"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def canvas(self) -> tuple[int, int]:
        """Rows and columns with the margin."""
        return self.shape[0] + 2 * MARGIN, self.shape[1] + 2 * MARGIN


def pixels(metres: float) -> float:
    """Return a length on the ground in pixels."""
    return metres / GSD_M


def stream(seed: int, name: str) -> np.random.Generator:
    """Return a random generator of one named purpose: what one part draws does not change another part."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))


def spectral_noise(
    draw: np.random.Generator,
    shape: tuple[int, int],
    *,
    longest: float,
    shortest: float = 2.0,
    slope: float = 2.0,
) -> FloatArray:
    """Draw a Gaussian random field of a shape, with mean 0 and standard deviation 1.

    Between the wavelengths `longest` and `shortest`, in pixels, the amplitude spectrum falls as
    ``frequency ** -slope``; it is flat below, and 0 above. A field without short waves is drawn on a coarser
    grid and interpolated.
    """
    step = max(1, int(shortest / 4))
    coarse = [math.ceil(n / step) + 4 for n in shape]
    size = [fft.next_fast_len(n, real=True) for n in coarse]
    spectrum = fft.rfft2(draw.standard_normal(size, dtype=np.float32))
    row = np.fft.fftfreq(size[0], step).astype(np.float32)[:, None]
    col = np.fft.rfftfreq(size[1], step).astype(np.float32)[None, :]
    squared = row * row + col * col
    gain = (1 + squared * np.float32(longest) ** 2) ** np.float32(-slope / 2)
    gain *= np.exp(-squared * np.float32(shortest) ** 2)
    gain[0, 0] = 0
    field: FloatArray = fft.irfft2(spectrum * gain, s=size)[: coarse[0], : coarse[1]]
    field -= field.mean()
    field /= field.std()
    return field[: shape[0], : shape[1]] if step == 1 else resize(field, shape, step)


def resize(coarse: FloatArray, shape: tuple[int, int], step: int) -> FloatArray:
    """Interpolate a field known at every `step`-th pixel to a finer shape, repeating it at its border.

    By cubic B-splines without prefilter, which are smooth up to the second derivative.
    """
    rows = _spline_matrix(shape[0], coarse.shape[0], step) @ coarse
    fine: FloatArray = np.ascontiguousarray((_spline_matrix(shape[1], coarse.shape[1], step) @ rows.T).T)
    return fine


def _spline_matrix(fine: int, coarse: int, step: int) -> sparse.csr_array:
    at = np.arange(fine) / step
    left = np.floor(at).astype(int)
    t = at - left
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
    )
    columns = np.clip(left[:, None] + np.arange(-1, 3), 0, coarse - 1)
    values = (weights / 6).astype(np.float32).ravel()
    return sparse.csr_array((values, columns.ravel(), np.arange(fine + 1) * 4), shape=(fine, coarse))


def smoothstep(field: npt.NDArray[np.floating], low: float, high: float) -> FloatArray:
    """Rise smoothly from 0 at `low` to 1 at `high`."""
    t = np.clip((field - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32, copy=False)
    ramp: FloatArray = t * t * (3 - 2 * t)
    return ramp
