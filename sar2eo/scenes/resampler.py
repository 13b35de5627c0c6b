"""A window of a SAR scene, read at a place between its pixels."""

from __future__ import annotations

from math import floor

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d

from sar2eo.errors import PairsError
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import to_amplitude
from sar2eo.geo.windows import Window
from sar2eo.scenes.geolocation import AffineMapping
from sar2eo.scenes.reader import SceneReader
from sar2eo.scenes.warped_reader import WarpedReader

__all__ = ["coinciding_window", "from_amplitude", "lanczos_taps", "read_onto", "read_padded", "read_shifted"]

FloatArray = npt.NDArray[np.float32]

LOBES = 3
"""Of the Lanczos kernel; it reaches so many pixels to either side."""

# A shift nearer than this to whole pixels is whole: nothing finer is known, and pixels stay as recorded.
_WHOLE = 1e-3


def read_shifted(reader: SceneReader, window: Window, rows: float, cols: float, quantity: str) -> FloatArray:
    """Read a window moved by (rows, cols) pixels, which need not be whole.

    Whole shifts copy pixels. Others are interpolated in amplitude by a Lanczos kernel of three lobes,
    within the range of the values around, and brought back to the quantity.

    Parameters
    ----------
    reader : SceneReader
        Of the scene.
    window : Window
        Before it is moved; it may reach past the scene's edge, afterwards too.
    rows, cols : float
        Downwards and to the right, in pixels.
    quantity : str
        What the values are.

    Returns
    -------
    ndarray of float32, shape (polarisation, row, col)
        NaN where one of the (up to four) pixels next to the place is invalid or past the edge.
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
    between = _interpolated(amplitude, valid, row_part, col_part)
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


def _interpolated(
    amplitude: FloatArray, valid: npt.NDArray[np.bool_], rows: float, cols: float
) -> FloatArray:
    """Interpolate at (row + rows, col + cols); invalid pixels have no weight, and spoil their neighbours."""
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
    """Bring amplitude back to a quantity: the inverse of `sar2eo.geo.radiometry.to_amplitude`."""
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


_SAME_PIXEL = 0.01


def read_onto(reader: SceneReader, grid: Grid, quantity: str = "intensity") -> FloatArray:
    """Read what lies under a grid.

    Parameters
    ----------
    reader : SceneReader
        Of values that may be averaged, NaN where there is no data.
    grid : Grid
        North-up; may reach past the scene.
    quantity : str, optional (default: "intensity")
        Of the values: where pixels do not coincide they are averaged as intensity, which by default is how
        they are taken.

    Returns
    -------
    ndarray of float32, shape (band, row, col)
        NaN where there is no data.

    Raises
    ------
    PairsError
        If the grid is not north-up.
    """
    if not grid.north_up:
        raise PairsError(f"transform={grid.transform}: a grid to read onto must be north-up")
    window = coinciding_window(reader.grid, grid)
    if window is None:
        mapping = AffineMapping(reader.grid, str(grid.crs))
        return WarpedReader(reader, mapping, grid, quantity).read(grid.window)
    return read_padded(reader, window)


def coinciding_window(source: Grid, target: Grid) -> Window | None:
    """Return where a grid lies in another, in whole pixels; None where pixels do not coincide.

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
