"""A SAR scene as a lazy DataArray, whose slices know their reader and their window, and its attributes."""

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

from sar2eo.errors import RadiometryError, SceneError, SettingsError, one_line
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import QUANTITIES
from sar2eo.geo.windows import Window
from sar2eo.scenes.identity import digest
from sar2eo.scenes.metadata import iso_datetime
from sar2eo.scenes.reader import SceneReader

_PREFIX = "scene-"
_CHUNK = 1024

_GRIDS = ("grid", "scene_grid")
_TRUTHS = ("terrain_corrected",)
_LISTS = ("polarisations",)  # netCDF gives one of a single item back as the item


class PlacedArray(da.Array):
    """A Dask array that knows its reader, and which window of it it holds.

    Slices along rows and columns, rechunked arrays and copies keep this knowledge. Everything else made of it
    is a plain Dask array, whose pixels may differ. Assigning to it changes its name, and ends the knowledge
    too.
    """

    _placed: tuple[str, SceneReader, Window] | None = None

    @classmethod
    def create(cls, array: da.Array, reader: SceneReader, window: Window) -> PlacedArray:
        """Make one of a Dask array whose pixels are those of the window."""
        placed = cls(array.dask, array.name, array.chunks, meta=array)
        placed._placed = (array.name, reader, window)
        return placed

    @property
    def place(self) -> tuple[SceneReader, Window] | None:
        """The reader, and the window of it."""
        if self._placed is None or self._placed[0] != self.name:
            return None
        return self._placed[1:]

    def __getitem__(self, index: Any) -> da.Array:
        """Slice; the window is kept track of with step 1 and all bands."""
        return self._moved(da.Array.__getitem__(self, index), index if isinstance(index, tuple) else (index,))

    def rechunk(self, *args: Any, **kwargs: Any) -> da.Array:
        """Return the same pixels in other chunks."""
        return self._moved(da.Array.rechunk(self, *args, **kwargs))

    def copy(self) -> da.Array:
        """Return the same array."""
        return self._moved(da.Array.copy(self))

    def __reduce__(self) -> tuple[Any, ...]:
        plain = da.Array.copy(self)
        return plain.__reduce__() if self.place is None else (PlacedArray.create, (plain, *self.place))

    def _moved(self, array: da.Array, index: tuple[Any, ...] = ()) -> da.Array:
        """Give an array made of this one the window that an index of slices leads to, if any."""
        if self.place is None or not all(isinstance(part, slice) for part in index):
            return array
        index += (slice(None),) * (3 - len(index))
        taken = [range(size)[part] for size, part in zip(self.shape, index, strict=True)]
        if len(taken[0]) < self.shape[0] or any(r != range(r.start, r.start + len(r)) for r in taken):
            return array
        reader, window = self.place
        _, rows, cols = taken
        at = Window(window.row + rows.start, window.col + cols.start, len(rows), len(cols))
        return PlacedArray.create(array, reader, at)


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
    y, x = _centres(reader.grid)
    scene = xr.DataArray(
        PlacedArray.create(block, reader, reader.grid.window),
        dims=("band", "y", "x"),
        coords={"band": list(reader.polarisations), "y": y, "x": x},
        name="sar",
        attrs=encode_attributes({**attrs, "scene_grid": reader.grid}),
    )
    return scene if reader.grid.crs is None else scene.rio.write_crs(reader.grid.pyproj_crs.to_wkt())


def find_reader(scene: xr.DataArray) -> tuple[SceneReader, Window] | None:
    """Find the reader under a scene, and the window of it that the scene is.

    The scene is what `open_scene` returned, or a slice of it along y and x with step 1, in any chunks. None
    for anything that was computed, reordered, given other coordinates, or subset along bands: its values are
    not those of a window of the reader.
    """
    place = scene.data.place if isinstance(scene.data, PlacedArray) else None
    if place is None or scene.dims != ("band", "y", "x") or 0 in scene.shape:
        return None
    return place if _lies_at(scene, *place) else None


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


