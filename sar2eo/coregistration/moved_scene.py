"""The moved scene: read where a transform finds it on the reference's grid, and written as a COG."""

from __future__ import annotations

from collections.abc import Mapping as TagMapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from pyproj import Transformer
from rasterio.enums import ColorInterp

from sar2eo.compute.dask_run import Progress, add_count, compute_keys, report_progress, timed
from sar2eo.coregistration.transforms import MovingTransform
from sar2eo.errors import OutputError, RadiometryError, one_line
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import to_amplitude
from sar2eo.geo.windows import Window
from sar2eo.results.cog import BLOCK, copy_cog, raise_gdal_errors, validate
from sar2eo.scenes.band_names import BandText, choose_cloud
from sar2eo.scenes.gdal import open_dataset
from sar2eo.scenes.geolocation import AffineMapping, Mapping
from sar2eo.scenes.identity import digest
from sar2eo.scenes.optical import EoScene, PictureReader
from sar2eo.scenes.raster import Band, RasterReader, open_raster
from sar2eo.scenes.reader import FloatArray, SceneReader
from sar2eo.scenes.sar_scene import SarScene
from sar2eo.scenes.warp import LOBES, WarpedReader, from_amplitude, lanczos_taps, read_padded, split_in_half

Array = npt.NDArray[np.float64]

_SOURCE_PIXELS = 1 << 21
# Positions are taken to this part of a pixel; nothing finer is known.
_PHASES = 1024


