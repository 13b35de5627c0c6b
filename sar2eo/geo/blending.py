"""Blending of overlapping tiles: weights along each axis, and tiles gathered into blocks.

Two neighbours crossfade linearly over one band as wide as the lattice's overlap, in the middle of what they
share; elsewhere one tile alone counts. Along an axis the weights are ``w_i = rise_i * fall_i``, the result is
``sum(w x) / sum(w)``. The lattice is a full product of rows and columns, so the axes separate: weights are
normalised once for each. There is no taper at the scene's edge and no epsilon in a denominator. The last tile
is pulled back to the edge and shares more with its neighbour than the overlap; a wider band there would only
average two pictures of the same texture, which blurs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sar2eo.geo.windows import Lattice, Window

FloatArray = npt.NDArray[np.float32]
Fetch = Callable[[int, slice, slice], "npt.NDArray[Any] | None"]


@dataclass(frozen=True)
class Span:
    """A run of pixels along one axis to which the same tiles contribute."""

    start: int  # first pixel in the scene
    stop: int  # the one after the last
    # Position of each tile along the axis, and its normalised weight at each pixel, shape (stop - start,).
    members: tuple[tuple[int, FloatArray], ...]


def axis_weights(origins: tuple[int, ...], tile: int, overlap: int) -> npt.NDArray[np.float64]:
    """Compute the weights of every tile along one axis, not normalised; shape (tile number, tile), float64.

    `origins` are the tiles' first pixels, `overlap` is the width of the crossfades. Weights are from 0 to 1;
    their sum over tiles is positive at every pixel that a tile covers.
    """
    weights = np.ones((len(origins), tile))
    at = np.arange(tile)
    for left, (first, second) in enumerate(itertools.pairwise(origins)):
        shared = first + tile - second
        begin = second + (shared - overlap) // 2
        for window, origin, falling in ((left, first, True), (left + 1, second, False)):
            rise = np.clip((at + origin - begin + 0.5) / max(overlap, 1), 0, 1)
            if overlap == 0:
                rise = (at + origin >= begin).astype(float)
            weights[window] *= 1 - rise if falling else rise
    return weights


@lru_cache(maxsize=64)
def axis_spans(origins: tuple[int, ...], tile: int, overlap: int) -> tuple[Span, ...]:
    """Cut an axis into spans with the same tiles throughout, in order and without gaps."""
    weights = axis_weights(origins, tile, overlap)
    stop = origins[-1] + tile
    total = np.zeros(stop)
    edges = {0, stop}
    for origin, weight in zip(origins, weights, strict=True):
        total[origin : origin + tile] += weight
        counts = np.flatnonzero(weight > 0)
        edges |= {origin + int(counts[0]), origin + int(counts[-1]) + 1}
    spans = []
    cuts = sorted(edges)
    for begin, end in itertools.pairwise(cuts):
        members = tuple(
            (i, (weights[i, begin - origin : end - origin] / total[begin:end]).astype(np.float32))
            for i, origin in enumerate(origins)
            if origin <= begin and end <= origin + tile and weights[i, begin - origin] > 0
        )
        spans.append(Span(begin, end, members))
    return tuple(spans)


def gather_block(
    block: Window, lattice: Lattice, bands: int, dtype: npt.DTypeLike, fetch: Fetch
) -> npt.NDArray[Any]:
    """Blend the tiles under a block of the scene: ``sum(w x) / sum(w)``, shape (bands, height, width).

    Where a single tile counts, its values are unchanged. `dtype` is uint8 (rounded to nearest) or a float
    type. ``fetch(index, rows, cols)`` returns shape (bands, rows, cols) of one tile, by slices within it.
    None is a tile without a valid pixel, which was skipped: its pixels count as 0, and all are masked later.
    """
    out = np.zeros((bands, block.height, block.width), dtype)
    for rows in _clip(axis_spans(lattice.rows, lattice.tile, lattice.overlap), block.row, block.stop_row):
        for cols in _clip(axis_spans(lattice.cols, lattice.tile, lattice.overlap), block.col, block.stop_col):
            inside = (
                slice(rows.start - block.row, rows.stop - block.row),
                slice(cols.start - block.col, cols.stop - block.col),
            )
            _blend_span(out[:, *inside], rows, cols, lattice, fetch)
    return out


def _blend_span(out: npt.NDArray[Any], rows: Span, cols: Span, lattice: Lattice, fetch: Fetch) -> None:
    alone = len(rows.members) == 1 and len(cols.members) == 1
    total: FloatArray | None = None
    for i, row_weights in rows.members:
        top = lattice.rows[i]
        for j, col_weights in cols.members:
            left = lattice.cols[j]
            piece = fetch(
                i * len(lattice.cols) + j,
                slice(rows.start - top, rows.stop - top),
                slice(cols.start - left, cols.stop - left),
            )
            if piece is None:
                continue
            if alone:
                out[...] = piece
                return
            weighted = piece * (row_weights[:, None] * col_weights)
            total = weighted if total is None else np.add(total, weighted, out=total)
    if total is not None:
        out[...] = np.rint(total) if out.dtype.kind == "u" else total


def _clip(spans: tuple[Span, ...], start: int, stop: int) -> list[Span]:
    """Cut spans to the pixels from `start` to `stop`."""
    clipped = []
    for span in spans:
        begin, end = max(span.start, start), min(span.stop, stop)
        if begin < end:
            part = slice(begin - span.start, end - span.start)
            clipped.append(Span(begin, end, tuple((i, weight[part]) for i, weight in span.members)))
    return clipped


def upsample(field: FloatArray, factor: int, rows: slice, cols: slice) -> FloatArray:
    """Upsample a part of a field bilinearly, with aligned pixel centres and repeated edges.

    A pixel is the same sum whatever part is asked for (the last bits of a matrix product would depend on its
    size). `field` has shape (h, w); `rows` and `cols` are the part, in pixels of the whole result of shape (h
    * factor, w * factor).
    """
    low, high, share = _neighbours(field.shape[0], factor, rows)
    stretched = field[low] * (1 - share[:, None]) + field[high] * share[:, None]
    low, high, share = _neighbours(field.shape[1], factor, cols)
    upsampled: FloatArray = stretched[:, low] * (1 - share) + stretched[:, high] * share
    return upsampled


def _neighbours(size: int, factor: int, part: slice) -> tuple[Any, Any, FloatArray]:
    """Return the samples before and after each pixel of a part of an axis, and the share of the latter."""
    at = np.clip((np.arange(part.start, part.stop) + 0.5) / factor - 0.5, 0, size - 1)
    low = at.astype(int)
    return low, np.minimum(low + 1, size - 1), (at - low).astype(np.float32)
