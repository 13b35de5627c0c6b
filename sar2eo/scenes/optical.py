"""Optical (EO) scenes: opened by what they say of themselves, read onto a grid as bytes and masks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime as Datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sar2eo.errors import PairsError, PairsWarning, SceneError
from sar2eo.geo.grid import Grid
from sar2eo.geo.windows import Window
from sar2eo.scenes.band_names import (
    COLOURS,
    SCENE_CLASSES,
    BandText,
    CloudRule,
    choose_cloud,
    choose_rgb,
    find_band_file,
)
from sar2eo.scenes.gdal import check_readable, gdal_path, open_dataset, parse_source
from sar2eo.scenes.metadata import Facts, fall_back_on_written, read_optical_facts, zero_is_nodata
from sar2eo.scenes.raster import Band, Raster, RasterReader, open_raster
from sar2eo.scenes.reader import BoolArray, FloatArray, WrappingReader
from sar2eo.scenes.sentinel2 import (
    Coding,
    is_sentinel2,
    open_sentinel2,
    read_coding_of_item,
    read_coding_of_tags,
)
from sar2eo.scenes.sources import Source, expand_sources, holds_scenes
from sar2eo.scenes.stac_input import (
    BandAsset,
    CloudAsset,
    choose_eo_assets,
    is_stac,
    read_item,
    read_item_facts,
)
from sar2eo.scenes.warp import read_onto

# A Sentinel-2 product of a processing baseline: S2A_MSIL2A_20220308T101841_N0400_...
_BASELINE = re.compile(r"(?<![A-Za-z0-9])S2[A-D]_MSIL\w\w_\d{8}T\d{6}_N(\d{4})_", re.I)

# Its surface reflectance is coded alike in all products: USGS LSDS-1619, table 6-1.
_COLLECTION_2 = re.compile(r"L[COTE]0\d_L2S[PR]_\d{6}_\d{8}_\d{8}_02_T\d", re.I)

Kind = Literal["rgb", "reflectance"]
"""Bytes that stay as they are, or numbers that a range maps to bytes."""


_LIKELY_PERCENT = 50.0


class EoPatch(NamedTuple):
    """An EO scene on some grid."""

    rgb: npt.NDArray[np.uint8]  # shape (3, row, col); red, green, blue; 0 where not valid
    valid: npt.NDArray[np.bool_]  # shape (row, col); where the EO scene has data
    # Shape (row, col); cloud, its shadow, and cirrus; None where the scene has no mask
    cloud: npt.NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False)
class PictureReader(WrappingReader):
    """Read red, green and blue of a scene, all valid or none.

    Bytes are invalid where all three are nodata, as GDAL has it (a dark pixel may be 0 in one band);
    reflectance is invalid where one is (at a swath's edge a band ends before the others).
    """

    source: RasterReader  # the three bands
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

    def read_validity(self, longest: int) -> BoolArray:
        """Read validity decimated; see `SceneReader.read_validity`."""
        bands = self.source.read_band_validity(longest)
        return np.asarray(bands.any(axis=0) if self.kind == "rgb" else bands.all(axis=0))

    def identity(self) -> dict[str, Any]:
        """Return the identity of the bands, and their kind."""
        return {**self.source.identity(), "kind": self.kind}


@dataclass(frozen=True, eq=False)
class EoScene:
    """An EO scene: small, and safe to send to another process. Pixels are read when asked for."""

    href: str  # what was opened
    # Red, green and blue in the scene's own frame; reflectance on the scale of `sar2eo.scenes.sentinel2`
    reader: PictureReader
    kind: Kind
    labels: tuple[str, ...]  # names of the three bands
    coding: Coding  # how stored numbers became reflectance
    eo_range: tuple[float, float]  # reflectance that becomes 0 and 255
    cloud: CloudReader | None
    datetime: Datetime | None  # acquisition, aware, UTC
    platform: str | None  # such as ``Sentinel-2A``

    @property
    def grid(self) -> Grid:
        """Place and shape of the whole scene."""
        return self.reader.grid

    def read_onto(self, grid: Grid) -> EoPatch:
        """Read the scene onto a grid, and only what that needs of it.

        Pixels that coincide with the scene's own are copied, others interpolated bilinearly from their valid
        neighbours (averaged first where the grid is coarser by 2 or more). A pixel is valid where neighbours
        of at least half of the weight are.

        Parameters
        ----------
        grid : Grid
            North-up, of any CRS; may reach past the scene.
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
        """Describe how pixels become bytes, as JSON values."""
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


def open_eo_scene(
    source: Source | str | Path, *, eo_range: tuple[float, float], eo_bands: tuple[int, ...] | None = None
) -> EoScene:
    """Open an EO scene.

    Parameters
    ----------
    source : Source or str or Path
        A raster, local or remote, a Sentinel-2 product (``.SAFE`` folder or zip), a STAC item
        (``items.json#ID``: of an item collection), a folder with one file per band, or those files as
        ``"red=a.tif,green=b.tif,blue=c.tif"``, with ``cloud=d.tif`` where there is a mask. Red, green and
        blue are found by what is said of bands; see `sar2eo.scenes.band_names.choose_rgb`.
    eo_range : tuple of float
        Reflectance that becomes 0 and 255: times 10000 where the scene declares a scale (so it is 0, 3000 for
        every Sentinel-2, whatever its offset), else in its own numbers. Bytes stay as they are, whatever
        scale is declared.
    eo_bands : tuple of int, optional
        Numbers of red, green and blue, which count whatever the scene says: of the bands of a file, from 1;
        of separate files and assets, those in their names.

    Raises
    ------
    SceneError
        If it cannot be opened, or is not placed by a CRS and a geotransform.
    PairsError
        If its red, green and blue are not known, or `eo_range` is out of all proportion to its values.
    """
    given = source if isinstance(source, Source) else Source(str(source))
    path = given.href
    if holds_scenes(Path(path)):
        inside = expand_sources([path], "eo", eo_bands)
        if len(inside) > 1:
            names = ", ".join(Path(each.href).name for each in inside[:3])
            what = "a folder" if Path(path).is_dir() else "an archive"
            raise SceneError(f"{path}: {what} of {len(inside)} scenes, name one: {names}")
        given, path = inside[0], inside[0].href
    parts = _choose_parts(path, eo_bands)
    kind: Kind = "rgb" if parts.dtype == "uint8" else "reflectance"
    if kind == "reflectance":
        bands = tuple(_as_reflectance(band, parts.coding, parts.dtype) for band in parts.bands)
    else:
        bands = tuple(replace(band, scale=1.0, offset=0.0) for band in parts.bands)
    raster = parts.first
    reader = RasterReader(bands, COLOURS, raster.grid, raster.block_shape, raster.files)
    facts = fall_back_on_written(
        Facts(datetime=given.datetime, platform=given.platform).over(parts.facts), path
    )
    scene = EoScene(
        href=path,
        reader=PictureReader(reader, kind),
        kind=kind,
        labels=parts.labels,
        coding=parts.coding,
        eo_range=(float(eo_range[0]), float(eo_range[1])),
        cloud=parts.cloud,
        datetime=Datetime.fromisoformat(facts.datetime) if facts.datetime else None,
        platform=facts.platform,
    )
    if kind == "reflectance":
        _check_range(scene, parts.dtype)
    return scene


def _as_reflectance(band: Band, coding: Coding, dtype: str) -> Band:
    """Make a band give reflectance; of integers, 0 is nodata where none is declared."""
    undeclared = band.nodata is None and not band.masked and not dtype.startswith("float")
    nodata = 0.0 if undeclared else band.nodata
    return replace(band, scale=coding.factor, offset=coding.offset, nodata=nodata)


def _check_range(scene: EoScene, dtype: str) -> None:
    """Refuse a range that leaves a scene black or white, by windows spread over it."""
    rows, cols = scene.grid.shape
    side = 64
    smallest, largest = np.inf, 0.0
    for i in (1, 3, 5):
        for j in (1, 3, 5):
            window = Window(i * rows // 6, j * cols // 6, side, side).intersection(scene.grid.window)
            values = scene.reader.read(window) if window else np.empty(0, np.float32)
            largest = max(largest, float(np.nanmax(values, initial=0.0)))
            smallest = min(smallest, float(np.nanmin(values, initial=np.inf)))
    low, high = scene.eo_range
    if 0 < largest < low + (high - low) / 100 and dtype.startswith("float"):
        raise PairsError(
            f"{scene.href}: its values reach {largest:.4g}, and eo_range={low:g},{high:g} would leave it "
            "black: give --eo-range in its own numbers, such as 0,0.3 for reflectance from 0 to 1"
        )
    if high <= smallest < np.inf:
        raise PairsError(
            f"{scene.href}: its values begin at {smallest:.4g}, and eo_range={low:g},{high:g} would leave it "
            "white: give --eo-range in its own numbers, or declare its scale and offset (of Landsat's "
            "Collection 2: gdal_translate -a_scale 0.0000275 -a_offset -0.2)"
        )


@dataclass(frozen=True)
class _EoParts:
    """The bands of a scene, before their numbers are looked at.

    `first` is the file of the first band, with the identity of all files.
    """

    bands: tuple[Band, ...]
    labels: tuple[str, ...]
    first: Raster
    dtype: str
    coding: Coding
    cloud: CloudReader | None
    facts: Facts


def _choose_parts(href: str, numbers: tuple[int, ...] | None) -> _EoParts:
    """Choose the bands of a raster, files of one band each, a STAC item or a Sentinel-2 product."""
    if is_stac(href):
        return _choose_from_item(href, numbers)
    if isinstance(files := parse_source(href), dict):
        return _choose_from_files(href, files)
    check_readable(gdal_path(href))
    product = is_sentinel2(Path(href))
    return _choose_from_product(href) if product else _choose_from_raster(href, None, numbers)


def _choose_from_raster(path: str, nodata: float | None, numbers: tuple[int, ...] | None) -> _EoParts:
    """Choose the bands of one file by what it says; `nodata` counts where the file declares none."""
    raster = _open_placed(path)
    with open_dataset(raster.path) as dataset:
        # A band that GDAL takes for opacity is pixels where the user says so.
        texts = [BandText.read(dataset, band.index) for band in raster.bands]
        dtypes = [dataset.dtypes[band.index - 1] for band in raster.bands]
        tags = dataset.tags()
    name = PurePosixPath(raster.path.partition("?")[0]).name
    facts = read_optical_facts(name, tags)
    cloud = choose_cloud(texts)
    pictured = [text for text in texts if cloud is None or text.index != cloud[0]]
    sensor = " ".join([facts.platform or "", *(tags.get(key, "") for key in ("SENSOR_ID", "INSTRUMENT"))])
    chosen = numbers or choose_rgb(pictured, dtypes[0], sensor.strip())
    if chosen is None:
        raise _unknown_bands_error(raster, texts)
    if absent := set(chosen) - {text.index for text in texts}:
        raise PairsError(f"{path}: --eo-bands names band {min(absent)}, and it has {len(texts)}, from 1")
    at = [[band.index for band in raster.bands].index(index) for index in chosen]
    undeclared = 0.0 if nodata is None and zero_is_nodata(name, tags, optical=True) else nodata
    bands = tuple(
        replace(band, nodata=undeclared) if band.nodata is None and not band.masked else band
        for band in (raster.bands[i] for i in at)
    )
    coding = _one_coding(path, [_read_coding(tags, band, name, dtypes[at[0]]) for band in bands])
    if dtypes[at[0]] != "uint8" and coding == Coding():
        _warn_of_offset(path, name, tags)
    reader = None
    if cloud is not None:
        label = next(text.label for text in texts if text.index == cloud[0])
        reader = _cloud_reader(raster, cloud[0], cloud[1], label)
    labels = tuple(texts[i].label for i in at)
    return _EoParts(bands, labels, raster, dtypes[at[0]], coding, reader, facts)


def _read_coding(tags: Mapping[str, str], band: Band, name: str, dtype: str) -> Coding:
    """Read the coding that a file declares, or that its product's name stands for."""
    coding = read_coding_of_tags(tags, band.scale, band.offset)
    if coding == Coding() and dtype == "uint16" and _COLLECTION_2.search(name):
        return Coding.declared(2.75e-5, -0.2, "Landsat Collection 2 Level 2")
    return coding


def _choose_from_files(path: str, files: Mapping[str, str]) -> _EoParts:
    """Take one band from each of the files of red, green and blue, and a mask of clouds."""
    missing = [colour for colour in COLOURS if colour not in files]
    if missing:
        raise PairsError(f"{path}: no {', '.join(missing)}: name red=FILE,green=FILE,blue=FILE")
    assets = tuple(BandAsset(files[colour], 1, Path(files[colour]).stem, {}) for colour in COLOURS)
    parts = _choose_from_assets(path, assets, lambda asset, stored: stored)
    mask = files.get("cloud")
    if mask is None:
        return parts
    rule = find_band_file(Path(mask).name).cloud or CloudRule("nonzero")
    return replace(parts, cloud=_cloud_of_asset(CloudAsset(mask, rule, Path(mask).stem)))


def _choose_from_item(path: str, numbers: tuple[int, ...] | None) -> _EoParts:
    """Choose the assets of a STAC item."""
    item = read_item(path)
    assets = choose_eo_assets(item, numbers)
    if assets is None:
        raise PairsError(
            f"{path}: no EO asset among {', '.join(item.assets) or 'none'}: it takes a visual asset, or "
            "assets named red, green, blue or B04, B03, B02, or numbered as --eo-bands R,G,B; "
            "is this a SAR item?"
        )
    if assets.picture:
        parts = _choose_from_raster(assets.picture, assets.nodata, numbers)
    else:
        parts = _choose_from_assets(
            path, assets.bands, lambda asset, stored: read_coding_of_item(item.properties, asset.said, stored)
        )
    if assets.cloud is not None and parts.cloud is None:
        parts = replace(parts, cloud=_cloud_of_asset(assets.cloud))
    return replace(parts, facts=read_item_facts(item).over(parts.facts))


def _choose_from_product(path: str) -> _EoParts:
    """Take the bands of a Sentinel-2 product."""
    product = open_sentinel2(Path(path))
    codings = dict(zip(product.bands, product.codings, strict=True))
    labels = ("B04", "B03", "B02")
    assets = tuple(BandAsset(file, 1, name, {}) for file, name in zip(product.bands, labels, strict=True))
    parts = _choose_from_assets(path, assets, lambda asset, stored: codings[asset.href])
    classes = product.classes
    cloud = None if classes is None else _cloud_of_asset(CloudAsset(classes, SCENE_CLASSES, "SCL"))
    return replace(parts, cloud=cloud, facts=product.facts)


def _choose_from_assets(
    path: str, assets: tuple[BandAsset, ...], coding_of: Callable[[BandAsset, Coding], Coding]
) -> _EoParts:
    """Take one band from each file; `coding_of` decides how numbers are read, given the file's coding."""
    bands, codings, dtypes, rasters, facts = [], [], [], [], Facts()
    for asset in assets:
        raster = _open_placed(asset.href)
        rasters.append(raster)
        band = next((band for band in raster.bands if band.index == asset.index), None)
        if band is None:
            raise PairsError(f"{path}: {asset.label} is band {asset.index} of a file that has fewer")
        with open_dataset(raster.path) as dataset:
            dtypes.append(dataset.dtypes[asset.index - 1])
            tags = {**dataset.tags(), **dataset.tags(asset.index)}
            name = PurePosixPath(raster.path.partition("?")[0]).name
            stored = _read_coding(tags, band, name, dtypes[-1])
            facts = facts.over(read_optical_facts(name, tags))
        if band.nodata is None and "nodata" in asset.said:
            band = replace(band, nodata=asset.said["nodata"])
        bands.append(band)
        codings.append(coding_of(asset, stored))
    first = rasters[0]
    if any(raster.grid != first.grid for raster in rasters):
        raise PairsError(f"{path}: red, green and blue are not on one grid")
    files = tuple({str(file): file for raster in rasters for file in raster.files}.values())
    labels = tuple(asset.label for asset in assets)
    coding = _one_coding(path, codings)
    return _EoParts(tuple(bands), labels, replace(first, files=files), dtypes[0], coding, None, facts)


def _open_placed(path: str) -> Raster:
    """Open a raster that lies on a grid."""
    if not gdal_path(path).startswith("/vsi") and Path(path).is_dir():
        raise SceneError(
            f"{path}: a folder, where an EO scene is a raster, a STAC item or a Sentinel-2 product"
        )
    raster = open_raster(path)
    if raster.grid.crs is None:
        how = "only ground control points" if raster.ground_control else "no CRS with a geotransform"
        raise SceneError(f"{path}: an EO scene with {how}: warp it to a grid first, such as with gdalwarp")
    return raster


def _unknown_bands_error(raster: Raster, texts: list[BandText]) -> PairsError:
    found = ", ".join(text.label for text in texts)
    if raster.names is not None or len(texts) <= 2:
        names = ", ".join(raster.names or ())
        of_many = find_band_file(PurePosixPath(raster.path).name).band is not None and raster.names is None
        return PairsError(
            f"{raster.path}: no red, green and blue, but {names or f'{len(texts)} bands ({found})'}: "
            + (
                "is it one file of several, one per band? Give their folder, or red=FILE,green=FILE,blue=FILE"
                if of_many
                else "is this a SAR scene, given as --eo by mistake?"
            )
        )
    return PairsError(
        f"{raster.path}: which of its {len(texts)} bands ({found}) are red, green and blue is not known: "
        "give their numbers with --eo-bands R,G,B, or describe them as red, green, blue"
    )


def _one_coding(path: str, codings: list[Coding]) -> Coding:
    if len(set(codings)) > 1:
        said = "; ".join(f"{c.factor:g} x + {c.offset:g}" for c in codings)
        raise PairsError(f"{path}: red, green and blue are scaled in different ways ({said})")
    return codings[0]


def _cloud_reader(raster: Raster, index: int, rule: CloudRule, label: str) -> CloudReader:
    band = next(band for band in raster.bands if band.index == index)
    # Classes and bits are what is stored; a nodata value of the file may be one of them.
    plain = replace(band, scale=1.0, offset=0.0, nodata=None)
    reader = RasterReader((plain,), ("cloud",), raster.grid, raster.block_shape, raster.files)
    return CloudReader(reader, rule, label)


def _cloud_of_asset(asset: CloudAsset) -> CloudReader:
    return _cloud_reader(_open_placed(asset.href), 1, asset.rule, asset.label)


def _warn_of_offset(path: str, name: str, tags: Mapping[str, str]) -> None:
    """Warn where a Sentinel-2 product must have had an offset, and the file does not declare it."""
    found = (_BASELINE.search(str(text)) for text in (*tags.values(), name))
    baseline = next((product[1] for product in found if product), "")
    if baseline >= "0400":
        warnings.warn(
            f"{path}: Sentinel-2 since baseline 04.00 ({baseline}) is stored with 1000 added, and the file "
            "declares no offset: its numbers are taken as they are; set GDAL's offset if they are too bright",
            PairsWarning,
            stacklevel=2,
        )


@dataclass(frozen=True, eq=False)
class CloudReader(WrappingReader):
    """Read 1 where there is cloud or its shadow, 0 where not, NaN where that is not known."""

    source: RasterReader  # the one band of the mask
    rule: CloudRule
    label: str  # name of the band or asset

    def read(self, window: Window) -> FloatArray:
        """Read a window; see `SceneReader.read`."""
        values = self.source.read(window)
        known = np.isfinite(values)
        numbers = np.where(known, values, 0)
        if self.rule.kind == "classes":
            cloudy = np.isin(numbers, self.rule.numbers)
        elif self.rule.kind == "bits":
            flags = sum(1 << bit for bit in self.rule.numbers)
            cloudy = (numbers.astype(np.int64) & flags) != 0
        elif self.rule.kind == "percent":
            cloudy = numbers >= _LIKELY_PERCENT
        else:
            cloudy = numbers != 0
        return np.where(known, cloudy, np.nan).astype(np.float32)

    def identity(self) -> dict[str, Any]:
        """Return the band's identity and its rule."""
        return {**self.source.identity(), "cloud": str(self.rule)}
