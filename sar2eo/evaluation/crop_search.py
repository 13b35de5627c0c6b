"""Look for a crop of a picture in the true one: by the orientation of its edges (structure), and by grey.

A crop is found where it lies if the best of all places is within `FOUND_PX` of it, and of the offset that the
radar has from the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

FOUND_PX, NEAR_PX = 5, 10
"""Distance of what is found, and of what is near enough to tell the radar's offset."""

LEAST_PX = 64
"""Shorter side of the smallest image whose crops are looked for."""

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_BINS, _SMOOTHING_PX, _POOLING_PX = 8, 1.5, 2
_FLAT = 1e-3  # standard deviation, in levels of bytes
_FEW = 3

FloatArray = npt.NDArray[np.floating[Any]]


def to_grey(image: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Return the luminance of images, shape (..., 3, H, W), as shape (..., H, W)."""
    return np.asarray(np.moveaxis(image.astype(np.float32), -3, -1) @ _LUMINANCE)


def describe_orientations(grey: FloatArray) -> npt.NDArray[np.float32]:
    """Return smoothed histograms of gradient orientation as unit vectors, shape (8, H, W)."""
    smooth = ndimage.gaussian_filter(grey, _SMOOTHING_PX)
    down, right = ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1)
    strength = np.hypot(right, down)
    angle = (np.arctan2(down, right) % np.pi) / np.pi * _BINS
    share, lower = np.modf(angle)
    histogram = np.zeros((_BINS, *grey.shape), np.float32)
    # A pixel's two bins differ: neither overwrites the other.
    for part, index in ((1 - share, lower), (share, lower + 1)):
        np.put_along_axis(histogram, index[None].astype(int) % _BINS, (strength * part)[None], 0)
    histogram = ndimage.gaussian_filter(histogram, (0, _POOLING_PX, _POOLING_PX))
    length = np.sqrt((histogram**2).sum(0)) + 1e-2 * strength.mean() + 1e-6
    return np.asarray(histogram / length, np.float32)


def find_crop(prediction: FloatArray, truth: FloatArray) -> npt.NDArray[np.float64]:
    """Look for the middle of a picture, of half its sides, in the whole of another.

    Parameters
    ----------
    prediction, truth : ndarray of float32, shape (H, W)
        Grey images in levels of bytes.

    Returns
    -------
    ndarray, shape (2, 2)
        Row and column, in pixels from where the crop was cut, of its best place by structure and by grey. NaN
        if the images are smaller than `LEAST_PX`; infinite if the crop is flat, which is never found.
    """
    if min(truth.shape) < LEAST_PX:
        return np.full((2, 2), np.nan)
    (height, width), (top, left) = ([side // part for side in truth.shape] for part in (2, 4))
    inside = np.s_[..., top : top + height, left : left + width]
    if prediction[inside].std() < _FLAT:
        return np.full((2, 2), np.inf)
    window = (height, width)
    crop, whole = (describe_orientations(image) for image in (prediction, truth))
    structure = _find_peak(crop[inside], whole, _sum_windows((whole**2).sum(0), window))
    crop, whole = (ndimage.gaussian_filter(image, _SMOOTHING_PX) for image in (prediction[inside], truth))
    crop, whole = crop - crop.mean(), whole - whole.mean()
    mean, square = (_sum_windows(whole**power, window) / crop.size for power in (1, 2))
    grey = _find_peak(crop[None] / crop.size, whole[None], square - mean**2)
    return np.subtract((structure, grey), (top, left)).astype(np.float64)


def measure_offsets(shifts: FloatArray, places: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return each image's offset of the radar from the truth: its place's median of what lies near.

    Both have shape (images, 2). A place with fewer than three such images has the median of all.
    """
    names = np.asarray(places)
    near = np.abs(shifts).max(axis=1) <= NEAR_PX
    offsets = np.zeros(shifts.shape)
    for name in np.unique(names):
        own = near & (names == name)
        chosen = own if own.sum() >= _FEW else near
        if chosen.any():
            offsets[names == name] = np.median(shifts[chosen], axis=0)
    return offsets


def is_found(shifts: FloatArray, offset: FloatArray) -> npt.NDArray[np.float64]:
    """Tell which shifts, shape (..., 2), are where the offset says: 1 or 0, or NaN as they are."""
    found = np.abs(shifts - offset).max(axis=-1)
    return np.where(np.isnan(found), np.nan, found <= FOUND_PX)


def _find_peak(crop: FloatArray, whole: FloatArray, power: FloatArray) -> tuple[np.intp, ...]:
    """Return the place of a stack of channels where its product with the crop is highest for its power."""
    shape = whole.shape[-2:]
    product = np.conj(fft.rfft2(crop, s=shape)) * fft.rfft2(whole)
    rows, cols = power.shape
    score = fft.irfft2(product.sum(0), s=shape)[:rows, :cols] / np.sqrt(np.maximum(power, 1e-6))
    return np.unravel_index(score.argmax(), score.shape)


def _sum_windows(image: FloatArray, window: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Sum an image over a window at every place."""
    sums = np.pad(image.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))
    rows = sums[window[0] :] - sums[: -window[0]]
    return np.asarray(rows[:, window[1] :] - rows[:, : -window[1]])
