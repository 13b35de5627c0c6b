"""Seams: whether an image shows where the tiles were that it was made of.

A border is where a tile begins or ends to count. Its gradient is compared with those a multiple of the
model's factor away, which lie alike in the grid of the latents (a decoder may leave a pattern of that
period). A band is where two tiles are blended. Averaging two pictures of one texture makes it faint, so its
detail is compared with that of the bands beside it.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sar2eo.geo.blending import axis_spans
from sar2eo.geo.windows import Lattice

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Seams(NamedTuple):
    """How much an image shows its tiles: ratios of 1 are not at all, NaN is nothing to compare."""

    border_ratio: float  # mean absolute gradient across the borders of tiles, over the same a few pixels away
    texture_ratio: float  # power of the image's detail where tiles overlap, over that beside it
    border_samples: int
    texture_samples: int


def measure_seams(image: npt.NDArray[np.uint8], valid: Mask, lattice: Lattice) -> Seams:
    """Measure seams of a translated image of shape (B, H, W), made on a lattice."""
    lines, bands = np.zeros((2, 2)), np.zeros((2, 2))
    for axis, starts in enumerate((lattice.rows, lattice.cols)):
        # The axis across which is measured comes last; the other is read in pieces.
        turned, seen = (image, valid) if axis == 1 else (image.swapaxes(1, 2), valid.T)
        spans = axis_spans(starts, lattice.tile, lattice.overlap)
        edges = [span.start for span in spans[1:]]
        overlaps = [(span.start, span.stop) for span in spans if len(span.members) > 1]
        for first in range(0, seen.shape[0], lattice.tile):
            part = turned[:, first : first + lattice.tile].astype(np.float64)
            known = seen[first : first + lattice.tile]
            lines += compare_lines(part, known, edges, lattice.factor)
            bands += compare_bands(part, known, overlaps)
    return Seams(ratio(lines), ratio(bands), int(lines[0, 1]), int(bands[0, 1]))


def compare_lines(image: Array, valid: Mask, edges: list[int], factor: int) -> Array:
    """Return sums and counts of absolute differences across borders (first row) and beside them."""
    found = np.zeros((2, 2))
    for edge in edges:
        beside = [edge + away * factor for away in (-2, -1, 1, 2)]
        for row, columns in enumerate(((edge,), beside)):
            for col in columns:
                if 0 < col < image.shape[2]:
                    both = valid[:, col - 1] & valid[:, col]
                    steps = np.abs(image[:, both, col] - image[:, both, col - 1])
                    found[row] += steps.sum(), steps.size
    return found


def compare_bands(image: Array, valid: Mask, overlaps: list[tuple[int, int]]) -> Array:
    """Return sums and counts of the power of detail in overlaps (first row) and beside them.

    The detail is the second difference along the band: a crossfade is a step across it, not its texture.
    """
    found = np.zeros((2, 2))
    for start, stop in overlaps:
        beside = [(2 * start - stop, start), (stop, 2 * stop - start)]
        for row, bands in enumerate(([(start, stop)], beside)):
            for first, last in bands:
                if first > 0 and last < image.shape[2]:
                    inner, seen = image[:, :, first:last], valid[:, first:last]
                    second = inner[:, :-2] - 2 * inner[:, 1:-1] + inner[:, 2:]
                    power = np.square(second[:, seen[:-2] & seen[1:-1] & seen[2:]])
                    found[row] += power.sum(), power.size
    return found


def ratio(sums: Array) -> float:
    """Return the quotient of two means, given as rows of sum and count."""
    if not sums[:, 1].all():
        return float("nan")
    means = sums[:, 0] / sums[:, 1]
    return float(means[0] / means[1]) if means[1] else float("nan")
