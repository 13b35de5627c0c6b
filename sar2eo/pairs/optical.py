"""EO scenes: opened by what they say of themselves, read onto any grid as bytes, validity and cloud."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime as Datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sar2eo.errors import PairsError
from sar2eo.grid import Grid
from sar2eo.pairs.bands import COLOURS
from sar2eo.pairs.choosing import choose_parts
from sar2eo.pairs.clouds import CloudReader
from sar2eo.pairs.reflectance import Coding
from sar2eo.pairs.sources import Source
from sar2eo.pairs.warping import read_onto
from sar2eo.scene.metadata import iso_datetime
from sar2eo.scene.raster import Band, RasterReader
from sar2eo.scene.reader import FloatArray, WrappingReader
from sar2eo.windows import Window

__all__ = ["EoPatch", "EoScene", "PictureReader", "open_eo"]

Kind = Literal["rgb", "reflectance"]


class EoPatch(NamedTuple):
    """An EO scene on some grid.

    Attributes
    ----------
    rgb : ndarray of uint8, shape (3, row, col)
        Red, green, blue; 0 where not valid.
    valid : ndarray of bool, shape (row, col)
        Where the EO scene has data.
    cloud : ndarray of bool, shape (row, col), or None
        Cloud, its shadow, and cirrus; None where the scene does not tell.
    """

    rgb: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_]
    cloud: npt.NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False)
class PictureReader(WrappingReader):
    """Read red, green and blue of a scene, all valid or none.

    Bytes are not valid where all three are nodata, as GDAL has it (a dark pixel may be 0 in one band);
    reflectance is not where one is (a band ends before the others at a swath's edge).

    Parameters
    ----------
    source : RasterReader
        The three bands.
    kind : {"rgb", "reflectance"}
        What they hold.
    """

    source: RasterReader
    kind: Kind

    def read(self, window: Window) -> FloatArray:
        """Read a window; see `SceneReader.read`."""
        values = self.source.read(window)
        missing = np.isnan(values)
        if not missing.any():
            return values
        outside = missing.all(axis=0) if self.kind == "rgb" else missing.any(axis=0)
        for colour, band, gaps in zip(values, self.source.bands, missing, strict=True):
            colour[gaps] = np.nan if band.nodata is None else band.nodata
        values[:, outside] = np.nan
        return values

    def identity(self) -> dict[str, Any]:
        """Return the identity of the bands."""
        return {**self.source.identity(), "kind": self.kind}


@dataclass(frozen=True, eq=False)
class EoScene:
    """An EO scene: small, and safe to send to another process; pixels are read when asked for.

    Parameters
    ----------
    href : str
        What was opened.
    reader : PictureReader
        Red, green and blue in the scene's own frame; reflectance on the scale of
        `sar2eo.pairs.reflectance`.
    kind : {"rgb", "reflectance"}
        Bytes that stay as they are, or numbers that `eo_range` maps to bytes.
    labels : tuple of str
        What the three bands are called.
    coding : Coding
        How stored numbers became reflectance.
    eo_range : tuple of float
        Reflectance that becomes 0 and 255.
    cloud : CloudReader or None
        Where the scene tells clouds.
    datetime : datetime or None
        Acquisition, aware, UTC.
    platform : str or None
        Such as ``Sentinel-2A``.
    """

    href: str
    reader: PictureReader
    kind: Kind
    labels: tuple[str, ...]
    coding: Coding
    eo_range: tuple[float, float]
    cloud: CloudReader | None
    datetime: Datetime | None
    platform: str | None

    @property
    def grid(self) -> Grid:
        """Place and shape of the whole scene."""
        return self.reader.grid

    def read_onto(self, grid: Grid) -> EoPatch:
        """Read the scene onto a grid, and only what that needs of it.

        Pixels that coincide with the scene's own are copied, others interpolated bilinearly from the valid
        ones of their neighbours (averaged first where the grid is coarser by 2 or more). A pixel is valid
        where neighbours of at least half of the weight are.

        Parameters
        ----------
        grid : Grid
            North-up, of any CRS, may reach past the scene.

        Raises
        ------
        SceneError
            If the scene cannot be read.
        """
        values = read_onto(self.reader, grid)
        valid = np.asarray(np.isfinite(values).all(axis=0))
        if self.kind == "reflectance":
            low, high = self.eo_range
            values = (values - np.float32(low)) * np.float32(255 / (high - low))
        rgb = np.clip(np.rint(np.where(valid, values, 0)), 0, 255).astype(np.uint8)
        if self.cloud is None:
            return EoPatch(rgb, valid, None)
        with np.errstate(invalid="ignore"):
            return EoPatch(rgb, valid, read_onto(self.cloud, grid)[0] >= 0.5)

    def facts(self) -> dict[str, Any]:
        """Say how pixels become bytes, as JSON values."""
        reflectance = self.kind == "reflectance"
        return {
            "href": self.href,
            "kind": self.kind,
            "bands": list(self.labels),
            "indexes": [band.index for band in self.reader.source.bands],
            "factor": self.coding.factor if reflectance else None,
            "offset": self.coding.offset if reflectance else None,
            "coding": self.coding.origin if reflectance else "bytes as stored",
            "range": list(self.eo_range) if reflectance else None,
            "nodata": [band.nodata for band in self.reader.source.bands],
            "cloud": f"{self.cloud.label}: {self.cloud.rule}" if self.cloud else None,
        }

    def identity(self) -> dict[str, Any]:
        """Return JSON values that change whenever the values, the mapping, or the place do."""
        cloud = self.cloud.identity() if self.cloud else None
        return {**self.reader.identity(), "range": list(self.eo_range), "cloud": cloud}


def open_eo(source: Source | str | Path, *, eo_range: tuple[float, float]) -> EoScene:
    """Open an EO scene.

    Parameters
    ----------
    source : Source or str or Path
        A raster, local or remote, a Sentinel-2 product (``.SAFE`` folder or zip), or a STAC item
        (``items.json#ID``: of an item collection). Its red, green
        and blue are known by their names, wavelengths or roles; see `sar2eo.pairs.bands.choose_rgb`.
    eo_range : tuple of float
        Reflectance that becomes 0 and 255: times 10000 where the scene declares a scale (so it is 0, 3000
        for every Sentinel-2, whatever its offset), else in its own numbers. Bytes stay as they are,
        whatever scale is declared.

    Raises
    ------
    SceneError
        If it cannot be opened, or is not placed by a CRS and a geotransform.
    PairsError
        If its red, green and blue cannot be told, or `eo_range` is out of all proportion to its values.
    """
    given = source if isinstance(source, Source) else Source(str(source))
    path = given.href
    parts = choose_parts(path)
    kind: Kind = "rgb" if parts.dtype == "uint8" else "reflectance"
    if kind == "reflectance":
        bands = tuple(_as_reflectance(band, parts.coding, parts.dtype) for band in parts.bands)
    else:
        bands = tuple(replace(band, scale=1.0, offset=0.0) for band in parts.bands)
    raster = parts.first
    reader = RasterReader(bands, COLOURS, raster.grid, raster.block_shape, raster.files)
    time = given.datetime or parts.facts.datetime
    scene = EoScene(
        href=path,
        reader=PictureReader(reader, kind),
        kind=kind,
        labels=parts.labels,
        coding=parts.coding,
        eo_range=(float(eo_range[0]), float(eo_range[1])),
        cloud=parts.cloud,
        datetime=Datetime.fromisoformat(iso_datetime(time)) if time else None,
        platform=given.platform or parts.facts.platform,
    )
    if parts.dtype.startswith("float"):
        _check_range(scene)
    return scene


def _as_reflectance(band: Band, coding: Coding, dtype: str) -> Band:
    """Let a band give reflectance; of integers, 0 is nodata where nothing else says what is."""
    undeclared = band.nodata is None and not band.masked and not dtype.startswith("float")
    nodata = 0.0 if undeclared else band.nodata
    return replace(band, scale=coding.factor, offset=coding.offset, nodata=nodata)


def _check_range(scene: EoScene) -> None:
    """Refuse a range that leaves a scene black, on windows spread over it: reflectance may be 0 to 1."""
    rows, cols = scene.grid.shape
    side = 64
    largest = 0.0
    for i in (1, 3, 5):
        for j in (1, 3, 5):
            window = Window(i * rows // 6, j * cols // 6, side, side).intersection(scene.grid.window)
            values = scene.reader.read(window) if window else np.empty(0, np.float32)
            largest = max(largest, float(np.nanmax(values, initial=0.0)))
    low, high = scene.eo_range
    if 0 < largest < low + (high - low) / 100:
        raise PairsError(
            f"{scene.href}: its values reach {largest:.4g}, and eo_range={low:g},{high:g} would leave it "
            "black: give --eo-range in its own numbers, such as 0,0.3 for reflectance from 0 to 1"
        )
