"""A SAR scene as a lazy DataArray, whose parts know their reader and their window, and its attributes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from math import isnan
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import rioxarray  # noqa: F401 (registers .rio)
import xarray as xr

from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window
from sar2eo.scenes.identity import digest
from sar2eo.scenes.reader import SceneReader

_PREFIX = "scene-"
_CHUNK = 1024

_GRIDS = ("grid", "scene_grid")
_TRUTHS = ("terrain_corrected",)
_LISTS = ("polarisations",)  # netCDF gives one of a single item back as the item


IntArray = npt.NDArray[np.int64]


class PlacedArray(da.Array):
    """A Dask array that knows its reader, and which bands, rows and columns of it it holds.

    What is selected from it along any axis, rechunked arrays and copies keep this knowledge. Everything else
    made of it is a plain Dask array, whose pixels may differ. Assigning to it changes its name, and ends the
    knowledge too.
    """

    _placed: tuple[str, SceneReader, list[IntArray]] | None = None

    @classmethod
    def create(cls, array: da.Array, reader: SceneReader, axes: list[IntArray]) -> PlacedArray:
        """Make one of a Dask array with the pixels at these bands, rows and columns.

        With two dims, rows and columns, it is of one band.
        """
        placed = cls(array.dask, array.name, array.chunks, meta=array)
        placed._placed = (array.name, reader, axes)
        return placed

    @property
    def place(self) -> tuple[SceneReader, IntArray, Window] | None:
        """The reader, the numbers of its bands, and its window, if rows and columns are those of one."""
        if self._placed is None or self._placed[0] != self.name or 0 in self.shape:
            return None
        _, reader, (bands, rows, cols) = self._placed
        if any((np.diff(axis) != 1).any() for axis in (rows, cols)):
            return None
        return reader, bands, Window(int(rows[0]), int(cols[0]), len(rows), len(cols))

    def __getitem__(self, index: Any) -> da.Array:
        """Select; bands, rows and columns are kept track of."""
        return self._follow(da.Array.__getitem__(self, index), index)

    def rechunk(self, *args: Any, **kwargs: Any) -> da.Array:
        """Return the same pixels in other chunks."""
        return self._follow(da.Array.rechunk(self, *args, **kwargs))

    def copy(self) -> da.Array:
        """Return the same array."""
        return self._follow(da.Array.copy(self))

    def __reduce__(self) -> tuple[Any, ...]:
        plain, placed = da.Array.copy(self), self._placed
        known = placed is not None and placed[0] == self.name
        return (PlacedArray.create, (plain, *placed[1:])) if known else tuple(plain.__reduce__())  # type: ignore[index]

    def _follow(self, array: da.Array, index: Any = ()) -> da.Array:
        """Give an array made of this one by an index the axes that it leads to, if it is a scene still."""
        if self._placed is None or self._placed[0] != self.name:
            return array
        _, reader, axes = self._placed
        parts = index if isinstance(index, tuple) else (index,)
        if self.ndim == 2:
            new_axis = len(parts) == 2 and parts[0] is None and parts[1] is Ellipsis
            parts = () if new_axis else (slice(None), *parts)
        if not all(isinstance(part, int | np.integer | slice | list | np.ndarray) for part in parts):
            return array
        parts += (slice(None),) * (len(axes) - len(parts))
        bands, rows, cols = (axis[part] for axis, part in zip(axes, parts, strict=True))
        if rows.ndim != 1 or cols.ndim != 1:
            return array
        return PlacedArray.create(array, reader, [np.atleast_1d(bands), rows, cols])


def make_lazy_scene(reader: SceneReader, attrs: dict[str, Any]) -> xr.DataArray:
    """Wrap a reader as a DataArray (band, y, x) of float32, named "sar", that reads when computed.

    Chunks are about 1024 pixels on whole storage blocks. ``scene_grid`` is added to the attributes.
    """
    block = da.from_array(
        reader,
        chunks=(reader.shape[0], *_chunk_shape(reader)),
        name=_PREFIX + digest(reader.identity()),
        asarray=False,
        meta=np.empty((0, 0, 0), dtype=np.float32),
        inline_array=False,
    )
    y, x = pixel_centres(reader.grid)
    scene = xr.DataArray(
        PlacedArray.create(block, reader, [np.arange(size) for size in reader.shape]),
        dims=("band", "y", "x"),
        coords={"band": list(reader.polarisations), "y": y, "x": x},
        name="sar",
        attrs=encode_attributes({**attrs, "scene_grid": reader.grid}),
    )
    return scene if reader.grid.crs is None else scene.rio.write_crs(reader.grid.pyproj_crs.to_wkt())


def find_reader(scene: xr.DataArray) -> tuple[SceneReader, Window] | None:
    """Find the reader under a scene, and the window of it that the scene is.

    The scene is what `open_scene` returned, or a part of it along y and x with step 1, in any chunks, of the
    bands that its labels name. None for anything that was computed, reordered, or given other coordinates:
    its values are not those of a window of the reader.
    """
    place = scene.data.place if isinstance(scene.data, PlacedArray) else None
    if place is None or scene.dims != ("band", "y", "x"):
        return None
    reader, bands, window = place
    y, x = pixel_centres(reader.grid)
    rows, cols = window.slices
    labels = np.array(reader.polarisations)[bands]
    for name, values in (("band", labels), ("y", y[rows]), ("x", x[cols])):
        if name not in scene.coords or not np.array_equal(scene[name].values, values):
            return None
    return reader, window


def find_window(scene: xr.DataArray, grid: Grid) -> Window | None:
    """Find the window of a grid that an array (..., y, x) covers, by its coordinates.

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
    """Describe a scene from `open_scene` as JSON values.

    Source, grid (crs, transform, shape, bounds; of a slice, its own), true ground sample distance in metres,
    polarisations, quantity, calibration, acquisition, geolocation and its residual in metres, storage block
    and chunk.
    """
    attrs = decode_attributes(scene)
    grid: Grid = attrs["scene_grid"]
    found = find_reader(scene)
    window = find_window(scene, grid)
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
    """Return about 1024 x 1024, in whole storage blocks where these are not larger."""
    sides = []
    for size, block in zip(reader.shape[1:], reader.block_shape, strict=True):
        sides.append(min(size, _CHUNK if block >= _CHUNK else _CHUNK // block * block))
    return sides[0], sides[1]


def pixel_centres(grid: Grid) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return y of the middle of each row, and x of each column, of a grid without rotation."""
    a, _, c, _, e, f = grid.transform
    rows, cols = grid.shape
    row, col = np.arange(rows, dtype=np.float64) + 0.5, np.arange(cols, dtype=np.float64) + 0.5
    return np.asarray(e * row + f), np.asarray(a * col + c)


def encode_attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Write values as attributes that netCDF can hold: text, numbers, and lists of them.

    Values may also be a `Grid`, mappings of JSON values, and booleans. None is left out.
    """
    return {name: _stored(value) for name, value in values.items() if value is not None}


def decode_attributes(array: xr.DataArray | xr.Dataset) -> dict[str, Any]:
    """Read the attributes of a scene or a result: the values that `encode_attributes` was given.

    Other attributes, and what users have put in place of ours, are returned as they are.
    """
    return {str(name): _read(str(name), value) for name, value in array.attrs.items()}


def _stored(value: Any) -> Any:
    if isinstance(value, Grid):
        return json.dumps(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, bool):
        return int(value)
    return value


def _read(name: str, value: Any) -> Any:
    if name in _TRUTHS and value is not None:
        return bool(value)
    if name in _LISTS and isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    if not isinstance(value, str) or not value.startswith("{"):
        return value
    try:
        read = json.loads(value)
    except ValueError:
        return value
    if name not in _GRIDS:
        return read
    return Grid(read["crs"], tuple(read["transform"]), tuple(read["shape"]))
