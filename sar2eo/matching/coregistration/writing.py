"""The moved scene as a COG: computed in blocks, collected in a file beside the target, renamed over it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp

from sar2eo import telemetry
from sar2eo.cog import signals_raised, validate
from sar2eo.computing import Progress, compute_keys, reporting
from sar2eo.durable import sync_file
from sar2eo.errors import OutputError, one_line
from sar2eo.grid import Grid
from sar2eo.matching.coregistration.layout import Layout
from sar2eo.scene.reader import SceneReader
from sar2eo.windows import Window

__all__ = ["needed_bytes", "write_moved"]

_BLOCK = 512
# Values of a task, and tasks at a time: what is in memory.
_TASK_VALUES = 1 << 20
_TASKS = 8
# As for other COGs: more fills up with the size of the scene, and is no faster.
_CACHE_BYTES = 8 * 2**20

# What is on disk at the most, as a multiple of all values: speckle in bytes, collected (1.04), as a COG with
# its overviews (0.99), and these once more (0.26). Optical scenes take a little less.
_PEAK = 2.3

Block = tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class _BlockRun:
    """One block to read and to encode."""

    window: Window

    def read(self, reader: SceneReader, layout: Layout) -> Block | None:
        with telemetry.timed("warp_seconds"):
            values = reader.read(self.window)
        telemetry.add("blocks_done", 1)
        return layout.stored(values) if np.isfinite(values).any() else None


def needed_bytes(layout: Layout, window: Window) -> int:
    """Estimate the disk space that `write_moved` needs at its peak.

    Parameters
    ----------
    layout : Layout
    window : Window
        Of the grid, where the moved scene has data.
    """
    values = window.height * window.width * len(layout.bands)
    return round(_PEAK * values * np.dtype(layout.dtype).itemsize)


def write_moved(
    reader: SceneReader,
    layout: Layout,
    grid: Grid,
    folder: Path,
    *,
    tags: Mapping[str, str],
    overviews: str,
    progress: Progress | None = None,
) -> Path:
    """Write a scene as a valid COG, with little of it in memory at a time.

    Parameters
    ----------
    reader : SceneReader
        Of the moved scene, on `grid`; computed on Dask's scheduler in force.
    layout : Layout
    grid : Grid
    folder : Path
        For what is being made.
    tags : mapping
        Of the file, beside those of the layout.
    overviews : str
        How overviews are averaged.
    progress : callable, optional
        Called with the counters blocks_total and blocks_done.

    Returns
    -------
    Path
        The COG in `folder`, flushed to disk.

    Raises
    ------
    OutputError
        If it cannot be written, or no pixel is valid.
    """
    plain, target = folder / "plain.tif", folder / "moved.tif"
    try:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_CACHEMAX=_CACHE_BYTES):
            valid = _write_plain(reader, layout, grid, plain, tags, progress)
            if valid:
                with signals_raised():
                    rasterio.shutil.copy(
                        str(plain), str(target), driver="COG", BLOCKSIZE=_BLOCK, BIGTIFF="IF_SAFER",
                        COMPRESS="deflate", PREDICTOR="YES", NUM_THREADS="ALL_CPUS",
                        OVERVIEW_RESAMPLING=overviews,
                    )  # fmt: skip
                sync_file(target)
    except (rasterio.errors.RasterioError, OSError) as error:
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
    tags: Mapping[str, str],
    progress: Progress | None,
) -> int:
    """Write all blocks that have data; return the number of valid pixels."""
    windows = list(_blocks(grid, len(layout.bands)))
    shared = {"reader": reader, "layout": layout}
    valid = 0
    with (
        rasterio.open(path, "w", **_profile(layout, grid)) as raster,
        reporting(progress, {"blocks_total": len(windows)}),
    ):
        _describe(raster, layout, tags)
        for start in range(0, len(windows), _TASKS):
            chosen = windows[start : start + _TASKS]
            tasks = {("block", w.row, w.col): (_BlockRun.read, _BlockRun(w), *shared) for w in chosen}
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


def _blocks(grid: Grid, bands: int) -> Iterator[Window]:
    """Partition a grid into blocks of whole tiles."""
    wide = _BLOCK * max(1, _TASK_VALUES // (_BLOCK * _BLOCK * bands))
    return grid.window.tiles(_BLOCK, wide)


def _profile(layout: Layout, grid: Grid) -> dict[str, Any]:
    roles = [band["role"] for band in layout.bands[:3]]
    return {
        "driver": "GTiff", "dtype": layout.dtype, "count": len(layout.bands), "nodata": layout.nodata,
        "height": grid.shape[0], "width": grid.shape[1], "crs": grid.crs, "transform": grid.affine,
        "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "lzw", "sparse_ok": True,
        "bigtiff": "IF_SAFER", "interleave": "pixel",
        "photometric": "RGB" if roles == ["red", "green", "blue"] else "MINISBLACK",
    }  # fmt: skip


def _describe(raster: Any, layout: Layout, tags: Mapping[str, str]) -> None:
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
