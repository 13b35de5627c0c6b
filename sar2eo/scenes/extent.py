"""Footprints of scenes, from decimated reads: enough to know which scenes meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from rasterio.enums import Resampling

from sar2eo.errors import PairsError
from sar2eo.geo.footprint import to_lonlat, trace_footprint
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window
from sar2eo.scenes import find_reader
from sar2eo.scenes.gdal import read_dataset
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.scenes.optical import EoScene, PictureReader
from sar2eo.scenes.raster import Band, RasterReader
from sar2eo.scenes.reader import SceneReader
from sar2eo.scenes.sentinel1 import CalibratedReader
from sar2eo.scenes.sources import Source
from sar2eo.scenes.warp import WarpedReader

__all__ = ["SceneFootprint", "complete_source", "read_footprint", "read_validity"]

Validity = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SceneFootprint:
    """A scene and where it has data.

    Parameters
    ----------
    source : Source
        With its time and platform, where these are known.
    area : Polygon or MultiPolygon
        In longitude and latitude (EPSG:4326), split at the antimeridian; empty where nothing is valid.
    """

    source: Source
    area: Any


def read_footprint(source: Source, scene: xr.DataArray | EoScene) -> SceneFootprint:
    """Outline an opened scene, and add what it says about its acquisition.

    Parameters
    ----------
    source : Source
        What was opened. What it says goes before what the scene says. Its footprint, if any, is taken instead
        of reading validity.
    scene : DataArray or EoScene
        From `sar2eo.open_scene` or `sar2eo.scenes.optical.open_eo_scene`.

    Raises
    ------
    PairsError
        If the scene has no georeference.
    """
    known = complete_source(source, scene)
    if known.footprint is not None:
        return SceneFootprint(known, known.footprint)
    grid: Grid = scene.grid if isinstance(scene, EoScene) else decode_attributes(scene)["scene_grid"]
    if grid.crs is None:
        raise PairsError(f"{source.href}: without a georeference it cannot be paired")
    area = to_lonlat(trace_footprint(read_validity(scene), grid), grid.crs)
    return SceneFootprint(replace(known, footprint=area), area)


def read_validity(scene: xr.DataArray | EoScene, longest: int = 1024) -> Validity:
    """Read which pixels of a whole scene are valid, decimated.

    Parameters
    ----------
    scene : DataArray or EoScene
    longest : int, optional (default: 1024)
        Pixels of the longer side.

    Returns
    -------
    ndarray of bool, shape (row, col)
        Over the extent of the scene. Each value is that of the pixel at the middle of its cell.
    """
    if isinstance(scene, EoScene):
        return _valid(scene.reader, longest)
    found = find_reader(scene)
    if found is not None and found[1] == found[0].grid.window:
        return _valid(found[0], longest)
    rows, cols = (
        _middles(size, count) for size, count in zip(*_sizes(scene.shape[-2:], longest), strict=True)
    )
    picked = scene.isel(y=rows, x=cols).values
    return np.asarray(np.isfinite(picked).all(axis=0))


@singledispatch
def _valid(reader: SceneReader, longest: int) -> Validity:
    """Read the pixels at the middles of cells, row of cells by row of cells."""
    (height, width), (rows, cols) = _sizes(reader.grid.shape, longest)
    at = _middles(width, cols)
    lines = [reader.read(Window(int(row), 0, 1, width))[:, 0, at] for row in _middles(height, rows)]
    return np.stack([np.isfinite(line).all(axis=0) for line in lines])


@_valid.register
def _(reader: RasterReader, longest: int) -> Validity:
    _, small = _sizes(reader.grid.shape, longest)
    return np.asarray(np.stack([_band_valid(band, small) for band in reader.bands]).all(axis=0))


@_valid.register
def _(reader: PictureReader, longest: int) -> Validity:
    _, small = _sizes(reader.grid.shape, longest)
    bands = np.stack([_band_valid(band, small) for band in reader.source.bands])
    return np.asarray(bands.any(axis=0) if reader.kind == "rgb" else bands.all(axis=0))


@_valid.register
def _(reader: CalibratedReader, longest: int) -> Validity:
    return _valid(reader.source, longest)


@_valid.register
def _(reader: WarpedReader, longest: int) -> Validity:
    """Look the cells of the target up in the decimated source."""
    source = _valid(reader.source, longest)
    (height, width), (rows, cols) = _sizes(reader.grid.shape, longest)
    a, _b, c, _d, e, f = reader.grid.transform
    x = a * (np.arange(cols) + 0.5) * (width / cols) + c
    y = e * (np.arange(rows) + 0.5) * (height / rows) + f
    at_row, at_col = reader.mapping.pixels(*np.meshgrid(x, y))
    high, wide = reader.source.grid.shape
    with np.errstate(invalid="ignore"):
        inside = (at_row >= 0) & (at_row < high) & (at_col >= 0) & (at_col < wide)
    valid = np.zeros((rows, cols), dtype=bool)
    i = (at_row[inside] * source.shape[0] / high).astype(np.int64)
    j = (at_col[inside] * source.shape[1] / wide).astype(np.int64)
    valid[inside] = source[i, j]
    return valid


def _band_valid(band: Band, shape: tuple[int, int]) -> Validity:
    """Read a band decimated by nearest pixels, through overviews where there are some."""

    def read(dataset: Any) -> Validity:
        valid = np.ones(shape, dtype=bool)
        if band.masked:
            valid &= dataset.read_masks(band.index, out_shape=shape) > 0
        floats = dataset.dtypes[band.index - 1].startswith(("float", "complex"))
        if band.nodata is not None or floats:
            values = dataset.read(band.index, out_shape=shape, resampling=Resampling.nearest)
            valid &= np.isfinite(values)
            if band.nodata is not None:
                valid &= values != band.nodata
        return valid

    return read_dataset(band.path, band.stamp, read)


def _sizes(shape: Any, longest: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shape of a scene, and that of the decimated scene."""
    scale = min(1.0, longest / max(shape))
    rows, cols = (max(1, round(size * scale)) for size in shape)
    return (int(shape[0]), int(shape[1])), (rows, cols)


def _middles(size: int, count: int) -> npt.NDArray[np.int64]:
    return ((np.arange(count) + 0.5) * size / count).astype(np.int64)


def complete_source(source: Source, scene: xr.DataArray | EoScene) -> Source:
    """Add what a scene says about its acquisition to what its source says, which goes first."""
    if isinstance(scene, EoScene):
        time = scene.datetime.strftime("%Y-%m-%dT%H:%M:%SZ") if scene.datetime else None
        return replace(source, datetime=source.datetime or time, platform=source.platform or scene.platform)
    return replace(
        source,
        datetime=source.datetime or scene.attrs.get("datetime"),
        platform=source.platform or scene.attrs.get("platform"),
        orbit_direction=source.orbit_direction or scene.attrs.get("orbit_direction"),
    )
