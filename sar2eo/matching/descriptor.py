"""A dense description of structure that SAR and EO images of one place share.

Intensities of the two have little in common, but edges of fields, roads, shores and blocks of houses
lie in the same places, whichever side is brighter. So every pixel is described by how strong the
edges around it are in each of a few orientations, without their sign, relative to its own strongest
(the class of CFOG: Ye et al., "Fast and Robust Matching for Multimodal Remote Sensing Image
Registration", IEEE TGRS 57(11), 2019, https://doi.org/10.1109/TGRS.2019.2924684).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["describe", "smoothed"]

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

_ORIENTATIONS = 8
# Share of the typical contrast below which an edge counts less and less: speckle is not structure.
_FLOOR = 0.5
_REACH = 2.0


def smoothed(image: FloatArray, sigma: float) -> tuple[FloatArray, BoolArray]:
    """Gaussian mean over valid pixels, and where it is not bent by a hole.

    Parameters
    ----------
    image : ndarray of float32, shape (row, col)
        NaN where there is no data.
    sigma : float
        Of the Gaussian, in pixels.

    Returns
    -------
    mean : ndarray of float32, shape (row, col)
        Without NaN; far from valid pixels the mean of all of them.
    valid : ndarray of bool, shape (row, col)
        Valid pixels with no hole within two sigma. The border of the image is no hole.
    """
    valid = np.isfinite(image)
    if valid.all():
        return ndimage.gaussian_filter(image, sigma, mode="nearest"), valid
    middle = np.float32(image[valid].mean()) if valid.any() else np.float32(0)
    blurred = ndimage.gaussian_filter(np.where(valid, image - middle, np.float32(0)), sigma, mode="nearest")
    weight = ndimage.gaussian_filter(valid.astype(np.float32), sigma, mode="nearest")
    mean = middle + blurred / np.maximum(weight, np.float32(1e-3))
    return mean, ndimage.minimum_filter(valid, 2 * round(_REACH * sigma) + 1, mode="nearest")


def describe(image: FloatArray, *, scale: float, spread: float) -> tuple[FloatArray, BoolArray]:
    """Describe every pixel by the strength of edges around it in eight orientations.

    Parameters
    ----------
    image : ndarray of float32, shape (row, col)
        NaN where there is no data. For SAR the logarithm of amplitude, so that the same ratio is the
        same edge in dark and bright ground.
    scale : float
        Sigma, in pixels, of the Gaussian whose derivatives find the edges: large enough for speckle.
    spread : float
        Sigma, in pixels, over which edges are gathered.

    Returns
    -------
    channels : ndarray of float32, shape (orientation, row, col)
        Not negative, of norm below one at each pixel; 0 where there is no data.
    valid : ndarray of bool, shape (row, col)
        Where it stands on valid pixels alone.
    """
    mean, valid = smoothed(image, scale)
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
