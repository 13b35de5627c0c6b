"""The moved scene as a COG: computed in blocks, collected in a file beside the target, renamed over it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from pyproj import Transformer
from rasterio.enums import ColorInterp

from sar2eo._version import __version__
from sar2eo.compute import counters
from sar2eo.compute.dask_run import Progress, compute_keys, reporting
from sar2eo.coregistration.acceptance import Evidence
from sar2eo.coregistration.band_layout import Layout
from sar2eo.errors import OutputError, one_line
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window
from sar2eo.matching.shifts import Displacement
from sar2eo.results.cog import raise_gdal_errors, validate
from sar2eo.scenes.reader import SceneReader
from sar2eo.store.atomic import sync_file

__all__ = ["geojson_of", "needed_bytes", "quiver_picture", "tie_rows", "versions", "write_moved"]

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
        with counters.timed("warp_seconds"):
            values = reader.read(self.window)
        counters.add("blocks_done", 1)
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
                with raise_gdal_errors():
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


Points = npt.NDArray[np.float64]

# Coordinates in degrees; a millionth is 0.1 m.
_DEGREES = 7
_LIBRARIES = ("numpy", "scipy", "scikit-image", "rasterio")
_INCH = 5.0
# Arrows are drawn so long, as a share of the distance of tie points.
_ARROW = 0.8


def versions(*, learned: bool) -> dict[str, str]:
    """Return versions of what the result depends on."""
    from rasterio import __gdal_version__

    names = (*_LIBRARIES, "torch") if learned else _LIBRARIES
    found = {name: importlib.metadata.version(name) for name in names}
    return {"sar2eo": __version__, "python": platform.python_version(), **found, "gdal": __gdal_version__}


def tie_rows(
    ties: Sequence[Displacement], evidence: Evidence, size: tuple[float, float]
) -> list[dict[str, Any]]:
    """Return every tie point as JSON values.

    Parameters
    ----------
    ties : sequence of Displacement
    evidence : Evidence
        Of them.
    size : tuple of float
        Height and width of a pixel in metres.

    Returns
    -------
    list of dict
        row and col of the reference; shift_rows, shift_cols and shift_m; score; accepted, by the method;
        inlier, by the fit; residual_rows, residual_cols, residual_px and residual_m, against a fit that did
        not see the point. Null is not known.
    """
    sure = iter(zip(evidence.shifts - evidence.predicted, evidence.inlier, strict=True))
    rows = []
    for tie in ties:
        accepted = tie.sure and bool(np.isfinite([tie.rows, tie.cols]).all())
        residual, inlier = next(sure) if accepted else (np.array([np.nan, np.nan]), False)
        shift = np.array([tie.rows, tie.cols])
        row = {
            "row": tie.row,
            "col": tie.col,
            "shift_rows": tie.rows,
            "shift_cols": tie.cols,
            "shift_m": np.hypot(*(shift * size)),
            "score": tie.score,
            "residual_rows": residual[0],
            "residual_cols": residual[1],
            "residual_px": np.hypot(*residual),
            "residual_m": np.hypot(*(residual * size)),
        }
        told = {name: round(float(v), 4) if np.isfinite(v) else None for name, v in row.items()}
        rows.append({**told, "accepted": accepted, "inlier": bool(inlier)})
    return rows


def geojson_of(rows: Sequence[dict[str, Any]], grid: Grid) -> bytes:
    """Return tie points as GeoJSON (RFC 7946, so in longitude and latitude), with the fields of `tie_rows`.

    Parameters
    ----------
    rows : sequence of dict
    grid : Grid
        Of the reference.
    """
    places = np.array([(row["row"], row["col"]) for row in rows], float).reshape(-1, 2)
    a, b, c, d, e, f = grid.transform
    row, col = places.T
    x, y = a * col + b * row + c, d * col + e * row + f
    lon, lat = Transformer.from_crs(grid.pyproj_crs, "EPSG:4326", always_xy=True).transform(x, y)
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Point",
                "coordinates": [round(float(east), _DEGREES), round(float(north), _DEGREES)],
            },
            "properties": told,
        }
        for east, north, told in zip(np.atleast_1d(lon), np.atleast_1d(lat), rows, strict=True)
    ]
    return (json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False) + "\n").encode()


def quiver_picture(rows: Sequence[dict[str, Any]], grid: Grid, spacing: int, path: Path) -> None:
    """Draw the shifts of tie points, and what is left of them, as arrows over the reference's grid.

    Parameters
    ----------
    rows : sequence of dict
        From `tie_rows`.
    grid : Grid
        Of the reference.
    spacing : int
        Distance of tie points, in pixels.
    path : Path
        PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * _INCH, 1.15 * _INCH), layout="constrained")
    for axes, title, prefix in zip(
        figure.subplots(1, 2),
        ("shifts", "held-out residuals"),
        ("shift", "residual"),
        strict=True,
    ):
        drawn = [row for row in rows if row[f"{prefix}_rows"] is not None and row["accepted"]]
        refused = [row for row in rows if not row["accepted"]]
        axes.plot(_of(refused, "col"), _of(refused, "row"), ".", color="0.7", markersize=3, label="refused")
        inliers = [row for row in drawn if row["inlier"]]
        lengths = np.hypot(_of(inliers, f"{prefix}_rows"), _of(inliers, f"{prefix}_cols"))
        longest = max(float(np.quantile(lengths, 0.95)) if len(lengths) else 0.0, 0.1)
        for chosen, colour, label in (
            (inliers, "tab:blue", "agree"),
            ([row for row in drawn if not row["inlier"]], "tab:red", "disagree"),
        ):
            axes.quiver(
                _of(chosen, "col"), _of(chosen, "row"),
                _of(chosen, f"{prefix}_cols"), _of(chosen, f"{prefix}_rows"),
                color=colour, label=label, angles="xy", scale_units="xy", width=0.004,
                scale=longest / (_ARROW * spacing),
            )  # fmt: skip
        axes.set(
            title=f"{title} (one spacing: {longest / _ARROW:.2g} px)",
            xlabel="column", ylabel="row", xlim=(0, grid.shape[1]), ylim=(grid.shape[0], 0), aspect="equal",
        )  # fmt: skip
    # Beside the axes: there is no corner without tie points.
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    figure.savefig(path)


def _of(rows: Sequence[dict[str, Any]], name: str) -> Points:
    return np.array([row[name] for row in rows], float)
