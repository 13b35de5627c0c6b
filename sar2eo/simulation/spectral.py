"""Seeded random fields with a power-law spectrum."""

from __future__ import annotations

import math
import zlib

import numpy as np
import numpy.typing as npt
from scipy import fft, sparse

__all__ = ["FloatArray", "resized", "smoothstep", "spectral_noise", "stream"]

FloatArray = npt.NDArray[np.float32]


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the random stream of one named purpose.

    A stream of its own for each purpose: what one part of the simulator draws does not move what another
    draws.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))


def spectral_noise(
    draw: np.random.Generator,
    shape: tuple[int, int],
    *,
    longest: float,
    shortest: float = 2.0,
    slope: float = 2.0,
) -> FloatArray:
    """Draw a Gaussian random field, mean 0 and standard deviation 1.

    Parameters
    ----------
    draw : Generator
        Random stream.
    shape : tuple of int
        Rows and columns.
    longest, shortest : float
        Wavelengths in pixels between which the amplitude spectrum falls as ``frequency ** -slope``: flat
        below, nothing above. A field without short waves is drawn on a coarser grid and interpolated.
    slope : float
        Of the amplitude spectrum.

    Returns
    -------
    ndarray of float32
        Shape `shape`.
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
    return field[: shape[0], : shape[1]] if step == 1 else resized(field, shape, step)


def resized(coarse: FloatArray, shape: tuple[int, int], step: int) -> FloatArray:
    """Interpolate a field known at every `step`-th pixel to a finer shape.

    By cubic B-splines without prefilter, which are smooth up to the second derivative. The field is repeated
    at its border.
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
    pointers = np.arange(fine + 1) * 4
    return sparse.csr_array(
        ((weights / 6).astype(np.float32).ravel(), columns.ravel(), pointers), shape=(fine, coarse)
    )


def smoothstep(field: npt.NDArray[np.floating], low: float, high: float) -> FloatArray:
    """Rise smoothly from 0 at `low` to 1 at `high`."""
    t = np.clip((field - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32, copy=False)
    ramp: FloatArray = t * t * (3 - 2 * t)
    return ramp