def _centres(grid: Grid) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    a, _, c, _, e, f = grid.transform
    rows, cols = grid.shape
    row, col = np.arange(rows, dtype=np.float64) + 0.5, np.arange(cols, dtype=np.float64) + 0.5
    return np.asarray(e * row + f), np.asarray(a * col + c)


def _lies_at(scene: xr.DataArray, reader: SceneReader, window: Window) -> bool:
    """Whether the coordinates still are those of the window."""
    y, x = _centres(reader.grid)
    rows, cols = window.slices
    expected = {"band": np.array(reader.polarisations), "y": y[rows], "x": x[cols]}
    return all(
        name in scene.coords and np.array_equal(scene[name].values, values)
        for name, values in expected.items()
    )


def normalise_array(scene: xr.DataArray) -> xr.DataArray:
    """Check the attributes of an array (band, y, x), and bring its values into the form of `open_scene`.

    Declared nodata (``scene.rio.nodata``) becomes NaN, complex samples become amplitude, declared scale and
    offset are applied, and all bands go into one chunk. Values over a reader stay as they are.

    Raises
    ------
    RadiometryError
        If attrs["quantity"] is missing or unknown, or complex samples are declared other than amplitude.
    SceneError
        If attrs["datetime"] is no time, or scale and offset are no numbers or differ between bands.
    """
    quantity, acquired = scene.attrs.get("quantity"), scene.attrs.get("datetime")
    if quantity not in QUANTITIES:
        raise RadiometryError(
            f"the scene's attrs['quantity']={quantity!r}: set it to one of {', '.join(QUANTITIES)}"
        )
    try:
        known = acquired is None or (isinstance(acquired, str) and bool(iso_datetime(acquired)))
    except SettingsError:
        known = False
    if not known:
        raise SceneError(
            f"the scene's attrs['datetime']={acquired!r}: must be ISO 8601 text, as 2020-11-07T13:52:41Z"
        )
    scene = scene if find_reader(scene) is not None else _values(scene, str(quantity))
    return scene if scene.chunks is None or len(scene.chunks[0]) == 1 else scene.chunk(band=-1)


def _values(scene: xr.DataArray, quantity: str) -> xr.DataArray:
    nodata = _nodata(scene)
    if nodata is not None:
        scene = scene.where(scene != nodata)
    if scene.dtype.kind == "c":
        if quantity != "amplitude":
            raise RadiometryError(
                f"complex samples, and attrs['quantity']={quantity!r}: their magnitude is amplitude"
            )
        scene = scene.copy(data=abs(scene.data))
    return _unpack(scene)


def _unpack(scene: xr.DataArray) -> xr.DataArray:
    """Apply the declared scale and offset, as `open_scene` does.

    rioxarray leaves them as attributes where it does not apply them (``mask_and_scale=False``, its default).
    """
    if "scales" in scene.attrs or "offsets" in scene.attrs:
        raise SceneError(
            "the scene's attrs say that its bands differ in scale or offset: open it with "
            "mask_and_scale=True, or by sar2eo.open_scene"
        )
    try:
        scale = float(scene.attrs.get("scale_factor", 1))
        offset = float(scene.attrs.get("add_offset", 0))
    except (TypeError, ValueError) as error:
        raise SceneError(f"the scene's scale or offset is no number: {one_line(error, 200)}") from error
    if (scale, offset) == (1.0, 0.0):
        return scene
    kept = {name: value for name, value in scene.attrs.items() if name not in ("scale_factor", "add_offset")}
    values: xr.DataArray = scene.astype(np.float64) * scale + offset
    return values.astype(np.float32).assign_attrs(kept)


def _nodata(scene: xr.DataArray) -> Any:
    """Return the declared nodata value in the type of the array, or None."""
    try:
        found = scene.rio.nodata
        if found is None or np.isnan(found):
            return None
        with np.errstate(over="ignore"):  # 32 bits know no -1.8e308
            return np.asarray(found).astype(scene.dtype) if scene.dtype.kind in "fc" else found
    except OverflowError:  # it does not fit into the type of the values, so none of them is nodata
        return None
    except (TypeError, ValueError) as error:
        raise SceneError(f"the scene's nodata is no number: {one_line(error, 200)}") from error


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
