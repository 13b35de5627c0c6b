"""The moving scene read where a transform finds it, on the reference's grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import floor
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

from sar2eo.coregistration.transforms import MovingTransform
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import to_amplitude
from sar2eo.geo.windows import Window
from sar2eo.scenes.geolocation import AffineMapping, Mapping
from sar2eo.scenes.identity import digest
from sar2eo.scenes.reader import FloatArray, SceneReader
from sar2eo.scenes.warp import LOBES, WarpedReader, from_amplitude, lanczos_taps, read_padded, split_in_half

__all__ = ["MovedMapping", "MovedReader", "lanczos_at", "moved_mapping"]

Array = npt.NDArray[np.float64]

_TILE = 512
_SOURCE_PIXELS = 1 << 21
# Positions are taken to this part of a pixel; nothing finer is known.
_PHASES = 1024


@dataclass(frozen=True, eq=False)
class MovedMapping:
    """From ground coordinates of the reference to pixels of the moving scene, through a transform.

    Parameters
    ----------
    base : Mapping
        Of the moving scene, by its own georeference.
    base_crs : str
        Of the ground coordinates that `base` takes.
    grid : Grid
        Of the reference.
    transform : MovingTransform
    """

    base: Mapping
    base_crs: str
    grid: Grid
    transform: MovingTransform

    def pixels(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return rows and columns; see `sar2eo.scenes.geolocation.Mapping`."""
        a, b, c, d, e, f = (~self.grid.affine)[:6]
        places = np.column_stack([(d * x + e * y + f).ravel(), (a * x + b * y + c).ravel()])
        rows, cols = ((places + self.transform.shifts(places)).T).reshape(2, *x.shape)
        a, b, c, d, e, f = self.grid.transform
        moved = a * cols + b * rows + c, d * cols + e * rows + f
        if self.base_crs != self.grid.crs:
            moved = _transformer(str(self.grid.crs), self.base_crs).transform(*moved)
        return self.base.pixels(*moved)

    def ground(self, rows: Array, cols: Array) -> tuple[Array, Array]:
        """Not known: a transform is not inverted, and nobody asks."""
        raise NotImplementedError

    def token(self) -> str:
        """Return a short text that differs where the maps differ."""
        return digest([self.base.token(), self.base_crs, list(self.grid.transform), self.transform.facts()])


@lru_cache(maxsize=8)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def moved_mapping(reader: SceneReader, grid: Grid, transform: MovingTransform) -> MovedMapping:
    """Return how the reference's grid maps to a scene's stored pixels.

    A scene that is warped as it is opened is so interpolated once, from its stored pixels.

    Parameters
    ----------
    reader : SceneReader
        Of the moving scene.
    grid : Grid
        Of the reference.
    transform : MovingTransform
    """
    if isinstance(reader, WarpedReader):
        return MovedMapping(reader.mapping, str(reader.grid.crs), grid, transform)
    return MovedMapping(AffineMapping(reader.grid, str(grid.crs)), str(grid.crs), grid, transform)


