"""Placement of a source on its final north-up grid: its own where it will do, else one to warp to."""

from __future__ import annotations

import os
import warnings
from math import ceil, floor, log10
from typing import Any

import numpy as np
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from sar2eo.errors import GeolocationWarning, GeoreferenceError, SettingsError
from sar2eo.geo.grid import Grid
from sar2eo.scenes.geolocation import (
    AffineMapping,
    ControlMapping,
    Mapping,
    check_continuous,
    choose_local_crs,
    find_centre,
    measure_held_out_rmse_m,
)
from sar2eo.scenes.raster import OpenedSource
from sar2eo.scenes.reader import SceneReader
from sar2eo.scenes.warp import WarpedReader

_MAX_ZOOM = 1024
_FEW_POINTS = 10
_LARGE_RMSE_M = 100.0


def place_on_grid(
    source: OpenedSource,
    *,
    quantity: str,
    crs: Any,
    resolution: float | tuple[float, float] | None,
    allow_ungeoreferenced: bool,
) -> tuple[SceneReader, dict[str, Any]]:
    """Put a source on a north-up grid, warped where its own is none.

    `crs`, `resolution` and `allow_ungeoreferenced` are those of `sar2eo.open_scene`. Returns the reader, and
    attributes: ``geolocation`` in words; of control points also ``geolocation_rmse_m``, their residual where
    left out of the fit, and ``terrain_corrected``: False.
    """
    wanted, size = _check_crs(crs), _check_resolution(resolution)
    reader, control, label = source.reader, source.control, source.label
    grid = reader.grid
    if control is not None:
        target = control.crs if wanted == "source" else wanted or choose_local_crs(*find_centre(control))
        points, rmse = len(control.points), measure_held_out_rmse_m(control)
        warning = None
        if rmse is not None and points < _FEW_POINTS:
            warning = f"placed by {points} ground control points only, which say little of the relief"
        elif rmse is not None and rmse > _LARGE_RMSE_M:
            warning = f"ground control points left out of the fit are misplaced by {rmse:.0f} m"
        if warning:
            warnings.warn(f"{label}: {warning}", GeolocationWarning, stacklevel=3)
        mapping: Mapping = ControlMapping(control, target)
        warped = WarpedReader(reader, mapping, _target_grid(mapping, grid.shape, target, size), quantity)
        how = f"warped from {points} ground control points"
        # Control points place an image without its relief.
        return warped, {"geolocation": how, "geolocation_rmse_m": rmse, "terrain_corrected": False}
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
        return reader, {"geolocation": "none"}
    centre = _centre(grid, label)
    geographic, aligned = bool(grid.pyproj_crs.is_geographic), grid.transform[1] == grid.transform[3] == 0
    native = (grid.transform[0], -grid.transform[4])
    resized = size is not None and any(abs(a - b) > 1e-6 * b for a, b in zip(size, native, strict=True))
    kept = wanted in ("source", grid.crs) or (wanted is None and not geographic)
    if grid.north_up and kept and not resized:
        return reader, {"geolocation": "source grid"}
    kind = "geographic" if geographic else "projected" if grid.north_up else "flipped"
    if wanted == "source" or (wanted is None and aligned and not geographic):
        target = grid.crs
    else:
        target = wanted or choose_local_crs(*centre)
    corner = (0.0, 0.0)
    if aligned and target == grid.crs:
        # Pixels of the same axes stay where they are, as far as they can.
        corner = (grid.bounds[0], grid.bounds[3])
        size = size or (abs(grid.transform[0]), abs(grid.transform[4]))
    mapping = AffineMapping(grid, target)
    warped = WarpedReader(reader, mapping, _target_grid(mapping, grid.shape, target, size, corner), quantity)
    how = f"warped from a {kind if aligned else 'rotated'} grid in {_crs_label(grid.crs)}"
    return warped, {"geolocation": how}


def _check_crs(crs: Any) -> str | None:
    if crs is None or (isinstance(crs, str) and crs == "source"):
        return crs
    return Grid.create(crs, Grid("", (1, 0, 0, 0, -1, 0), (1, 1)).affine, (1, 1)).crs


def _check_resolution(resolution: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if resolution is None:
        return None
    pair = resolution if isinstance(resolution, tuple | list) else (resolution, resolution)
    if len(pair) != 2 or not all(0 < size < float("inf") for size in pair):
        raise SettingsError(f"resolution={resolution}: must be one positive pixel size, or width and height")
    return float(pair[0]), float(pair[1])


def _centre(grid: Grid, label: str) -> tuple[float, float]:
    """Return longitude and latitude of a scene's middle, which any scene on a map of the Earth has."""
    name, crs = _crs_label(str(grid.crs)), grid.pyproj_crs
    if not (crs.is_geographic or crs.is_projected):
        foreign = [f"{each}={os.environ[each]}" for each in ("PROJ_DATA", "PROJ_LIB") if each in os.environ]
        hint = f": {foreign[0]} may be of another installation of PROJ, unset it" if foreign else ""
        raise GeoreferenceError(f"{label}: its CRS, {name}, is no map of the Earth ({crs.type_name}){hint}")
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


def _crs_label(crs: str) -> str:
    return crs if len(crs) < 20 else str(CRS.from_user_input(crs).name)


def _target_grid(
    mapping: Mapping,
    shape: tuple[int, int],
    crs: str,
    resolution: tuple[float, float] | None,
    corner: tuple[float, float] = (0.0, 0.0),
) -> Grid:
    """Choose the smallest north-up grid that holds a whole source.

    `resolution` is the pixel's width and height in units of the CRS. None: square pixels of the area that
    source pixels have there, to within 1 %. At `corner` four pixels meet; by default at the origin, so that
    scenes of one zone and pixel size align.
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
    check_continuous(x, y, crs)
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
    """Return the side of a square as large as a source pixel, from the middle half of the source."""
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
