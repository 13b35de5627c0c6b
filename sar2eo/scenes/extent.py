"""Footprints of scenes, from decimated reads: enough to know which scenes meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from sar2eo.errors import PairsError
from sar2eo.geo.footprint import to_lonlat, trace_footprint
from sar2eo.geo.grid import Grid
from sar2eo.scenes import find_reader
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.scenes.optical import EoScene
from sar2eo.scenes.reader import BoolArray, cell_middles
from sar2eo.scenes.sources import Source


@dataclass(frozen=True)
class SceneFootprint:
    """A scene and where it has data."""

    source: Source  # with its time and platform, where these are known
    # In longitude and latitude (EPSG:4326), split at the antimeridian; empty where nothing is valid
    area: Any


def read_footprint(source: Source, scene: xr.DataArray | EoScene) -> SceneFootprint:
    """Outline an opened scene, and add what it says about its acquisition.

    What `source` says goes before what the scene says. Its footprint, if any, is taken instead of reading
    validity. A `PairsError` is raised where the scene has no georeference.
    """
    known = complete_source(source, scene)
    if known.footprint is not None:
        return SceneFootprint(known, known.footprint)
    grid: Grid = scene.grid if isinstance(scene, EoScene) else decode_attributes(scene)["scene_grid"]
    if grid.crs is None:
        raise PairsError(f"{source.href}: without a georeference it cannot be paired")
    area = to_lonlat(trace_footprint(read_validity(scene), grid), grid.crs)
    return SceneFootprint(replace(known, footprint=area), area)


def read_validity(scene: xr.DataArray | EoScene, longest: int = 1024) -> BoolArray:
    """Read which pixels of a whole scene are valid, decimated to `longest` pixels on the longer side.

    Returns bool of shape (row, col) over the extent of the scene. Each value is that of the pixel at the
    middle of its cell.
    """
    if isinstance(scene, EoScene):
        return scene.reader.read_validity(longest)
    found = find_reader(scene)
    if found is not None and found[1] == found[0].grid.window:
        return found[0].read_validity(longest)
    rows, cols = (cell_middles(size, longest, scene.shape[-2:]) for size in scene.shape[-2:])
    picked = scene.isel(y=rows, x=cols).values
    return np.asarray(np.isfinite(picked).all(axis=0))


def complete_source(source: Source, scene: xr.DataArray | EoScene) -> Source:
    """Add what a scene says about its acquisition to what its source says, which goes first."""
    if isinstance(scene, EoScene):
        time = scene.datetime.strftime("%Y-%m-%dT%H:%M:%SZ") if scene.datetime else None
        return source.over(Source(source.href, time, scene.platform))
    said = (scene.attrs.get(name) for name in ("datetime", "platform", "orbit_direction"))
    return source.over(Source(source.href, *said))
