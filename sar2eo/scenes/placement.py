"""Whether a source's own grid is used, or which grid it is warped to."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

import numpy as np
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from sar2eo.errors import GeoreferenceError, SettingsError
from sar2eo.geo.grid import Grid
from sar2eo.scenes.geolocation import (
    AffineMapping,
    ControlMapping,
    Mapping,
    check_whole,
    control_centre,
    held_out_rmse_m,
    local_crs,
)
from sar2eo.scenes.raster import GroundControl
from sar2eo.scenes.reader import SceneReader
from sar2eo.scenes.warp import WarpedReader

__all__ = ["Placement", "place_on_grid"]

_MAX_ZOOM = 1024


@dataclass(frozen=True)
class Placement:
    """A scene on its final grid.

    Parameters
    ----------
    reader : SceneReader
        The source itself, or the source warped.
    geolocation : str
        How it came to this grid, in words.
    points : int or None
        Control points, where there are such.
    rmse_m : float or None
        Their residual where left out of the fit, in metres.
    """

    reader: SceneReader
    geolocation: str
    points: int | None = None
    rmse_m: float | None = None


def place_on_grid(
    reader: SceneReader,
    control: GroundControl | None,
    *,
    quantity: str,
    crs: Any,
    resolution: float | tuple[float, float] | None,
    allow_ungeoreferenced: bool,
    label: str,
) -> Placement:
    """Put a source on a north-up grid.

    Parameters
    ----------
    reader : SceneReader
        In the frame of the source.
    control : GroundControl or None
        Where the source has points instead of a grid.
    quantity : str
        Of the values.
    crs, resolution, allow_ungeoreferenced
        As of `sar2eo.open_scene`.
    label : str
        Names the scene in messages.

    Raises
    ------
    GeoreferenceError
        If there is no georeference, or one that cannot be used.
    SettingsError
        For a CRS or resolution that does not apply.
    """
    wanted, size = _wanted_crs(crs), _wanted_size(resolution)
    grid = reader.grid
    if control is not None:
        target = _target_crs(wanted, control.crs, *control_centre(control))
        rmse = held_out_rmse_m(control)
        warped = _warped(reader, ControlMapping(control, target), target, size, quantity)
        count = len(control.points)
        return Placement(warped, f"warped from {count} ground control points", count, rmse)
    if grid.crs is None:
        if not allow_ungeoreferenced:
            raise GeoreferenceError(
                f"{label}: neither a CRS with a geotransform nor ground control points (RPCs are not read); "
                "--allow-ungeoreferenced opens it all the same"
            )
        if crs is not None or resolution is not None:
            raise SettingsError(
                f"{label}: without a georeference there is nothing to warp by --crs, --resolution"
            )
        return Placement(reader, "none")
    centre = _centre(grid, label)
    geographic, aligned = bool(grid.pyproj_crs.is_geographic), grid.transform[1] == grid.transform[3] == 0
    if grid.north_up and _stays(grid, wanted, size, geographic):
        return Placement(reader, "source grid")
    kind = (
        "rotated"
        if not aligned
        else "geographic"
        if geographic
        else "projected"
        if grid.north_up
        else "flipped"
    )
    target = _target_crs(wanted, str(grid.crs), *centre)
    if wanted is None and aligned and not geographic:
        target = str(grid.crs)
    corner = (0.0, 0.0)
    if aligned and target == grid.crs:
        # Pixels of the same axes stay where they are, as far as they can.
        corner = (grid.bounds[0], grid.bounds[3])
        size = size or (abs(grid.transform[0]), abs(grid.transform[4]))
    warped = _warped(reader, AffineMapping(grid, target), target, size, quantity, corner)
    return Placement(warped, f"warped from a {kind} grid in {_name(str(grid.crs))}")


def _stays(grid: Grid, wanted: str | None, size: tuple[float, float] | None, geographic: bool) -> bool:
    native = (grid.transform[0], -grid.transform[4])
    if size is not None and any(abs(a - b) > 1e-6 * b for a, b in zip(size, native, strict=True)):
        return False
    if wanted == "source" or wanted == grid.crs:
        return True
    return wanted is None and not geographic


def _warped(
    reader: SceneReader,
    mapping: Mapping,
    crs: str,
    size: tuple[float, float] | None,
    quantity: str,
    corner: tuple[float, float] = (0.0, 0.0),
) -> WarpedReader:
    grid = _target_grid(mapping, (reader.shape[1], reader.shape[2]), crs, size, corner)
    return WarpedReader(reader, mapping, grid, quantity)


def _target_crs(wanted: str | None, source: str, lon: float, lat: float) -> str:
    if wanted == "source":
        return source
    return wanted or local_crs(lon, lat)


def _wanted_crs(crs: Any) -> str | None:
    if crs is None or (isinstance(crs, str) and crs == "source"):
        return crs
    return Grid.create(crs, Grid("", (1, 0, 0, 0, -1, 0), (1, 1)).affine, (1, 1)).crs


def _wanted_size(resolution: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if resolution is None:
        return None
    pair = resolution if isinstance(resolution, tuple | list) else (resolution, resolution)
    if len(pair) != 2 or not all(0 < size < float("inf") for size in pair):
        raise SettingsError(f"resolution={resolution}: must be one positive pixel size, or width and height")
    return float(pair[0]), float(pair[1])


def _centre(grid: Grid, label: str) -> tuple[float, float]:
    """Return longitude and latitude of a scene's middle, which any scene on a map of the Earth has."""
    name, crs = _name(str(grid.crs)), grid.pyproj_crs
    if not (crs.is_geographic or crs.is_projected):
        raise GeoreferenceError(f"{label}: its CRS, {name}, is no map of the Earth ({crs.type_name})")
    x, y = grid.affine @ (grid.shape[1] / 2, grid.shape[0] / 2)
    try:
        lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    except ProjError as error:
        raise GeoreferenceError(
            f"{label}: places in its CRS, {name}, have no longitude and latitude on Earth"
        ) from error
    if not (np.isfinite([lon, lat]).all() and abs(lat) <= 90):
        raise GeoreferenceError(
            f"{label}: its middle, {x:g} {y:g} in {name}, is no longitude and latitude: is the CRS right?"
        )
    # A grid of longitudes from 0 to 360 is as good as one from -180 to 180.
    return (float(lon) + 180) % 360 - 180, float(lat)


