"""A reader as a lazy DataArray, and the way back from a slice of it to the reader."""

from __future__ import annotations

from math import isnan
from operator import getitem
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import rioxarray  # noqa: F401 (registers .rio)
import xarray as xr
from dask._task_spec import Task
from dask.array import chunk
from dask.highlevelgraph import HighLevelGraph

from sar2eo.attributes import attributes_of, to_attributes
from sar2eo.grid import Grid
from sar2eo.scene.identity import digest
from sar2eo.scene.reader import SceneReader
from sar2eo.windows import Window

__all__ = ["describe_scene", "lazy_scene", "reader_of", "window_in"]

_PREFIX = "scene-"
_CHUNK = 1024
_SLICING = (getitem, chunk.getitem)


def lazy_scene(reader: SceneReader, attrs: dict[str, Any]) -> xr.DataArray:
    """Wrap a reader as a DataArray that reads when computed.

    Parameters
    ----------
    reader : SceneReader
        Of the whole scene.
    attrs : dict
        Attributes; ``scene_grid`` is added (see `sar2eo.attributes`).

    Returns
    -------
    DataArray
        Dimensions band, y, x; float32; named "sar"; in chunks of about 1024 pixels on whole
        storage blocks.
    """
    block = da.from_array(
        reader,
        chunks=(reader.shape[0], *_chunk_shape(reader)),
        name=_PREFIX + digest(reader.identity()),
        asarray=False,
        meta=np.empty((0, 0, 0), dtype=np.float32),
        inline_array=False,
    )
    y, x = _centres(reader.grid)
    scene = xr.DataArray(
        block,
        dims=("band", "y", "x"),
        coords={"band": list(reader.polarisations), "y": y, "x": x},
        name="sar",
        attrs=to_attributes({**attrs, "scene_grid": reader.grid}),
    )
    return scene if reader.grid.crs is None else scene.rio.write_crs(reader.grid.pyproj_crs.to_wkt())


def reader_of(scene: xr.DataArray) -> tuple[SceneReader, Window] | None:
    """Find the reader under a scene, and where the scene lies in it.

    Parameters
    ----------
    scene : DataArray
        What `open_scene` returned, or a slice of it along y and x with step 1.

    Returns
    -------
    tuple of SceneReader and Window, or None
        None for anything that was computed, reordered, given other coordinates, or subset along
        bands: then its values are not those of a window of the reader.
    """
    graph = getattr(scene.data, "dask", None)
    if not isinstance(graph, HighLevelGraph) or scene.dims != ("band", "y", "x"):
        return None
    source = next((name for name in graph.layers if str(name).startswith("original-" + _PREFIX)), None)
    if source is None:
        return None
    array_name = source.removeprefix("original-")
    rest = [name for name in graph.layers if name not in (source, array_name)]
    reader = graph[source]
    if not isinstance(reader, SceneReader) or not all(name.startswith("getitem-") for name in rest):
        return None
    corner = _corner(graph, (scene.data.name, 0, 0, 0), array_name, _chunk_shape(reader))
    if corner is None or 0 in scene.shape or scene.shape[0] != reader.shape[0]:
        return None
    window = Window(*corner, *scene.shape[1:])
    return (reader, window) if _lies_at(scene, reader, window) else None


def window_in(scene: xr.DataArray, grid: Grid) -> Window | None:
    """Find where an array lies in a grid, by its coordinates.

    Parameters
    ----------
    scene : DataArray, dims (..., y, x)
        Not empty.
    grid : Grid
        Of the whole scene.

    Returns
    -------
    Window or None
        None where the array is no part of the grid, pixel for pixel.
    """
    to_pixel = ~grid.affine
    x, y = scene["x"].values, scene["y"].values
    (left, top), (right, bottom) = to_pixel @ (x[0], y[0]), to_pixel @ (x[-1], y[-1])
    window = Window(round(top - 0.5), round(left - 0.5), *scene.shape[-2:])
    ends = (window.row + 0.5, window.col + 0.5, window.stop_row - 0.5, window.stop_col - 0.5)
    off = max(abs(a - b) for a, b in zip(ends, (top, left, bottom, right), strict=True))
    return window if off < 1e-2 and grid.window.intersection(window) == window else None


