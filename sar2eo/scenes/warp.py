"""Scenes read on another grid: warped onto a north-up lattice, or moved by parts of a pixel.

Rotated, geographic and GCP-only sources get one fixed lattice per scene. The inverse map, from target pixels
to source pixels, is evaluated on nodes every 32 target pixels, counted from the scene's first pixel, and
interpolated between them from whole-scene pixel numbers. A window therefore sees the same coordinates, and
the same arithmetic, whatever is read around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import floor, hypot
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d

from sar2eo.errors import PairsError
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import to_amplitude
from sar2eo.geo.windows import Window
from sar2eo.scenes.geolocation import AffineMapping, Mapping
from sar2eo.scenes.reader import BoolArray, FloatArray, SceneReader, decimated_shape

Array = npt.NDArray[np.float64]

NODE_STEP = 32
"""Target pixels between nodes. A UTM grid over geographic pixels is off by under 1e-3 pixel between them."""

_TILE = 512
_SOURCE_PIXELS = 1 << 22
_NEARLY = 1.05
_SNAP = float(1 << 16)

LOBES = 3
"""Of the Lanczos kernel: the pixels it reaches to either side."""

# A shift nearer than this to whole pixels is whole: nothing finer is known, and pixels stay as recorded.
_WHOLE = 1e-3
_SAME_PIXEL = 0.01


@dataclass(frozen=True, eq=False)
class WarpedReader(SceneReader):
    """Read a source on another grid, bilinearly in intensity.

    Where target pixels are at least twice as large as source pixels, to 5 %, source blocks of that many
    pixels, counted from the first source pixel, are averaged first.
    """

    source: SceneReader  # in its own frame
    mapping: Mapping  # from ground coordinates in the CRS of `grid` to the source
    grid: Grid  # the target, north-up
    quantity: str  # what the values are, so that averages are those of intensity

    block_shape = (_TILE, _TILE)

    @property
    def polarisations(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the source."""
        return self.source.polarisations

    @cached_property
    def factors(self) -> tuple[int, int]:
        """Source rows and columns that are averaged before interpolation."""
        rows, cols = self.grid.shape
        at = np.array([[rows / 2, cols / 2], [rows / 2 + 1, cols / 2], [rows / 2, cols / 2 + 1]])
        a, _, c, _, e, f = self.grid.transform
        r, k = self.mapping.pixels(a * at[:, 1] + c, e * at[:, 0] + f)
        steps = (hypot(r[1] - r[0], r[2] - r[0]), hypot(k[1] - k[0], k[2] - k[0]))
        # 20 m over "10 m" pixels that measure 10.1 on the ground are two of them still.
        down, across = (max(1, floor(step * _NEARLY)) if np.isfinite(step) else 1 for step in steps)
        return min(down, self.source.shape[1]), min(across, self.source.shape[2])

    def read(self, window: Window) -> FloatArray:
        """Read a window; see `SceneReader.read`."""
        factors = self.factors
        out = np.full((len(self.polarisations), window.height, window.width), np.nan, dtype=np.float32)
        for part in window.tiles(_TILE, _TILE):
            rows, cols = self.source_pixels(part)
            # From pixel corners to the centres of (averaged) pixels. The rounding to 2^-16 pixel
            # lets a pixel that falls on a source pixel be that pixel.
            rows = np.rint((rows / factors[0] - 0.5) * _SNAP) / _SNAP
            cols = np.rint((cols / factors[1] - 0.5) * _SNAP) / _SNAP
            self._fill(out[:, *part.shifted(-window.row, -window.col).slices], rows, cols, factors)
        return out

    def read_validity(self, longest: int) -> BoolArray:
        """Look the cells of the target up in the decimated source; see `SceneReader.read_validity`."""
        source = self.source.read_validity(longest)
        height, width = self.grid.shape
        rows, cols = decimated_shape(self.grid.shape, longest)
        a, _b, c, _d, e, f = self.grid.transform
        x = a * (np.arange(cols) + 0.5) * (width / cols) + c
        y = e * (np.arange(rows) + 0.5) * (height / rows) + f
        at_row, at_col = self.mapping.pixels(*np.meshgrid(x, y))
        high, wide = self.source.grid.shape
        with np.errstate(invalid="ignore"):
            inside = (at_row >= 0) & (at_row < high) & (at_col >= 0) & (at_col < wide)
        valid = np.zeros((rows, cols), dtype=bool)
        i = (at_row[inside] * source.shape[0] / high).astype(np.int64)
        j = (at_col[inside] * source.shape[1] / wide).astype(np.int64)
        valid[inside] = source[i, j]
        return valid

    def identity(self) -> dict[str, Any]:
        """Return the source's identity and what the warp depends on."""
        target = [self.grid.crs, list(self.grid.transform), list(self.grid.shape)]
        how = {"grid": target, "map": self.mapping.token(), "quantity": self.quantity, "nodes": NODE_STEP}
        return {**self.source.identity(), "warp": how}

    def source_pixels(self, window: Window) -> tuple[Array, Array]:
        """Return source row and column, of pixel corners, of the centres of the target pixels of a window."""
        i = np.arange(window.row // NODE_STEP, (window.stop_row - 1) // NODE_STEP + 2)
        j = np.arange(window.col // NODE_STEP, (window.stop_col - 1) // NODE_STEP + 2)
        a, _, c, _, e, f = self.grid.transform
        y, x = np.meshgrid(e * (i * NODE_STEP + 0.5) + f, a * (j * NODE_STEP + 0.5) + c, indexing="ij")
        row, col = np.arange(window.row, window.stop_row), np.arange(window.col, window.stop_col)
        down, across = (row % NODE_STEP / NODE_STEP)[:, None], (col % NODE_STEP / NODE_STEP)[None, :]
        at_row, at_col = row // NODE_STEP - i[0], col // NODE_STEP - j[0]

        def between(nodes: Array) -> Array:
            with np.errstate(invalid="ignore"):
                rows = nodes[at_row] * (1 - down) + nodes[at_row + 1] * down  # (row, node column)
                found: Array = rows[:, at_col] * (1 - across) + rows[:, at_col + 1] * across
            return found

        rows, cols = self.mapping.pixels(x, y)
        return between(rows), between(cols)

    def _fill(self, out: FloatArray, rows: Array, cols: Array, factors: tuple[int, int]) -> None:
        """Interpolate at the given (averaged) source pixels, in pieces that need little of the source."""
        size = tuple(-(-n // k) for n, k in zip(self.source.shape[1:], factors, strict=True))
        with np.errstate(invalid="ignore"):
            inside = (rows > -1) & (rows < size[0]) & (cols > -1) & (cols < size[1])
        if not inside.any():
            return
        top, left = max(0, floor(rows[inside].min())), max(0, floor(cols[inside].min()))
        stop_row = min(size[0], floor(rows[inside].max()) + 2)
        stop_col = min(size[1], floor(cols[inside].max()) + 2)
        box = Window(top, left, stop_row - top, stop_col - left)
        if box.height * box.width > _SOURCE_PIXELS and rows.size > 1:
            for piece in split_in_half(out, rows, cols):
                self._fill(*piece, factors)
            return
        power = self._average(box, factors)
        found = _bilinear(power, rows[inside], cols[inside], box)
        out[:, inside] = _from_intensity(found, self.quantity)

    def _average(self, box: Window, factors: tuple[int, int]) -> Array:
        """Compute mean intensity of source blocks, NaN where under half of a block is valid."""
        down, across = factors
        if factors == (1, 1):
            return _to_intensity(self.source.read(box), self.quantity)
        out = np.empty((len(self.polarisations), box.height, box.width))
        wide = max(1, min(box.width, _SOURCE_PIXELS // (down * across)))
        high = max(1, _SOURCE_PIXELS // (down * across * wide))
        for part in box.tiles(high, wide):
            out[:, *part.shifted(-box.row, -box.col).slices] = self._block_means(part, factors)
        return out

    def _block_means(self, part: Window, factors: tuple[int, int]) -> Array:
        down, across = factors
        full = Window(part.row * down, part.col * across, part.height * down, part.width * across)
        here = full.intersection(self.source.grid.window)
        assert here is not None  # noqa: S101 (blocks are counted over the source)
        power = np.full((len(self.polarisations), full.height, full.width), np.nan)
        power[:, : here.height, : here.width] = _to_intensity(self.source.read(here), self.quantity)
        valid = np.isfinite(power)
        power[~valid] = 0.0
        total, count = _block_sums(power, factors), _block_sums(valid.astype(np.float64), factors)
        # Blocks at the far edges hold fewer pixels.
        there = np.zeros((1, full.height, full.width))
        there[:, : here.height, : here.width] = 1.0
        enough = count >= 0.5 * _block_sums(there, factors)
        return np.where(enough, total / np.maximum(count, 1.0), np.nan)


def split_in_half(out: FloatArray, rows: Array, cols: Array) -> Iterator[tuple[FloatArray, Array, Array]]:
    """Split a patch, shape (band, row, col), and the source places of its pixels along the longer side."""
    axis = int(rows.shape[1] > rows.shape[0])
    return zip(
        np.array_split(out, 2, axis + 1),
        np.array_split(rows, 2, axis),
        np.array_split(cols, 2, axis),
        strict=True,
    )


def _block_sums(values: Array, factors: tuple[int, int]) -> Array:
    """Sum over blocks, adding one line after the other: in the same order for every block."""
    down, across = factors
    rows = values[:, ::down].copy()
    for i in range(1, down):
        rows += values[:, i::down]
    sums = rows[:, :, ::across].copy()
    for j in range(1, across):
        sums += rows[:, :, j::across]
    return sums


def _bilinear(power: Array, rows: Array, cols: Array, box: Window) -> Array:
    """Interpolate at points, from the valid ones of their four neighbours.

    `power` is of `box`, shape (band, row, col), NaN where there is no data. `rows` and `cols`, shape
    (point,), count pixel centres in the whole source. Returns shape (band, point), NaN where neighbours of
    under half of the weight are valid.
    """
    # Integer and fraction are taken in the whole source's frame: an offset would change the rounding.
    row, col = np.floor(rows), np.floor(cols)
    down, across = rows - row, cols - col
    row, col = row.astype(np.int64) - box.row, col.astype(np.int64) - box.col
    total = np.zeros((power.shape[0], rows.size))
    weight = np.zeros_like(total)
    for i, wi in ((0, 1 - down), (1, down)):
        for j, wj in ((0, 1 - across), (1, across)):
            there = (row + i >= 0) & (row + i < box.height) & (col + j >= 0) & (col + j < box.width)
            values = power[:, np.where(there, row + i, 0), np.where(there, col + j, 0)]
            w = np.where(np.isfinite(values) & there, wi * wj, 0.0)
            total += np.where(w > 0, values, 0.0) * w
            weight += w
    return np.where(weight >= 0.5, total / np.maximum(weight, 0.5), np.nan)


def _to_intensity(values: FloatArray, quantity: str) -> Array:
    wide = values.astype(np.float64)
    if quantity == "intensity":
        return wide
    if quantity == "db":
        return np.asarray(np.power(10.0, wide / 10.0))
    return np.square(np.maximum(wide, 0.0))


def _from_intensity(power: Array, quantity: str) -> FloatArray:
    if quantity == "db":
        with np.errstate(divide="ignore"):
            back = 10.0 * np.log10(power)
        power = np.where(np.isfinite(back), back, np.nan)
    elif quantity != "intensity":
        power = np.sqrt(power)
    return power.astype(np.float32)


def read_shifted(reader: SceneReader, window: Window, rows: float, cols: float, quantity: str) -> FloatArray:
    """Read a window moved by (rows, cols) pixels down and to the right, which need not be whole.

    Whole shifts copy pixels. Others are interpolated in amplitude by a Lanczos kernel of three lobes, limited
    to the range of the values around, and converted back to the quantity. The window may reach past the
    scene's edge. A value is NaN where one of the (up to four) pixels next to its place is invalid or past the
    edge.
    """
    down, row_part = _parts(rows)
    right, col_part = _parts(cols)
    moved = window.shifted(down, right)
    if not row_part and not col_part:
        return read_padded(reader, moved)
    margin = LOBES
    around = Window(
        moved.row - margin, moved.col - margin, moved.height + 2 * margin, moved.width + 2 * margin
    )
    values = read_padded(reader, around)
    valid = np.isfinite(values)
    amplitude = to_amplitude(np.where(valid, values, np.nan), quantity)
    between = _interpolate(amplitude, valid, row_part, col_part)
    inner = (slice(None), slice(margin, -margin), slice(margin, -margin))
    return from_amplitude(between[inner], quantity)


def _parts(shift: float) -> tuple[int, float]:
    """Split a shift into its whole part and a fraction, 0 where the shift is as good as whole."""
    nearest = floor(shift + 0.5)
    if abs(shift - nearest) < _WHOLE:
        return nearest, 0.0
    return floor(shift), shift - floor(shift)


def lanczos_taps(fraction: float) -> npt.NDArray[np.float64]:
    """Return the kernel's weights at pixels -2 ... 3 for a place `fraction` after pixel 0; their sum is 1."""
    at = np.arange(1 - LOBES, LOBES + 1) - fraction
    taps = np.sinc(at) * np.sinc(at / LOBES)
    return np.asarray(taps / taps.sum())


def _interpolate(amplitude: FloatArray, valid: npt.NDArray[np.bool_], rows: float, cols: float) -> FloatArray:
    """Interpolate at (row + rows, col + cols), not from invalid pixels, nor right beside them."""
    filled = np.where(valid, amplitude, np.float32(0)).astype(np.float64)
    weight = valid.astype(np.float64)
    beside = valid.copy()
    for axis, fraction in ((1, rows), (2, cols)):
        if not fraction:
            continue
        # One zero in front: the kernel has an odd length then, with pixel 0 in its middle.
        taps = np.concatenate([[0.0], lanczos_taps(fraction)])
        filled = correlate1d(filled, taps, axis=axis, mode="constant")
        weight = correlate1d(weight, taps, axis=axis, mode="constant")
        beside &= np.roll(beside, -1, axis=axis)
    out = np.full(amplitude.shape, np.nan, dtype=np.float32)
    for band, values, weights, kept, source in zip(out, filled, weight, beside, amplitude, strict=True):
        if kept.any():
            # The kernel overshoots at bright points: below 0, where there is no amplitude, for one.
            band[kept] = np.clip(values[kept] / weights[kept], np.nanmin(source), np.nanmax(source))
    return out


def from_amplitude(amplitude: FloatArray, quantity: str) -> FloatArray:
    """Convert amplitude to a quantity: the inverse of `sar2eo.geo.radiometry.to_amplitude`."""
    match quantity:
        case "intensity":
            return np.square(amplitude)
        case "db":
            with np.errstate(divide="ignore"):
                return np.asarray(20 * np.log10(amplitude), dtype=np.float32)
        case _:
            return amplitude


def read_padded(reader: SceneReader, window: Window) -> FloatArray:
    """Read a window that may reach past the scene's edge; what is outside is NaN."""
    out = np.full((len(reader.polarisations), window.height, window.width), np.nan, dtype=np.float32)
    inside = window.intersection(reader.grid.window)
    if inside is not None:
        rows, cols = inside.shifted(-window.row, -window.col).slices
        out[:, rows, cols] = reader.read(inside)
    return out


def read_onto(reader: SceneReader, grid: Grid, quantity: str = "intensity") -> FloatArray:
    """Read the part of a scene under a north-up grid, which may reach past the scene.

    Where pixels do not coincide, values are averaged as intensity, which `quantity` converts them to. Returns
    float32 of shape (band, row, col), NaN where there is no data.
    """
    if not grid.north_up:
        raise PairsError(f"transform={grid.transform}: a grid to read onto must be north-up")
    window = coinciding_window(reader.grid, grid)
    if window is None:
        mapping = AffineMapping(reader.grid, str(grid.crs))
        return WarpedReader(reader, mapping, grid, quantity).read(grid.window)
    return read_padded(reader, window)


def coinciding_window(source: Grid, target: Grid) -> Window | None:
    """Return the window of a grid that another covers; None where pixels do not coincide.

    Pixels coincide if they are off by less than a hundredth of their size everywhere.
    """
    if source.crs != target.crs and source.pyproj_crs != target.pyproj_crs:
        return None
    a, b, c, d, e, f = (~source.affine @ target.affine)[:6]
    rows, cols = target.shape
    drift = max(abs(a - 1) * cols + abs(b) * rows, abs(d) * cols + abs(e - 1) * rows)
    col, row = round(c), round(f)
    if drift + max(abs(c - col), abs(f - row)) > _SAME_PIXEL:
        return None
    return Window(row, col, rows, cols)