@dataclass(frozen=True, eq=False)
class MovedMapping:
    """From ground coordinates of the reference's `grid` to pixels of the moving scene, through a transform.

    `base` is the moving scene's own mapping, from ground coordinates in `base_crs`.
    """

    base: Mapping
    base_crs: str
    grid: Grid
    transform: MovingTransform

    def pixels(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return rows and columns; see `sar2eo.scenes.geolocation.Mapping`."""
        a, b, c, d, e, f = (~self.grid.affine)[:6]
        places = np.column_stack([(d * x + e * y + f).ravel(), (a * x + b * y + c).ravel()])
        rows, cols = ((places + self.transform.shifts(places)).T).reshape(2, *x.shape)
        a, b, c, d, e, f = self.grid.transform
        moved = a * cols + b * rows + c, d * cols + e * rows + f
        if self.base_crs != self.grid.crs:
            moved = _transformer(str(self.grid.crs), self.base_crs).transform(*moved)
        return self.base.pixels(*moved)

    def ground(self, rows: Array, cols: Array) -> tuple[Array, Array]:
        """Not needed: a transform is not inverted."""
        raise NotImplementedError

    def token(self) -> str:
        """Return a short text that differs where the maps differ."""
        return digest([self.base.token(), self.base_crs, list(self.grid.transform), self.transform.facts()])


@lru_cache(maxsize=8)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def map_moved(reader: SceneReader, grid: Grid, transform: MovingTransform) -> MovedMapping:
    """Map the reference's grid to the stored pixels of a scene, so that they are interpolated only once."""
    if isinstance(reader, WarpedReader):
        return MovedMapping(reader.mapping, str(reader.grid.crs), grid, transform)
    return MovedMapping(AffineMapping(reader.grid, str(grid.crs)), str(grid.crs), grid, transform)


@dataclass(frozen=True, eq=False)
class MovedReader(SceneReader):
    """Reads a scene through a transform, by a Lanczos kernel of three lobes; SAR in amplitude.

    Where target pixels are at least twice as large as source pixels, these are averaged (SAR in intensity) as
    `sar2eo.scenes.warp.WarpedReader` does. Without a `quantity` a scene is optical: its values are
    interpolated as they are. Of bands of classes, `nearest`, the nearest value is taken.
    """

    source: SceneReader
    mapping: MovedMapping
    grid: Grid
    quantity: str | None
    nearest: tuple[bool, ...]

    block_shape = (BLOCK, BLOCK)

    @property
    def polarisations(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the source's bands."""
        return self.source.polarisations

    @cached_property
    def _placed(self) -> WarpedReader:
        return WarpedReader(self.source, self.mapping, self.grid, self.quantity or "intensity")

    def read(self, window: Window) -> FloatArray:
        """Read a window; see `SceneReader.read`."""
        out = np.full((len(self.nearest), window.height, window.width), np.nan, dtype=np.float32)
        for part in window.tiles(BLOCK, BLOCK):
            tile = out[:, *part.shifted(-window.row, -window.col).slices]
            rows, cols = self._placed.source_pixels(part)
            if not all(self.nearest):
                if self._placed.factors == (1, 1):
                    self._fill(tile, rows, cols)
                else:
                    tile[:] = self._placed.read(part)
            if any(self.nearest):
                self._fill_nearest(tile, rows, cols)
        return out

    def identity(self) -> dict[str, Any]:
        """Return everything that the pixels depend on."""
        return {**self.source.identity(), "moved": self.mapping.token(), "quantity": self.quantity}

    def _fill(self, out: FloatArray, rows: Array, cols: Array) -> None:
        """Interpolate at source places, of pixel corners."""
        inside = self._inside(rows, cols)
        if not inside.any():
            return
        row, col = rows[inside] - 0.5, cols[inside] - 0.5
        top, left = floor(row.min()) - LOBES, floor(col.min()) - LOBES
        box = Window(top, left, floor(row.max()) + LOBES + 2 - top, floor(col.max()) + LOBES + 2 - left)
        if box.height * box.width > _SOURCE_PIXELS and rows.size > 1:
            for piece in split_in_half(out, rows, cols):
                self._fill(*piece)
            return
        values = read_padded(self.source, box)
        if self.quantity is not None:
            values = np.where(np.isfinite(values), to_amplitude(values, self.quantity), np.float32(np.nan))
        found = lanczos_at(values, row - top, col - left)
        out[:, inside] = found if self.quantity is None else from_amplitude(found, self.quantity)

    def _fill_nearest(self, out: FloatArray, rows: Array, cols: Array) -> None:
        """Take the pixel at source places, in the bands of classes."""
        inside = self._inside(rows, cols)
        if not inside.any():
            return
        row, col = np.floor(rows[inside]).astype(np.int64), np.floor(cols[inside]).astype(np.int64)
        box = Window(int(row.min()), int(col.min()), int(np.ptp(row)) + 1, int(np.ptp(col)) + 1)
        if box.height * box.width > _SOURCE_PIXELS and rows.size > 1:
            for piece in split_in_half(out, rows, cols):
                self._fill_nearest(*piece)
            return
        values = read_padded(self.source, box)
        for band in np.flatnonzero(self.nearest):
            out[band][inside] = values[band, row - box.row, col - box.col]

    def _inside(self, rows: Array, cols: Array) -> npt.NDArray[np.bool_]:
        height, width = self.source.shape[1:]
        with np.errstate(invalid="ignore"):
            return np.asarray((rows >= 0) & (rows < height) & (cols >= 0) & (cols < width))


@lru_cache(maxsize=1)
def _taps() -> npt.NDArray[np.float32]:
    """Return the kernel's weights for every phase, shape (phase, 2 LOBES); at phase 0 the pixel itself."""
    taps = np.stack([lanczos_taps(phase / _PHASES) for phase in range(_PHASES)])
    taps[0] = 0
    taps[0, LOBES - 1] = 1
    return taps.astype(np.float32)


def lanczos_at(values: FloatArray, rows: Array, cols: Array) -> FloatArray:
    """Interpolate values (band, row, col), NaN where there is no data, at places between pixels.

    Rows and columns number pixel centres, shape (point,); they are at least 2, and at least 3 from the end.
    Returns shape (band, point), within the range of the valid pixels under the kernel; NaN where one of the
    (up to four) pixels next to the place is invalid.
    """
    at_row, at_col = (np.rint(part * _PHASES).astype(np.int64) for part in (rows, cols))
    down, across = _taps()[at_row % _PHASES], _taps()[at_col % _PHASES]
    row, col = at_row // _PHASES, at_col // _PHASES
    width = values.shape[2]
    flat = values.reshape(len(values), -1)
    valid = np.isfinite(flat)
    whole = bool(valid.all())
    filled = flat if whole else np.where(valid, flat, np.float32(0))
    start = row * width + col
    total = np.zeros((len(values), rows.size), np.float32)
    weights, complete = np.zeros_like(total), np.ones(total.shape, bool)
    low, high = np.full_like(total, np.inf), np.full_like(total, -np.inf)
    for i in range(2 * LOBES):
        for j in range(2 * LOBES):
            index = start + ((i - LOBES + 1) * width + j - LOBES + 1)
            weight, found = down[:, i] * across[:, j], np.take(filled, index, axis=1)
            total += weight * found
            if whole:
                np.minimum(low, found, out=low)
                np.maximum(high, found, out=high)
                continue
            known = np.take(valid, index, axis=1)
            weights += weight * known
            complete &= known
            np.minimum(low, found, out=low, where=known)
            np.maximum(high, found, out=high, where=known)
    if whole:
        return np.clip(total, low, high)
    beside = np.ones(total.shape, bool)
    for i, needed_row in ((0, True), (1, down[:, LOBES] != 0)):
        for j, needed_col in ((0, True), (1, across[:, LOBES] != 0)):
            beside &= valid[:, start + i * width + j] | ~np.asarray(needed_row & needed_col)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Where all are valid, as it would be without a hole anywhere near.
        found = np.clip(np.where(complete, total, total / weights), low, high)
    return np.where(beside, found, np.float32(np.nan))


# Tags that would be wrong for other pixels.
_STALE = ("STATISTICS_", "AREA_OR_POINT", "OVR_RESAMPLING_ALG")


@dataclass(frozen=True, eq=False)
class Layout:
    """How a file stores values, so that the moved scene's file is like the moving scene's.

    Without a `nodata` value an internal mask holds which pixels are valid. `together` says whether a pixel is
    nodata only where all bands have that value, as in pictures of bytes. `bands` are description, role
    (colour interpretation), unit, tags, scale, offset of each; those of classes are `nearest`.
    """

    dtype: str
    nodata: float | None
    together: bool
    bands: tuple[dict[str, Any], ...]
    tags: dict[str, str]
    nearest: tuple[bool, ...]

    def encode(self, values: FloatArray) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Encode values (band, row, col), NaN where there is no data; return them and validity (row, col)."""
        valid = np.isfinite(values)
        plain = np.where(valid, values, 0).astype(np.float64)
        for band, facts in zip(plain, self.bands, strict=True):
            if facts["scale"] != 1 or facts["offset"] != 0:
                band -= facts["offset"]
                band /= facts["scale"]
        kind = np.dtype(self.dtype)
        if kind.kind in "iu":
            info = np.iinfo(kind)
            plain = np.clip(np.rint(plain), info.min, info.max)
            if self.nodata is not None:
                _keep_apart(plain, valid, self.nodata, together=self.together, step=info.max)
        filled = np.where(valid, plain, 0.0 if self.nodata is None else self.nodata)
        return filled.astype(kind), np.asarray(valid.all(axis=0))


def _keep_apart(
    plain: npt.NDArray[np.float64], valid: npt.NDArray[np.bool_], nodata: float, *, together: bool, step: int
) -> None:
    """Keep valid pixels from becoming nodata by rounding: they take the next number."""
    same = valid & (plain == nodata)
    if together:
        same &= same.all(axis=0)
    plain[same] = nodata + 1 if nodata < step else nodata - 1


def read_layout(scene: SarScene | EoScene) -> tuple[SceneReader, Layout]:
    """Return a reader of all bands of a scene's file, in its own frame, and how to store them.

    Values of SAR are in the scene's quantity, those of an optical scene as stored. A scene that is no single
    raster has the bands that were opened.

    Raises
    ------
    RadiometryError
        For complex samples.
    """
    reader: SceneReader
    if isinstance(scene, EoScene):
        bands = _all_bands(scene.reader.source.bands, 0)
        plain = RasterReader(
            tuple(replace(band, scale=1.0, offset=0.0) for band in bands),
            tuple(f"band {number}" for number in range(1, len(bands) + 1)),
            scene.grid,
            scene.reader.block_shape,
            scene.reader.source.files,
        )
        together = scene.kind == "rgb"
        reader = PictureReader(plain, "rgb") if together else plain
        return reader, _describe_bands(bands, together=together, optical=True)
    reader = scene.reader.source if isinstance(scene.reader, WarpedReader) else scene.reader
    if not isinstance(reader, RasterReader):
        names = [{**_PLAIN, "description": name} for name in reader.polarisations]
        return reader, Layout("float32", float("nan"), False, tuple(names), {}, (False,) * len(names))
    bands = _all_bands(reader.bands, len(reader.polarisations))
    if bands != reader.bands:
        names_of = tuple(f"band {band.index}" for band in bands)
        reader = RasterReader(bands, names_of, reader.grid, reader.block_shape, reader.files)
    return reader, _describe_bands(bands, together=False, optical=False)


_PLAIN: dict[str, Any] = {
    "description": None, "role": "undefined", "unit": None, "tags": {}, "scale": 1.0, "offset": 0.0,
}  # fmt: skip


def _all_bands(bands: tuple[Band, ...], named: int) -> tuple[Band, ...]:
    """Return all bands of a file of which some are given; the given bands if they are in several files."""
    if len({band.path for band in bands}) > 1:
        return bands
    known = {band.index: band for band in bands}
    everything = open_raster(bands[0].path, names=named).bands
    first = bands[0]
    filled = [
        replace(band, nodata=first.nodata) if band.nodata is None and not band.masked else band
        for band in everything
    ]
    return tuple(known.get(band.index, band) for band in filled)


def _describe_bands(bands: tuple[Band, ...], *, together: bool, optical: bool) -> Layout:
    facts, dtypes, texts, tags = [], [], [], None
    for band in bands:
        with open_dataset(band.path) as dataset:
            tags = _without_stale(dataset.tags()) if tags is None else tags
            dtypes.append(np.dtype(dataset.dtypes[band.index - 1]))
            texts.append(BandText.read(dataset, band.index))
            facts.append(
                {
                    "description": dataset.descriptions[band.index - 1],
                    "role": dataset.colorinterp[band.index - 1].name,
                    "unit": dataset.units[band.index - 1],
                    "tags": _without_stale(dataset.tags(band.index)),
                    # Of optical scenes what is stored is read, and declared again.
                    "scale": 1.0 if optical else band.scale,
                    "offset": 0.0 if optical else band.offset,
                    "declared": (dataset.scales[band.index - 1], dataset.offsets[band.index - 1]),
                }
            )
    dtype = np.result_type(*dtypes)
    if dtype.kind == "c":
        raise RadiometryError(
            f"{bands[0].path}: complex samples cannot be moved without spoiling their phase: give amplitude"
        )
    cloud = choose_cloud(texts) if optical else None
    classes = None if cloud is None or cloud[1].kind == "percent" else cloud[0]
    return Layout(
        dtype=dtype.name,
        nodata=_nodata(bands, dtype),
        together=together,
        bands=tuple(facts),
        tags=tags or {},
        nearest=tuple(band.index == classes for band in bands),
    )


def _nodata(bands: tuple[Band, ...], dtype: np.dtype[Any]) -> float | None:
    declared = next((band.nodata for band in bands if band.nodata is not None), None)
    if dtype.kind == "f":
        return float("nan") if declared is None else declared
    if declared is None or not float(declared).is_integer():
        return None
    info = np.iinfo(dtype)
    return declared if info.min <= declared <= info.max else None


def _without_stale(tags: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if not name.startswith(_STALE)}


# Values of a task, and tasks at a time: what is in memory.
_TASK_VALUES = 1 << 20
_TASKS = 8
# As for other COGs: more fills up with the size of the scene, and is no faster.
_CACHE_BYTES = 8 * 2**20

# Most disk space, as a multiple of all values: bytes of speckle collected (1.04), the COG with its overviews
# (0.99), and these once more (0.26). Optical scenes take a little less.
_PEAK = 2.3


def _read_block(window: Window, reader: SceneReader, layout: Layout) -> Any:
    """Read and encode a block: values (band, row, col) and validity, or None where nothing is valid."""
    with timed("warp_seconds"):
        values = reader.read(window)
    add_count("blocks_done", 1)
    return layout.encode(values) if np.isfinite(values).any() else None


def needed_bytes(layout: Layout, window: Window) -> int:
    """Estimate the disk space that `write_moved` needs, where `window` of the grid has data."""
    values = window.height * window.width * len(layout.bands)
    return round(_PEAK * values * np.dtype(layout.dtype).itemsize)


def write_moved(
    reader: SceneReader,
    layout: Layout,
    grid: Grid,
    folder: Path,
    *,
    tags: TagMapping[str, str],
    overviews: str,
    progress: Progress | None = None,
) -> Path:
    """Write a scene as a valid COG, with little of it in memory at a time; return its path in `folder`.

    `reader` is that of the moved scene on `grid`, computed on Dask's active scheduler. `tags` go beside those
    of the layout; `overviews` is GDAL's name of how they are averaged. `progress` is called with blocks_total
    and blocks_done. Raises `OutputError` if it cannot be written, or no pixel is valid.
    """
    plain, target = folder / "plain.tif", folder / "moved.tif"
    try:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_CACHEMAX=_CACHE_BYTES):
            with raise_gdal_errors():
                valid = _write_plain(reader, layout, grid, plain, tags, progress)
            if valid:
                copy_cog(
                    plain, target, COMPRESS="deflate", PREDICTOR="YES", NUM_THREADS="ALL_CPUS",
                    OVERVIEW_RESAMPLING=overviews,
                )  # fmt: skip
    except Exception as error:  # GDAL's errors have no public class, and a full disk has many faces
        raise OutputError(
            f"{folder.parent}: the COG cannot be written ({one_line(error)}): is there space?"
        ) from error
    if not valid:
        raise OutputError(f"{folder.parent}: no pixel of the moved scene lies on the reference's grid")
    validate(target)
    return target


def _write_plain(
    reader: SceneReader,
    layout: Layout,
    grid: Grid,
    path: Path,
    tags: TagMapping[str, str],
    progress: Progress | None,
) -> int:
    """Write all blocks that have data; return the number of valid pixels."""
    wide = BLOCK * max(1, _TASK_VALUES // (BLOCK * BLOCK * len(layout.bands)))
    windows = list(grid.window.tiles(BLOCK, wide))
    shared = {"reader": reader, "layout": layout}
    colours = [band["role"] for band in layout.bands[:3]] == ["red", "green", "blue"]
    profile = {
        "driver": "GTiff", "dtype": layout.dtype, "count": len(layout.bands), "nodata": layout.nodata,
        "height": grid.shape[0], "width": grid.shape[1], "crs": grid.crs, "transform": grid.affine,
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "lzw", "sparse_ok": True,
        "bigtiff": "IF_SAFER", "interleave": "pixel", "photometric": "RGB" if colours else "MINISBLACK",
    }  # fmt: skip
    valid = 0
    with (
        rasterio.open(path, "w", **profile) as raster,
        report_progress(progress, {"blocks_total": len(windows)}),
    ):
        _write_facts(raster, layout, tags)
        for start in range(0, len(windows), _TASKS):
            chosen = windows[start : start + _TASKS]
            tasks = {("block", w.row, w.col): (_read_block, w, *shared) for w in chosen}
            for window, block in zip(chosen, compute_keys({**shared, **tasks}, list(tasks)), strict=True):
                if block is None:
                    continue
                rows, cols = window.slices
                place = ((rows.start, rows.stop), (cols.start, cols.stop))
                raster.write(block[0], window=place)
                if layout.nodata is None:
                    raster.write_mask(block[1], window=place)
                valid += int(block[1].sum())
    return valid


def _write_facts(raster: Any, layout: Layout, tags: TagMapping[str, str]) -> None:
    raster.update_tags(**{**layout.tags, **tags})
    raster.colorinterp = [ColorInterp[band["role"]] for band in layout.bands]
    for number, band in enumerate(layout.bands, start=1):
        if band["description"]:
            raster.set_band_description(number, band["description"])
        if band["unit"]:
            raster.set_band_unit(number, band["unit"])
        raster.update_tags(number, **band["tags"])
    declared = [band.get("declared", (1.0, 0.0)) for band in layout.bands]
    if any(each != (1.0, 0.0) for each in declared):
        raster.scales, raster.offsets = (tuple(part) for part in zip(*declared, strict=True))
