"""Seams: whether an image shows where the windows were that it was made of.

A border is where a window begins or ends to count: its gradient is held against that of the lines a
multiple of the model's factor away, which lie alike in the grid of the latents (a decoder may leave a
pattern of that period, which is none of the windows'). A band is where two windows are blended: averaging
two pictures of one texture makes it faint, so its energy is held against that of the bands beside it. How far
the two are apart is told by the windows themselves, before they are blended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sar2eo.geo.blending import axis_spans
from sar2eo.geo.windows import Lattice

__all__ = ["Seams", "measure_disagreement", "measure_seams"]

FloatArray = npt.NDArray[np.float64]

_AWAY = (-2, -1, 1, 2)  # comparison lines, in factors from the border


@dataclass(frozen=True)
class Seams:
    """How much an image shows its windows; 1 is not at all.

    Parameters
    ----------
    border_ratio : float
        Mean absolute gradient across the borders of windows, over the same a few pixels away.
    texture_ratio : float
        Power of the image's detail where windows overlap, over that beside it.
    border_samples, texture_samples : int
        Pairs of valid pixels, and valid pixels, that were compared.
    """

    border_ratio: float
    texture_ratio: float
    border_samples: int
    texture_samples: int


def measure_seams(image: npt.NDArray[np.uint8], valid: npt.NDArray[np.bool_], lattice: Lattice) -> Seams:
    """Measure seams of a translated image.

    Parameters
    ----------
    image : ndarray of uint8, shape (B, H, W)
        Of the whole scene.
    valid : ndarray of bool, shape (H, W)
    lattice : Lattice
        That the image was made on.

    Returns
    -------
    Seams
        NaN where nothing could be compared: a lattice of one window, or without overlap.
    """
    lines, bands = np.zeros((2, 2)), np.zeros((2, 2))
    origins = (lattice.rows, lattice.cols)
    for axis, starts in enumerate(origins):
        # The axis across which is measured comes last; the other is read in pieces.
        turned = image if axis == 1 else image.swapaxes(1, 2)
        seen = valid if axis == 1 else valid.swapaxes(0, 1)
        spans = axis_spans(starts, lattice.tile, lattice.overlap)
        edges = [span.start for span in spans[1:]]
        overlaps = [(span.start, span.stop) for span in spans if len(span.members) > 1]
        for first in range(0, seen.shape[0], lattice.tile):
            part = turned[:, first : first + lattice.tile].astype(np.float64)
            there = seen[first : first + lattice.tile]
            lines += _lines(part, there, edges, lattice.factor)
            bands += _bands(part, there, overlaps)
    return Seams(
        border_ratio=_ratio(lines),
        texture_ratio=_ratio(bands),
        border_samples=int(lines[0, 1]),
        texture_samples=int(bands[0, 1]),
    )


def measure_disagreement(
    window: Callable[[int], npt.NDArray[np.uint8]], lattice: Lattice, *, pairs: int = 64, seed: int = 0
) -> float:
    """Measure how far neighbouring windows are apart where both show the same place.

    Parameters
    ----------
    window : callable
        Index in the lattice to pixels, shape (B, tile, tile).
    lattice : Lattice
        Of the windows.
    pairs : int, optional (default: 64)
        Neighbours that are compared, at the most.
    seed : int, optional (default: 0)
        Of the choice of them.

    Returns
    -------
    float
        Mean absolute difference in levels; NaN where no two windows overlap.
    """
    numbers = np.arange(len(lattice)).reshape(len(lattice.rows), len(lattice.cols))
    beside = zip(numbers[:, :-1].flat, numbers[:, 1:].flat, strict=True)
    below = zip(numbers[:-1].flat, numbers[1:].flat, strict=True)
    neighbours = [*beside, *below]
    chosen = np.random.default_rng(seed).permutation(len(neighbours))[:pairs]
    found = np.zeros(2)
    for first, second in (neighbours[at] for at in sorted(chosen)):
        shared = lattice[first].intersection(lattice[second])
        if shared is not None:
            parts = [
                window(index)[:, *shared.shifted(-lattice[index].row, -lattice[index].col).slices]
                for index in (first, second)
            ]
            apart = np.abs(parts[0].astype(np.int16) - parts[1])
            found += (apart.sum(), apart.size)
    return float(found[0] / found[1]) if found[1] else float("nan")


def _lines(image: FloatArray, valid: npt.NDArray[np.bool_], edges: list[int], factor: int) -> FloatArray:
    """Return sums and counts of absolute differences across borders (first row) and beside them."""
    found = np.zeros((2, 2))
    size = image.shape[2]
    for edge in edges:
        beside = [edge + away * factor for away in _AWAY]
        for row, columns in enumerate(((edge,), beside)):
            found[row] += sum((_step(image, valid, col) for col in columns if 0 < col < size), np.zeros(2))
    return found


def _step(image: FloatArray, valid: npt.NDArray[np.bool_], col: int) -> FloatArray:
    both = valid[:, col - 1] & valid[:, col]
    steps = np.abs(image[:, both, col] - image[:, both, col - 1])
    return np.array([steps.sum(), steps.size])


def _bands(image: FloatArray, valid: npt.NDArray[np.bool_], overlaps: list[tuple[int, int]]) -> FloatArray:
    """Return sums and counts of the power of detail inside of overlaps (first row) and beside them."""
    found = np.zeros((2, 2))
    size = image.shape[2]
    for start, stop in overlaps:
        width = stop - start
        beside = [(start - width, start), (stop, stop + width)]
        for row, bands in enumerate(([(start, stop)], beside)):
            for first, last in bands:
                if first > 0 and last < size:
                    found[row] += _detail(image[:, :, first - 1 : last + 1], valid[:, first - 1 : last + 1])
    return found


def _detail(image: FloatArray, valid: npt.NDArray[np.bool_]) -> FloatArray:
    """Return sum and count of the squared second difference along the band, where its pixels are valid.

    Along, not across: what crossfades is a step across, and none of its texture.
    """
    inner, seen = image[:, :, 1:-1], valid[:, 1:-1]
    second = inner[:, :-2] - 2 * inner[:, 1:-1] + inner[:, 2:]
    whole = seen[:-2] & seen[1:-1] & seen[2:]
    power = np.square(second[:, whole])
    return np.array([power.sum(), power.size])


def _ratio(sums: FloatArray) -> float:
    """Return the quotient of two means, given as rows of sum and count."""
    if not sums[:, 1].all():
        return float("nan")
    means = sums[:, 0] / sums[:, 1]
    return float(means[0] / means[1]) if means[1] else float("nan")
