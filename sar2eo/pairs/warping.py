"""Readers onto any grid: a copy where pixels coincide, else interpolated."""

from __future__ import annotations

from sar2eo.errors import PairsError
from sar2eo.grid import Grid
from sar2eo.pairs.shifting import read_padded
from sar2eo.scene.geolocation import AffineMapping
from sar2eo.scene.reader import FloatArray, SceneReader
from sar2eo.scene.warping import WarpedReader
from sar2eo.windows import Window

__all__ = ["coinciding_window", "read_onto"]

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
