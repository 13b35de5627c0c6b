"""The lattice of chip cells: fixed to the ground, snapped to the nearest pixel of each SAR scene.

The lattice starts at the origin of the CRS and steps by whole pixels. Scenes of one CRS and pixel size share
it, wherever their corners are: a place has the same cell in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Transformer

from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window

# A footprint is as coarse as the decimated read it comes from: cells with this share of what they need are
# kept, and their pixels decide.
_COARSE = 0.5


# Longer edges that are straight in degrees would be off on a projected grid.
_EDGE_DEGREES = 0.05


class Cell(NamedTuple):
    """One cell of the lattice, and where it lies in one scene."""

    i: int  # steps of the lattice down from the CRS's origin
    j: int  # and to the right
    row: int  # first pixel in the scene's grid
    col: int

    def window(self, size: int) -> Window:
        """Return the pixels of the scene that the cell covers."""
        return Window(self.row, self.col, size, size)


def name_lattice(grid: Grid) -> str:
    """Name the lattice of a north-up grid: scenes with equal names share their cells.

    Pixel sizes that agree to six digits count as equal; over a scene that is a fraction of a pixel.
    """
    return f"{grid.crs} {grid.transform[0]:.6g} x {-grid.transform[4]:.6g}"


def list_cells(
    grid: Grid, *, size: int, stride: int, within: Any = None, min_valid: float = 0.0
) -> list[Cell]:
    """List the cells that lie wholly on a scene's north-up grid, row by row.

    `size` is a cell's side, `stride` the distance of neighbours, in pixels. `within` is the outline of the
    valid pixels in the grid's CRS, from a decimated read: cells with less than half of `min_valid`, the share
    that will have to be valid, of their area in it are left out, and all that do not touch it.
    """
    a, _, c, _, e, f = grid.transform
    # Place of the grid's first pixel from the origin, in pixels, downwards and to the right.
    top, left = -f / -e, c / a
    rows = _axis(top, grid.shape[0], size, stride)
    cols = _axis(left, grid.shape[1], size, stride)
    cells = [Cell(i, j, row, col) for i, row in rows for j, col in cols]
    if within is None or not cells:
        return cells
    boxes = cell_boxes(cells, grid, size)
    shapely.prepare(within)
    shares = np.zeros(len(cells))
    touching = np.flatnonzero(shapely.intersects(within, boxes))
    inside = shapely.contains_properly(within, boxes[touching])
    shares[touching[inside]] = 1.0
    partly = touching[~inside]
    shares[partly] = shapely.area(shapely.intersection(within, boxes[partly])) / shapely.area(boxes[partly])
    return [cell for cell, share in zip(cells, shares, strict=True) if share > _COARSE * min_valid]


def _axis(origin: float, pixels: int, size: int, stride: int) -> list[tuple[int, int]]:
    """List the steps of the lattice along one axis, each with the nearest pixel of the scene."""
    first, last = floor(origin / stride) - 1, ceil((origin + pixels) / stride) + 1
    found = [(step, floor(step * stride - origin + 0.5)) for step in range(first, last + 1)]
    return [(step, pixel) for step, pixel in found if 0 <= pixel <= pixels - size]


def cell_boxes(cells: Sequence[Cell], grid: Grid, size: int) -> npt.NDArray[Any]:
    """Return the cells of a north-up grid as shapely boxes in its CRS."""
    a, _, c, _, e, f = grid.transform
    rows, cols = np.array([(cell.row, cell.col) for cell in cells], dtype=np.float64).T
    boxes: npt.NDArray[Any] = shapely.box(
        a * cols + c, e * (rows + size) + f, a * (cols + size) + c, e * rows + f
    )
    return boxes


def corners_lonlat(
    crs: str, transforms: npt.NDArray[np.float64], shape: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Compute the corners of chips on north-up grids of one CRS, in longitude and latitude.

    `transforms` are affine coefficients a to f, shape (chip, 6); `shape` is that of each chip. Returns
    float64, shape (chip, 4, 2), counter-clockwise from the lower left.
    """
    a, _, c, _, e, f = transforms.T
    west, east, north, south = c, c + a * shape[1], f, f + e * shape[0]
    x, y = np.stack([west, east, east, west], axis=1), np.stack([south, south, north, north], axis=1)
    lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    return np.stack([lon, lat], axis=-1)


def project_to_grid(area: Any, grid: Grid) -> Any:
    """Transform an area from longitude and latitude to the CRS of a grid."""
    to_grid = Transformer.from_crs("EPSG:4326", grid.pyproj_crs, always_xy=True)
    dense = shapely.segmentize(area, _EDGE_DEGREES)
    moved = shapely.transform(dense, lambda xy: np.column_stack(to_grid.transform(xy[:, 0], xy[:, 1])))
    # Parts that were split at the antimeridian join again.
    return shapely.union_all(shapely.make_valid(shapely.get_parts(moved)))
