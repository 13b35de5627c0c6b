"""GDAL rasters: what a header says, and a reader of the pixels in the frame they are stored in."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.enums import Resampling

from sar2eo.errors import GeoreferenceError, SceneError
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window
from sar2eo.scenes.gdal import (
    check_size,
    display_name,
    gdal_path,
    is_remote,
    list_files,
    open_dataset,
    read_dataset,
    stamp_files,
)
from sar2eo.scenes.identity import digest, identify_file, identify_files
from sar2eo.scenes.metadata import (
    Facts,
    polarisation_names,
    polarisation_words,
    read_facts,
    zero_is_nodata,
)
from sar2eo.scenes.reader import BoolArray, FloatArray, SceneReader, decimated_shape

CACHE_BYTES = 128 * 2**20
"""Most that a process keeps: a row of blocks of a wide scene in two polarisations."""

Planes = tuple[npt.NDArray[np.generic], ...]
"""Arrays of one window, of different types, each of shape (plane, row, col)."""

_kept: OrderedDict[Hashable, Planes] = OrderedDict()
_lock = threading.Lock()
_fetching: dict[Hashable, threading.Lock] = {}


@dataclass(frozen=True)
class GroundControl:
    """Ground control points of an image."""

    crs: str
    # Row, column (of pixel corners: the centre of the first pixel is 0.5, 0.5), x, y
    points: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Band:
    """One band of a file, and how its values are read."""

    path: str  # as GDAL opens it
    stamp: str  # names the content of the file
    index: int  # from 1
    nodata: float | None = None  # stored value that means nodata
    masked: bool = False  # whether a mask or alpha band says which pixels are valid
    scale: float = 1.0  # ``value = stored * scale + offset``
    offset: float = 0.0


@dataclass(frozen=True)
class Raster:
    """What the header of a file says."""

    path: str  # as GDAL opens it
    bands: tuple[Band, ...]  # without an alpha band
    names: tuple[str, ...] | None  # polarisations of the bands, if known
    named_by_band: bool  # whether the bands carry the names; otherwise their order is a convention
    kind: str  # "bytes", "unsigned", "signed", "float" or "complex", after scale and offset
    grid: Grid  # its CRS is None where there is none
    ground_control: GroundControl | None  # where there are points and no CRS with a transform
    optical: bool  # whether red, green and blue are marked as such
    facts: Facts  # from tags and names
    block_shape: tuple[int, int]  # rows and columns
    files: tuple[dict[str, Any], ...]  # identity of every file that belongs to it


@dataclass(frozen=True)
class RasterReader(SceneReader):
    """Read bands from the files they are in, pixel for pixel."""

    bands: tuple[Band, ...]  # one per polarisation, all on one grid
    polarisations: tuple[str, ...]
    grid: Grid
    block_shape: tuple[int, int]  # rows and columns
    files: tuple[dict[str, Any], ...]  # identity of the files

    def read(self, window: Window) -> FloatArray:
        """Read a window; see `SceneReader.read`."""
        out = np.empty((len(self.bands), window.height, window.width), dtype=np.float32)
        for path, stamp in dict.fromkeys((band.path, band.stamp) for band in self.bands):
            at = [i for i, band in enumerate(self.bands) if band.path == path]
            bands = [self.bands[i] for i in at]
            stored, masks = self._stored(path, stamp, bands, window)
            valid = iter(masks)
            for i, values in zip(at, stored, strict=True):
                band = self.bands[i]
                out[i] = _decode(values, band, next(valid) if band.masked else None)
        return out

    def _stored(self, path: str, stamp: str, bands: list[Band], window: Window) -> Planes:
        """Read bands of one file as they are stored, and the masks of those that have one."""
        indexes = [band.index for band in bands]
        masked = [band.index for band in bands if band.masked]

        def read(window: Window) -> Planes:
            place = ((window.row, window.stop_row), (window.col, window.stop_col))

            def from_dataset(dataset: Any) -> Planes:
                # Always at full resolution: how overviews of SAR were averaged is not known.
                masks = [dataset.read_masks(index, window=place) > 0 for index in masked]
                empty = np.empty((0, window.height, window.width), dtype=bool)
                return dataset.read(indexes, window=place), np.stack(masks) if masks else empty

            return read_dataset(path, stamp, from_dataset)

        if not is_remote(path):
            return read(window)
        name = (path, stamp, *indexes, *masked)
        return read_blocks(name, window, self.grid.shape, self.block_shape, read)

    def read_validity(self, longest: int) -> BoolArray:
        """Read validity decimated; see `SceneReader.read_validity`."""
        return np.asarray(self.read_band_validity(longest).all(axis=0))

    def read_band_validity(self, longest: int) -> BoolArray:
        """Read validity of each band decimated, shape (band, row, col), through overviews if it has any."""
        shape = decimated_shape(self.grid.shape, longest)

        def read(dataset: Any, band: Band) -> BoolArray:
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

        return np.stack([read_dataset(b.path, b.stamp, partial(read, band=b)) for b in self.bands])

    def identity(self) -> dict[str, Any]:
        """Return the identity of the files, and how their values are read."""
        how = [[b.index, repr(b.nodata), b.masked, b.scale, b.offset] for b in self.bands]
        return {
            "files": list(self.files),
            "bands": dict(zip(self.polarisations, how, strict=True)),
            "grid": [self.grid.crs, list(self.grid.transform), list(self.grid.shape)],
        }


@dataclass(frozen=True)
class OpenedSource:
    """Pixels in the frame of their source, and what is known about them."""

    reader: SceneReader
    control: GroundControl | None  # where the source has points instead of a grid
    facts: Facts
    kind: str  # as of a `Raster`, or "calibrated"
    label: str  # names the scene in messages


def open_raster(source: str | Path, *, names: int = 0, nodata: float | None = None) -> Raster:
    """Read the header of a GDAL raster.

    Parameters
    ----------
    source : str or Path
        A path or URL.
    names : int
        How many polarisations the caller names. If as many as there are bands, one marked as alpha is a
        polarisation too (GDAL marks the fourth of four byte bands so, unless set otherwise).
    nodata : float, optional
        Replaces the nodata value of the file.

    Raises
    ------
    SceneError
        If GDAL cannot open it, it holds no pixels, or more than a scene can have.
    """
    path = gdal_path(source)
    # One request whose failure says what those of GDAL do not: no such file, refused, not reached.
    known = {path: identify_file(path)} if is_remote(path) else {}
    with open_dataset(path, digest(known) if known else None) as dataset:
        if dataset.count == 0 or 0 in dataset.shape:
            inner = dataset.subdatasets
            hint = f": it holds several rasters, name one, such as {inner[0]}" if inner else ""
            raise SceneError(
                f"{display_name(path)}: no pixels ({dataset.count} bands, shape {dataset.shape}){hint}"
            )
        check_size(dataset, path)
        listed = list_files(dataset) or [path]
        before = stamp_files(listed, known.get(path, {}).get("etag"))
        files = tuple(identify_files(listed, known))
        file_name = PurePosixPath(path.partition("?")[0] if is_remote(path) else path).name
        found, by_band, indexes = _band_names(dataset, file_name, names)
        stamp = digest(files) + before
        bands = tuple(_band(dataset, path, stamp, i, indexes, nodata) for i in indexes)
        kind = _kind([dataset.dtypes[b.index - 1] for b in bands], bands)
        if kind in ("bytes", "unsigned") and zero_is_nodata(file_name, dataset.tags()):
            bands = with_nodata(bands, 0.0)
        grid, control = _georeference(dataset)
        roles = {role.name for role in dataset.colorinterp}
        facts = read_facts(
            file_name,
            dataset.tags(),
            [dataset.descriptions[i - 1] for i in indexes],
            [dataset.units[i - 1] for i in indexes],
        )
        return Raster(
            path=path,
            bands=bands,
            names=found,
            named_by_band=by_band,
            kind=kind,
            grid=grid,
            ground_control=control,
            optical={"red", "green", "blue"} <= roles,
            facts=facts,
            block_shape=tuple(dataset.block_shapes[0]),
            files=files,
        )


def _band_names(dataset: Any, file_name: str, given: int) -> tuple[tuple[str, ...] | None, bool, list[int]]:
    """Return polarisations, whether the bands say so, and the indexes of the bands that hold pixels."""

    def named(indexes: list[int]) -> tuple[tuple[str, ...] | None, bool]:
        descriptions = [dataset.descriptions[i - 1] for i in indexes]
        return polarisation_names(descriptions, [dataset.tags(i) for i in indexes], dataset.tags(), file_name)

    everything = list(dataset.indexes)
    opaque = [i for i in everything if not _is_alpha(dataset, i)]
    names, by_band = named(everything)
    if given == len(everything) or by_band or not opaque:
        return names, by_band, everything
    chosen = _polarised(dataset, opaque)
    return (*named(chosen), chosen)


def _polarised(dataset: Any, indexes: list[int]) -> list[int]:
    """Leave out described bands that are no polarisation, beside some that are: VV, VH, angle."""
    words = {i: polarisation_words(dataset.descriptions[i - 1] or "") for i in indexes}
    found = [i for i in indexes if len(words[i]) == 1]
    others = [i for i in indexes if not words[i]]
    distinct = len({words[i][0] for i in found}) == len(found) == len(indexes) - len(others)
    return found if found and distinct and all(dataset.descriptions[i - 1] for i in others) else indexes


def _is_alpha(dataset: Any, index: int) -> bool:
    """Whether a band is opacity: GDAL says so of the fourth of four byte bands, but a name may differ."""
    said = re.findall(r"[a-z]+", (dataset.descriptions[index - 1] or "").lower())
    return dataset.colorinterp[index - 1].name == "alpha" and (not said or bool({"alpha", "mask"} & {*said}))


def _band(dataset: Any, path: str, stamp: str, index: int, indexes: list[int], nodata: float | None) -> Band:
    flags = {flag.name for flag in dataset.mask_flag_enums[index - 1]}
    mask_is_pixels = "alpha" in flags and len(indexes) == dataset.count
    return Band(
        path=path,
        stamp=stamp,
        index=index,
        nodata=dataset.nodatavals[index - 1] if nodata is None else nodata,
        masked="per_dataset" in flags and not mask_is_pixels,
        scale=float(dataset.scales[index - 1]),
        offset=float(dataset.offsets[index - 1]),
    )


def with_nodata(bands: Sequence[Band], nodata: float) -> tuple[Band, ...]:
    """Return bands with a nodata value, where their file does not say which pixels are valid."""
    silent = all(band.nodata is None and not band.masked for band in bands)
    return tuple(replace(band, nodata=nodata) for band in bands) if silent else tuple(bands)


def _kind(dtypes: list[str], bands: tuple[Band, ...]) -> str:
    if any("complex" in dtype for dtype in dtypes):
        return "complex"
    if any(dtype.startswith("float") for dtype in dtypes) or any(
        b.scale != 1 or b.offset != 0 for b in bands
    ):
        return "float"
    if set(dtypes) == {"uint8"}:
        return "bytes"
    return "unsigned" if all(dtype.startswith("uint") for dtype in dtypes) else "signed"


def _georeference(dataset: Any) -> tuple[Grid, GroundControl | None]:
    points, points_crs = dataset.gcps
    frame = Grid(None, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), dataset.shape)
    try:
        if points and points_crs and dataset.transform.is_identity:
            crs = str(Grid.create(points_crs, dataset.transform, dataset.shape).crs)
            return frame, GroundControl(crs, tuple((p.row, p.col, p.x, p.y) for p in points))
        # A CRS without a transform places nothing, nor does a transform without a CRS.
        if not dataset.crs or dataset.transform.is_identity:
            return frame, None
        return Grid.create(dataset.crs, dataset.transform, dataset.shape), None
    except GeoreferenceError as error:
        raise GeoreferenceError(f"{dataset.name}: {error}") from error


def _decode(stored: npt.NDArray[Any], band: Band, valid: npt.NDArray[np.bool_] | None) -> FloatArray:
    """Turn stored values into float32 with NaN, and complex samples into amplitude."""
    with np.errstate(over="ignore", invalid="ignore"):
        missing = np.zeros(stored.shape, dtype=bool) if valid is None else ~valid
        if band.nodata is not None:
            missing |= stored == band.nodata
        values = np.abs(stored) if np.iscomplexobj(stored) else stored
        if band.scale != 1 or band.offset != 0:
            values = values.astype(np.float64) * band.scale + band.offset
        decoded = values.astype(np.float32)
    decoded[missing | ~np.isfinite(decoded)] = np.nan
    return decoded


def read_blocks(
    name: Hashable,
    window: Window,
    shape: tuple[int, int],
    block_shape: tuple[int, int],
    read: Callable[[Window], Planes],
) -> Planes:
    """Read a window of a remote raster by whole blocks, which are kept for other windows.

    GDAL's own cache belongs to a handle, and each thread has its own; and of an image in strips, every window
    would transfer the strips anew.

    Parameters
    ----------
    name : hashable
        Files, their content, bands.
    window : Window
        Inside of `shape`, the rows and columns of the whole, which is stored in blocks of `block_shape`.
    read : callable
        Reads a window of whole blocks. Called by one thread at a time, for as few rectangles as can be.
    """
    high, wide = block_shape
    places = [
        Window(row, col, min(high, shape[0] - row), min(wide, shape[1] - col))
        for row in range(window.row // high * high, window.stop_row, high)
        for col in range(window.col // wide * wide, window.stop_col, wide)
    ]
    found = _found(name, places)
    if len(found) < len(places):
        with _lock:
            fetching = _fetching.setdefault(name, threading.Lock())
        with fetching:
            # Another thread may have fetched them while this one waited.
            found |= _found(name, [place for place in places if place not in found])
            missing = [place for place in places if place not in found]
            if missing:
                found |= _fetch(name, missing, read)
    return _cut(window, found)


def _fetch(
    name: Hashable, missing: Sequence[Window], read: Callable[[Window], Planes]
) -> dict[Window, Planes]:
    blocks = {}
    for area in _rectangles(missing):
        planes = read(area)
        for place in missing:
            if area.intersection(place) is not None:
                rows, cols = place.shifted(-area.row, -area.col).slices
                blocks[place] = tuple(plane[:, rows, cols].copy() for plane in planes)
    _keep(name, blocks)
    return blocks


def _rectangles(blocks: Sequence[Window]) -> list[Window]:
    """Join blocks, in order of rows and columns, to few rectangles that hold nothing else."""
    runs: list[Window] = []
    for block in blocks:
        last = runs[-1] if runs else None
        if last is not None and (last.row, last.stop_col) == (block.row, block.col):
            runs[-1] = last._replace(width=last.width + block.width)
        else:
            runs.append(block)
    joined: list[Window] = []
    for run in runs:
        above = [w for w in joined if (w.stop_row, w.col, w.width) == (run.row, run.col, run.width)]
        if above:
            joined[joined.index(above[0])] = above[0]._replace(height=above[0].height + run.height)
        else:
            joined.append(run)
    return joined


def _found(name: Hashable, places: Sequence[Window]) -> dict[Window, Planes]:
    with _lock:
        found = {place: _kept[name, place] for place in places if (name, place) in _kept}
        for place in found:
            _kept.move_to_end((name, place))
    return found


def _keep(name: Hashable, blocks: dict[Window, Planes]) -> None:
    with _lock:
        for place, planes in blocks.items():
            _kept[name, place] = planes
        size = sum(plane.nbytes for planes in _kept.values() for plane in planes)
        while size > CACHE_BYTES:
            size -= sum(plane.nbytes for plane in _kept.popitem(last=False)[1])


def _cut(window: Window, blocks: dict[Window, Planes]) -> Planes:
    kinds = next(iter(blocks.values()))
    out = tuple(np.empty((len(kind), window.height, window.width), kind.dtype) for kind in kinds)
    for place, planes in blocks.items():
        common = window.intersection(place)
        assert common is not None  # noqa: S101  (only blocks that touch are looked for)
        there = common.shifted(-window.row, -window.col).slices
        here = common.shifted(-place.row, -place.col).slices
        for target, plane in zip(out, planes, strict=True):
            target[:, *there] = plane[:, *here]
    return out
