"""Scenes to measure with: as real ones in size, speckle and nodata, made by code."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

_SIMULATED = 2048
_BLOCK = 512


def mirrored_scene(folder: Path, size: int) -> Path:
    """Write a square scene: a simulated one with slanted edges, repeated and mirrored to the size."""
    simulated = folder / f"simulated-{_SIMULATED}" / "sar.tif"
    if not simulated.exists():
        from sar2eo.simulation import SimulationSettings, simulate_pair, write_pair

        write_pair(simulate_pair(SimulationSettings(size=_SIMULATED)), simulated.parent)
    with rasterio.open(simulated) as source:
        values, profile = source.read(1), source.profile
        names, tags = source.descriptions, source.tags()
    del profile["compress"]
    pair = np.concatenate([values, values[::-1]])
    quad = np.concatenate([pair, pair[:, ::-1]], axis=1)
    path = folder / f"scene-{size}.tif"
    with rasterio.open(path, "w", **profile | {"width": size, "height": size}) as target:
        target.descriptions = names
        target.update_tags(**tags)
        for row in range(0, size, len(quad)):
            for col in range(0, size, len(quad)):
                window = Window(col, row, min(len(quad), size - col), min(len(quad), size - row))
                target.write(quad[None, : window.height, : window.width], window=window)
    return path


def plain_copy(source: Path, path: Path) -> Path:
    """Write an EO COG's pixels and mask as a plain, uncompressed, tiled GeoTIFF."""
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(source) as eo:
        layout = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "photometric": "RGB"}
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "crs": eo.crs, "transform": eo.transform}
        with rasterio.open(path, "w", width=eo.width, height=eo.height, **profile, **layout) as target:
            for _, window in eo.block_windows(1):
                target.write(eo.read(window=window), window=window)
                target.write_mask(eo.dataset_mask(window=window), window=window)
    return path


def swath(path: Path, rows: int, cols: int) -> Path:
    """Write a scene without pixels, placed by control points as a GRD product is: tilted, a little curved."""
    points = []
    for row in np.linspace(0, rows, 10):
        for col in np.linspace(0, cols, 21):
            height_m = 100 * np.sin(row / 8000) * np.cos(col / 6000)
            east = 10 * (col + 0.2 * row) + 0.8 * height_m
            north = 10 * (0.2 * col - row) + 2e-6 * (col - cols / 2) ** 2
            points.append(GroundControlPoint(row, col, 12 + east / 78_800, 45 + north / 111_100))
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "nodata": 0, "tiled": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # it has no place until it has its points
        with rasterio.open(path, "w", width=cols, height=rows, sparse_ok=True, **profile) as target:
            target.gcps = (points, rasterio.CRS.from_epsg(4326))
            target.descriptions = ("VV",)
    return path
