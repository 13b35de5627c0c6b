"""Starting noise that belongs to the place in the scene, not to the tile or the batch.

Each latent pixel of a scene has its own block of a counter-based generator (Philox 4x64-10, Salmon et
al. 2011, https://doi.org/10.1145/2063384.2063405), addressed by column, row, group of four channels
and sample, under the seed as key. So the noise of any tile can be drawn by itself, and tiles that
overlap start from the same noise. Normal values come from Box-Muller, which uses a fixed number of
words per value; a ziggurat would not be random-access.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sar2eo.errors import SettingsError

_LANES = 4  # words of one Philox block; as many normal values


def draw_scene_noise(
    seed: int, rows: range, cols: range, channels: int, sample: int = 0
) -> npt.NDArray[np.float32]:
    """Draw the normal noise of a rectangle of a scene's latent grid.

    A pure function of (seed, sample, latent row, latent column, channel): what else is asked for does
    not change it.

    Parameters
    ----------
    seed : int
        0 to 2**64 - 1.
    rows, cols : range
        Latent rows and columns of the whole scene's grid, not negative, of step 1.
    channels : int
        Latent channels.
    sample : int
        Which of several independent draws, from 0.

    Returns
    -------
    ndarray of float32, shape (channels, rows, cols)
        Standard normal, computed in float64.
    """
    for name, value in {"seed": seed, "sample": sample}.items():
        if not 0 <= value < 2**64:
            raise SettingsError(f"{name}={value}: must be 0 to 2**64 - 1")
    groups = -(-channels // _LANES)
    words = np.empty((groups, len(rows), len(cols), _LANES), dtype=np.uint64)
    for group in range(groups):
        for i, row in enumerate(rows):
            words[group, i] = _draw_row_words(seed, sample, group, row, cols)
    values = _to_normal(words)  # [G, h, w, 4]
    by_channel = values.transpose(0, 3, 1, 2).reshape(groups * _LANES, len(rows), len(cols))
    return np.ascontiguousarray(by_channel[:channels])


def _draw_row_words(seed: int, sample: int, group: int, row: int, cols: range) -> npt.NDArray[np.uint64]:
    """Return the raw words of neighbouring latent pixels, shape (col, 4)."""
    counter = cols.start + (row << 64) + (group << 128) + (sample << 192)
    # numpy's Philox increments its counter before the first output.
    generator = np.random.Philox(key=seed, counter=(counter - 1) % 2**256)
    return generator.random_raw(_LANES * len(cols)).reshape(len(cols), _LANES)


def _to_normal(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Turn pairs of words along the last axis into pairs of normal values."""
    unit = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1)
    radius = np.sqrt(-2.0 * np.log1p(-unit[..., 0::2]))
    angle = 2.0 * np.pi * unit[..., 1::2]
    values = np.empty(words.shape, dtype=np.float32)
    values[..., 0::2] = radius * np.cos(angle)
    values[..., 1::2] = radius * np.sin(angle)
    return values