@dataclass(frozen=True, eq=False)
class MovedReader(SceneReader):
    """Read a scene through a transform, by a Lanczos kernel of three lobes; SAR in amplitude.

    Where target pixels are at least twice as large as source pixels, these are averaged (SAR in intensity)
    as `sar2eo.scenes.warp.WarpedReader` does.

    Parameters
    ----------
    source : SceneReader
        In its own frame.
    mapping : MovedMapping
    grid : Grid
        Of the reference.
    quantity : str or None
        What SAR values are; None: of an optical scene, interpolated as they are.
    nearest : tuple of bool
        Of the bands: whether they hold classes, of which the nearest is taken.
    """

    source: SceneReader
    mapping: MovedMapping
    grid: Grid
    quantity: str | None
    nearest: tuple[bool, ...]

    block_shape = (_TILE, _TILE)

    @property
    def polarisations(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the source."""
        return self.source.polarisations

    @cached_property
    def _placed(self) -> WarpedReader:
        return WarpedReader(self.source, self.mapping, self.grid, self.quantity or "intensity")

    def read(self, window: Window) -> FloatArray:
        """Read a window; see `SceneReader.read`."""
        out = np.full((len(self.nearest), window.height, window.width), np.nan, dtype=np.float32)
        for part in window.tiles(_TILE, _TILE):
            tile = out[:, *part.shifted(-window.row, -window.col).slices]
            rows, cols = self._placed.source_pixels(part)
            if not all(self.nearest):
                if self._placed.factors == (1, 1):
                    self._fill(tile, rows, cols)
                else:
                    tile[:] = self._placed.read(part)
            if any(self.nearest):
                self._fill_nearest(tile, rows, cols)
        return out

    def identity(self) -> dict[str, Any]:
        """Return the source's identity and what the pixels depend on."""
        return {**self.source.identity(), "moved": self.mapping.token(), "quantity": self.quantity}

    def _fill(self, out: FloatArray, rows: Array, cols: Array) -> None:
        """Interpolate at source places, of pixel corners."""
        inside = self._inside(rows, cols)
        if not inside.any():
            return
        row, col = rows[inside] - 0.5, cols[inside] - 0.5
        top, left = floor(row.min()) - LOBES, floor(col.min()) - LOBES
        box = Window(top, left, floor(row.max()) + LOBES + 2 - top, floor(col.max()) + LOBES + 2 - left)
        if box.height * box.width > _SOURCE_PIXELS and rows.size > 1:
            for piece in split_in_half(out, rows, cols):
                self._fill(*piece)
            return
        values = read_padded(self.source, box)
        if self.quantity is not None:
            values = np.where(np.isfinite(values), to_amplitude(values, self.quantity), np.float32(np.nan))
        found = lanczos_at(values, row - top, col - left)
        out[:, inside] = found if self.quantity is None else from_amplitude(found, self.quantity)

    def _fill_nearest(self, out: FloatArray, rows: Array, cols: Array) -> None:
        """Take the pixel at source places, in the bands of classes."""
        inside = self._inside(rows, cols)
        if not inside.any():
            return
        row, col = np.floor(rows[inside]).astype(np.int64), np.floor(cols[inside]).astype(np.int64)
        box = Window(int(row.min()), int(col.min()), int(np.ptp(row)) + 1, int(np.ptp(col)) + 1)
        if box.height * box.width > _SOURCE_PIXELS and rows.size > 1:
            for piece in split_in_half(out, rows, cols):
                self._fill_nearest(*piece)
            return
        values = read_padded(self.source, box)
        for band in np.flatnonzero(self.nearest):
            out[band][inside] = values[band, row - box.row, col - box.col]

    def _inside(self, rows: Array, cols: Array) -> npt.NDArray[np.bool_]:
        height, width = self.source.shape[1:]
        with np.errstate(invalid="ignore"):
            return np.asarray((rows >= 0) & (rows < height) & (cols >= 0) & (cols < width))


@lru_cache(maxsize=1)
def _taps() -> npt.NDArray[np.float32]:
    """Return the kernel's weights for every phase, shape (phase, 2 LOBES); at phase 0 the pixel itself."""
    taps = np.stack([lanczos_taps(phase / _PHASES) for phase in range(_PHASES)])
    taps[0] = 0
    taps[0, LOBES - 1] = 1
    return taps.astype(np.float32)


def lanczos_at(values: FloatArray, rows: Array, cols: Array) -> FloatArray:
    """Interpolate at places between pixels.

    Parameters
    ----------
    values : ndarray of float32, shape (band, row, col)
        NaN where there is no data.
    rows, cols : ndarray of float64, shape (point,)
        Numbers of pixel centres; at least 2, and at least 3 from the end.

    Returns
    -------
    ndarray of float32, shape (band, point)
        Within the range of the valid pixels under the kernel; NaN where one of the (up to four) pixels next
        to the place is invalid.
    """
    at_row, at_col = (np.rint(part * _PHASES).astype(np.int64) for part in (rows, cols))
    down, across = _taps()[at_row % _PHASES], _taps()[at_col % _PHASES]
    row, col = at_row // _PHASES, at_col // _PHASES
    width = values.shape[2]
    flat = values.reshape(len(values), -1)
    valid = np.isfinite(flat)
    whole = bool(valid.all())
    filled = flat if whole else np.where(valid, flat, np.float32(0))
    start = row * width + col
    total = np.zeros((len(values), rows.size), np.float32)
    weights, complete = np.zeros_like(total), np.ones(total.shape, bool)
    low, high = np.full_like(total, np.inf), np.full_like(total, -np.inf)
    for i in range(2 * LOBES):
        for j in range(2 * LOBES):
            index = start + ((i - LOBES + 1) * width + j - LOBES + 1)
            weight, found = down[:, i] * across[:, j], np.take(filled, index, axis=1)
            total += weight * found
            if whole:
                np.minimum(low, found, out=low)
                np.maximum(high, found, out=high)
                continue
            known = np.take(valid, index, axis=1)
            weights += weight * known
            complete &= known
            np.minimum(low, found, out=low, where=known)
            np.maximum(high, found, out=high, where=known)
    if whole:
        return np.clip(total, low, high)
    beside = np.ones(total.shape, bool)
    for i, needed_row in ((0, True), (1, down[:, LOBES] != 0)):
        for j, needed_col in ((0, True), (1, across[:, LOBES] != 0)):
            beside &= valid[:, start + i * width + j] | ~np.asarray(needed_row & needed_col)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Where all are valid, as it would be without a hole anywhere near.
        found = np.clip(np.where(complete, total, total / weights), low, high)
    return np.where(beside, found, np.float32(np.nan))