def _name(crs: str) -> str:
    return crs if len(crs) < 20 else str(CRS.from_user_input(crs).name)


def _target_grid(
    mapping: Mapping,
    shape: tuple[int, int],
    crs: str,
    resolution: tuple[float, float] | None = None,
    corner: tuple[float, float] = (0.0, 0.0),
) -> Grid:
    """Choose the north-up grid that holds a whole source.

    Parameters
    ----------
    mapping : Mapping
        Of the source.
    shape : tuple of int
        Rows and columns of the source.
    crs : str
        That of the mapping.
    resolution : tuple of float, optional
        Pixel width and height in units of the CRS; by default square pixels of the area that source
        pixels have there, to within 1 %.
    corner : tuple of float
        A point where four pixels meet. By default the origin, so that scenes of one zone and pixel
        size align.

    Returns
    -------
    Grid
        The smallest that holds the source.

    Raises
    ------
    GeoreferenceError
        If the source does not fit into the CRS.
    SettingsError
        For pixels absurdly smaller or larger than those of the source.
    """
    rows, cols = shape
    edge = np.linspace(0.0, 1.0, 65)
    top, bottom = np.zeros_like(edge), np.ones_like(edge)
    x, y = mapping.ground(
        np.concatenate([top, bottom, edge, edge]) * rows, np.concatenate([edge, edge, top, bottom]) * cols
    )
    native = _native_size(mapping, shape)
    if not (np.isfinite(x).all() and np.isfinite(y).all() and native > 0):
        raise GeoreferenceError(f"the scene does not fit into {crs}: give another with --crs")
    check_whole(x, y, crs)
    width, height = resolution or (native, native)
    if not all(native / _MAX_ZOOM < size < native * _MAX_ZOOM for size in (width, height)):
        raise SettingsError(
            f"resolution={width:g},{height:g}: pixels of the scene measure {native:g} in {crs}: "
            "is the resolution in units of that CRS?"
        )
    slack = 1e-6  # of a pixel: rounding must not add a row or column
    across, up = (x - corner[0]) / width, (y - corner[1]) / height
    left, upper = floor(across.min() + slack), ceil(up.max() - slack)
    right, lower = ceil(across.max() - slack), floor(up.min() + slack)
    transform = (width, 0.0, corner[0] + left * width, 0.0, -height, corner[1] + upper * height)
    return Grid(crs, transform, (upper - lower, right - left))


def _native_size(mapping: Mapping, shape: tuple[int, int]) -> float:
    """Side of a square as large as a source pixel, from the middle half of the source."""
    rows, cols = shape
    r = np.array([0.25, 0.75, 0.5, 0.5]) * rows
    c = np.array([0.5, 0.5, 0.25, 0.75]) * cols
    x, y = mapping.ground(r, c)
    with np.errstate(invalid="ignore"):
        parallelogram = (x[1] - x[0]) * (y[3] - y[2]) - (x[3] - x[2]) * (y[1] - y[0])
    area = abs(parallelogram) / (rows / 2 * cols / 2)
    if not (np.isfinite(area) and area > 0):
        return 0.0
    size = float(np.sqrt(area))
    # "10 m" pixels measure 10.07 m here and 9.99 m there: the roundest number within 1 % is meant.
    rounded = (round(size, digits - floor(log10(size))) for digits in range(3))
    return next(r for r in rounded if abs(r - size) <= 0.01 * size)