def describe_scene(scene: xr.DataArray) -> dict[str, Any]:
    """Say what a scene is, as JSON values.

    Parameters
    ----------
    scene : DataArray
        From `open_scene`.

    Returns
    -------
    dict
        Source, grid (crs, transform, shape, bounds; of a slice, its own), true ground sample distance
        in metres, polarisations, quantity, calibration, acquisition, geolocation and its residual,
        storage block and chunk.
    """
    attrs = attributes_of(scene)
    grid: Grid = attrs["scene_grid"]
    found = reader_of(scene)
    window = window_in(scene, grid)
    grid = grid if window is None else grid.crop(window)
    placed = grid.crs is not None
    distance = grid.ground_sample_distance_m() if placed else None
    return {
        "source": attrs["source"],
        "crs": grid.crs,
        "transform": list(grid.transform),
        "shape": list(grid.shape),
        "bounds": list(grid.bounds),
        "ground_sample_distance_m": [round(d, 3) for d in distance] if distance else None,
        "polarisations": list(attrs["polarisations"]),
        "quantity": attrs.get("quantity"),
        "calibration": attrs.get("calibration"),
        "datetime": attrs.get("datetime"),
        "platform": attrs.get("platform"),
        "orbit_direction": attrs.get("orbit_direction"),
        "terrain_corrected": attrs.get("terrain_corrected"),
        "geolocation": attrs.get("geolocation"),
        "geolocation_rmse_m": _number(attrs.get("geolocation_rmse_m")),
        "block_shape": list(found[0].block_shape) if found else None,
        "chunk_shape": [sizes[0] for sizes in scene.chunks[1:]] if scene.chunks else None,
    }


def _number(value: float | None) -> float | None:
    return None if value is None or isnan(value) else round(value, 3)


def _chunk_shape(reader: SceneReader) -> tuple[int, int]:
    """About 1024 x 1024, whole storage blocks where these are not larger than that."""
    sides = []
    for size, block in zip(reader.shape[1:], reader.block_shape, strict=True):
        sides.append(min(size, _CHUNK if block >= _CHUNK else _CHUNK // block * block))
    return sides[0], sides[1]


def _centres(grid: Grid) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    a, _, c, _, e, f = grid.transform
    rows, cols = grid.shape
    row, col = np.arange(rows, dtype=np.float64) + 0.5, np.arange(cols, dtype=np.float64) + 0.5
    return np.asarray(e * row + f), np.asarray(a * col + c)


def _corner(
    graph: HighLevelGraph, key: Any, whole: str, chunk_shape: tuple[int, int]
) -> tuple[int, int] | None:
    """Place of a block's first element in the whole scene, if it was only ever sliced with step 1.

    The whole scene's own layer is not looked into: that would write out all its tasks, a second for every
    ten thousand chunks.
    """
    corner = [0, 0, 0]
    while key[0] != whole:
        task = graph[key]
        if not isinstance(task, Task) or len(task.args) < 2:
            return None
        key = getattr(task.args[0], "key", None)
        index = getattr(task.args[1], "value", task.args[1])
        if not (isinstance(key, tuple) and len(key) == 4 and task.func in _SLICING):
            return None
        if not isinstance(index, tuple) or len(index) != 3:
            return None
        if not all(isinstance(part, slice) and part.step in (None, 1) for part in index):
            return None
        corner = [at + (part.start or 0) for at, part in zip(corner, index, strict=True)]
    band, row, col = corner
    return None if band else (row + key[2] * chunk_shape[0], col + key[3] * chunk_shape[1])


def _lies_at(scene: xr.DataArray, reader: SceneReader, window: Window) -> bool:
    """Whether the coordinates still are those of the window."""
    y, x = _centres(reader.grid)
    rows, cols = window.slices
    expected = {"band": np.array(reader.polarisations), "y": y[rows], "x": x[cols]}
    return all(
        name in scene.coords and np.array_equal(scene[name].values, values)
        for name, values in expected.items()
    )
