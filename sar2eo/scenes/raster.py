"""GDAL rasters: what a header says, and a reader of the pixels in the frame they are stored in."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rasterio.enums import Resampling

from sar2eo.errors import GeoreferenceError, SceneError, SettingsError
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
    band_polarisations,
    find_time,
    is_layer,
    iso_datetime,
    iso_datetime_or_none,
    polarisation_names,
    polarisation_tag,
    read_facts,
    zero_is_nodata,
)
from sar2eo.scenes.reader import BoolArray, FloatArray, SceneReader, decimated_shape
from sar2eo.scenes.snap import read_snap_tag

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
    fill: float | None = None  # another one, that no header declares
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
    texts: tuple[str, ...]  # descriptions of the bands, and tags that name polarisations
    layers: tuple[str, ...]  # names of bands left out, which are no radar
    unapplied: str  # scale and offset that only tags state, and GDAL does not apply; empty for none
    kind: str  # "bytes", "unsigned", "signed", "float" or "complex", after scale and offset
    grid: Grid  # its CRS is None where there is none
    ground_control: GroundControl | None  # where there are points and no CRS with a transform
    optical: bool  # whether red, green and blue are marked as such
    facts: Facts  # from tags and names
    dates: tuple[str, ...]  # days that the bands name
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
        for i, stored, valid in self.read_stored(window):
            out[i] = decode(stored, valid, self.bands[i])
        return out

    def read_stored(self, window: Window) -> Iterator[tuple[int, npt.NDArray[Any], BoolArray]]:
        """Read the number of each band, its values as they are stored, and which of them are valid."""
        for path, stamp in dict.fromkeys((band.path, band.stamp) for band in self.bands):
            at = [i for i, band in enumerate(self.bands) if band.path == path]
            stored, masks = self._read_file(path, stamp, [self.bands[i] for i in at], window)
            masked = iter(masks)
            for i, values in zip(at, stored, strict=True):
                band = self.bands[i]
                valid = _is_valid(values, band)
                yield i, values, valid & next(masked) if band.masked else valid

    def _read_file(self, path: str, stamp: str, bands: list[Band], window: Window) -> Planes:
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
            if floats or (band.nodata, band.fill) != (None, None):
                values = dataset.read(band.index, out_shape=shape, resampling=Resampling.nearest)
                valid &= _is_valid(values, band) & np.isfinite(values)
            return valid

        return np.stack([read_dataset(b.path, b.stamp, partial(read, band=b)) for b in self.bands])

    def identity(self) -> dict[str, Any]:
        """Return the identity of the files, and how their values are read."""
        how: list[list[Any]] = [[b.index, repr(b.nodata), b.masked, b.scale, b.offset] for b in self.bands]
        for band, said in zip(self.bands, how, strict=True):
            said += [] if band.fill is None else [f"fill {band.fill!r}"]
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
    plain: bool = False  # whether it is no product, whose values are defined, but rasters
    unnamed: bool = False  # whether the caller alone says its polarisations
    unapplied: str = ""  # as of a `Raster`


def open_raster(
    source: str | Path,
    *,
    names: int = 0,
    nodata: float | None = None,
    chosen: Sequence[int] | None = None,
    date: str | None = None,
) -> Raster:
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
    chosen : sequence of int, optional
        Bands to take, from 1; by default all that hold pixels.
    date : str, optional
        Day to take of a stack of dates, ISO 8601.

    Raises
    ------
    SceneError
        If GDAL cannot open it, it holds no pixels, or more than a scene can have.
    SettingsError
        If a chosen band is not there.
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
        texts = _read_texts(dataset, path)
        indexes = list(dict.fromkeys(chosen)) if chosen else _choose_indexes(dataset, texts, names, date)
        if absent := [index for index in indexes if index not in dataset.indexes]:
            raise SettingsError(
                f"{display_name(path)}: has no band {absent[0]}, it has {dataset.count}, counted from 1"
            )
        described = [texts.descriptions[i - 1] for i in indexes]
        band_tags = [dataset.tags(i) for i in indexes]
        found, by_band = polarisation_names(described, band_tags, texts.tags, file_name)
        stamp = digest(files) + before
        bands = tuple(_band(dataset, path, stamp, i, indexes, nodata) for i in indexes)
        kind = _kind([dataset.dtypes[b.index - 1] for b in bands], bands)
        if kind in ("bytes", "unsigned") and zero_is_nodata(file_name, texts.tags):
            bands = with_nodata(bands, 0.0)
        elif texts.nodata is not None:
            bands = with_nodata(bands, texts.nodata)
        grid, control = _georeference(dataset)
        roles = {role.name for role in dataset.colorinterp}
        facts = read_facts(file_name, texts.tags, described, [texts.units[i - 1] for i in indexes])
        times = [_time_of_band(dataset, i) for i in indexes]
        facts = Facts(datetime=times[0]).over(facts) if len(set(times)) == 1 else facts
        left_out = [i for i in dataset.indexes if not (chosen or date) and i not in indexes]
        return Raster(
            path=path,
            bands=bands,
            names=found,
            named_by_band=by_band,
            texts=(*described, *map(polarisation_tag, [texts.tags, *band_tags])),
            layers=tuple(texts.descriptions[i - 1] for i in left_out if not _is_alpha(dataset, i)),
            unapplied=_unapplied_scale(dataset, bands),
            kind=kind,
            grid=grid,
            ground_control=control,
            optical={"red", "green", "blue"} <= roles,
            facts=facts,
            dates=tuple(sorted({time[:10] for time in times if time})),
            block_shape=tuple(dataset.block_shapes[0]),
            files=files,
        )


class _Texts(NamedTuple):
    """What a file says in words; lists are by band."""

    descriptions: list[str]
    units: list[str]
    tags: dict[str, str]
    nodata: float | None = None  # where only words say it


def _read_texts(dataset: Any, path: str) -> _Texts:
    """Read what GDAL finds; of a local GeoTIFF that does not describe its bands, also what SNAP wrote."""
    said = _Texts([text or "" for text in dataset.descriptions], list(dataset.units), dataset.tags())
    if dataset.driver != "GTiff" or any(said.descriptions) or path.startswith("/vsi"):
        return said
    snap = read_snap_tag(Path(path))
    if snap is None or len(snap.bands) != dataset.count:
        return said
    nodata = {band.nodata for band in snap.bands}
    return _Texts(
        [band.name for band in snap.bands],
        [band.unit for band in snap.bands],
        {**snap.tags, **said.tags},
        nodata.pop() if len(nodata) == 1 else None,
    )


def _choose_indexes(dataset: Any, texts: _Texts, given: int, date: str | None) -> list[int]:
    """Return the bands that hold pixels of the scene: no alpha, no layers beside polarisations; of a date."""
    everything = list(dataset.indexes)
    days = {i: (_time_of_band(dataset, i) or "")[:10] for i in everything}
    if date is not None:
        everything = [i for i in everything if days[i] == iso_datetime(date)[:10]]
        if not everything:
            known = list_dates(sorted(set(days.values()) - {""}))
            raise SceneError(f"{dataset.name}: no band of {date}, but {known or 'none that names a date'}")
    opaque = [i for i in everything if not _is_alpha(dataset, i)] or everything
    said = {i: band_polarisations(texts.descriptions[i - 1], dataset.tags(i)) for i in everything}
    single = [i for i in everything if len(said[i]) == 1 and not is_layer(texts.descriptions[i - 1])]
    distinct = len({said[i][0] for i in single}) == len(single)
    if single and distinct and all(said[i] or texts.descriptions[i - 1] for i in opaque):
        return single
    return everything if given == len(everything) else opaque


def list_dates(days: Sequence[str]) -> str:
    """Name days in a message; of many the first and the last."""
    return ", ".join(days if len(days) < 9 else [*days[:4], "...", *days[-2:]])


def _time_of_band(dataset: Any, index: int) -> str | None:
    """Return the time in a band's description, or that of its place in time in a netCDF file."""
    tags = dataset.tags(index)
    units = re.match(r"(second|minute|hour|day)s since (.+)", dataset.tags().get("time#units", ""))
    start = iso_datetime_or_none(units[2]) if units else None
    if start is None or units is None or "NETCDF_DIM_time" not in tags:
        return find_time(dataset.descriptions[index - 1] or "")
    passed = timedelta(**{f"{units[1]}s": float(tags["NETCDF_DIM_time"])})
    return iso_datetime(datetime.fromisoformat(start) + passed)


def _unapplied_scale(dataset: Any, bands: Sequence[Band]) -> str:
    """Return what tags state of scale and offset where GDAL applies none: other programs' packed numbers."""
    if any((band.scale, band.offset) != (1, 0) for band in bands):
        return ""
    tags = {key.lower(): value for key, value in {**dataset.tags(bands[0].index), **dataset.tags()}.items()}
    found = {"scale": tags.get("scale_factor", "1"), "offset": tags.get("add_offset", "0")}
    with suppress(ValueError):
        scale, offset = (float(value) for value in found.values())
        return "" if (scale, offset) == (1, 0) else f"-a_scale {scale:g} -a_offset {offset:g}"
    return ""


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


def _is_valid(stored: npt.NDArray[Any], band: Band) -> BoolArray:
    """Return where stored values are neither nodata nor fill."""
    valid = np.ones(stored.shape, dtype=bool)
    with np.errstate(over="ignore"):
        for value in (band.nodata, band.fill):
            if value is not None:
                valid &= stored != value
    return valid


def decode(stored: npt.NDArray[Any], valid: BoolArray, band: Band) -> FloatArray:
    """Turn stored values into float32 with NaN, and complex samples into amplitude."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.abs(stored) if np.iscomplexobj(stored) else stored
        if band.scale != 1 or band.offset != 0:
            values = values.astype(np.float64) * band.scale + band.offset
        decoded = values.astype(np.float32)
    decoded[~valid | ~np.isfinite(decoded)] = np.nan
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
