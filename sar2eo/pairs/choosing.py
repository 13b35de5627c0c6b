"""The bands that make an EO scene, chosen by what files and STAC items say of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sar2eo.errors import PairsError, PairsWarning, SceneError
from sar2eo.pairs.bands import SCENE_CLASSES, BandText, CloudRule, choose_cloud, choose_rgb
from sar2eo.pairs.clouds import CloudReader
from sar2eo.pairs.items import BandAsset, CloudAsset, eo_assets, item_facts, sentinel2_platform
from sar2eo.pairs.reflectance import Coding, coding_of_item, coding_of_tags
from sar2eo.pairs.sentinel2 import is_sentinel2, open_sentinel2
from sar2eo.scene.handles import gdal_path, opened
from sar2eo.scene.metadata import Facts, iso_datetime, known_datetime, read_facts
from sar2eo.scene.raster import Band, Raster, RasterReader, open_raster
from sar2eo.scene.stac import is_stac, read_item

__all__ = ["EoParts", "choose_parts"]

_SENTINEL2 = re.compile(r"(?<![A-Za-z0-9])S2([A-D])_MSIL\w\w_(\d{8}T\d{6})(?:_N(\d{4})_)?", re.I)
# In true-colour images of Sentinel-2, 0 is kept for no data (S2-PDGS-TAS-DI-PSD), which files do not declare.
_TRUE_COLOUR = re.compile(r"(?:^|_)TCI(?:_\d\dm)?\.(?:jp2|tiff?|vrt)$", re.I)
_TIMESTAMP = re.compile(r"(?<!\d)((?:19|20)\d{6}T\d{6})(?!\d)", re.I)


@dataclass(frozen=True)
class EoParts:
    """The bands of a scene, before their numbers are looked at.

    Parameters
    ----------
    bands : tuple of Band
        Red, green, blue.
    labels : tuple of str
        What they are called.
    first : Raster
        The file of the first, with the identity of all files.
    dtype : str
        Of the stored numbers.
    coding : Coding
        How numbers become reflectance, if they are not bytes.
    cloud : CloudReader or None
        Where the scene tells clouds.
    facts : Facts
        Of the acquisition.
    """

    bands: tuple[Band, ...]
    labels: tuple[str, ...]
    first: Raster
    dtype: str
    coding: Coding
    cloud: CloudReader | None
    facts: Facts


def choose_parts(href: str) -> EoParts:
    """Choose the bands of a raster, STAC item or Sentinel-2 product.

    Raises
    ------
    SceneError
        If it cannot be opened, or is not placed by a CRS and a geotransform.
    PairsError
        If red, green and blue cannot be told.
    """
    if is_stac(href):
        return _of_item(href)
    return _of_product(href) if is_sentinel2(Path(href)) else _of_raster(href)


def _of_raster(path: str, nodata: float | None = None) -> EoParts:
    """Choose the bands of one file by what it says; `nodata` counts where it says nothing of that."""
    raster = _open_placed(path)
    with opened(raster.path) as dataset:
        texts = [BandText.read(dataset, band.index) for band in raster.bands]
        dtypes = [dataset.dtypes[band.index - 1] for band in raster.bands]
        tags = dataset.tags()
    cloud = choose_cloud(texts)
    pictured = [text for text in texts if cloud is None or text.index != cloud[0]]
    chosen = choose_rgb(pictured, dtypes[0])
    if chosen is None:
        raise _unknown(raster, texts)
    at = [[band.index for band in raster.bands].index(index) for index in chosen]
    name = PurePosixPath(raster.path.partition("?")[0]).name
    undeclared = 0.0 if nodata is None and _TRUE_COLOUR.search(name) else nodata
    bands = tuple(
        replace(band, nodata=undeclared) if band.nodata is None and not band.masked else band
        for band in (raster.bands[i] for i in at)
    )
    coding = _one_coding(path, [coding_of_tags(tags, band.scale, band.offset) for band in bands])
    if dtypes[at[0]] != "uint8" and coding == Coding():
        _warn_of_baseline(path, name, tags)
    reader = None if cloud is None else _cloud_reader(raster, cloud[0], cloud[1], _label(texts, cloud[0]))
    labels = tuple(texts[i].label for i in at)
    return EoParts(bands, labels, raster, dtypes[at[0]], coding, reader, _facts(name, tags))


def _of_item(path: str) -> EoParts:
    """Choose the assets of a STAC item."""
    item = read_item(path)
    assets = eo_assets(item)
    if assets is None:
        raise PairsError(
            f"{path}: no EO asset among {', '.join(item.assets) or 'none'}: it takes a visual asset, or "
            "assets named red, green, blue or B04, B03, B02; is this a SAR item?"
        )
    if assets.picture:
        parts = _of_raster(assets.picture, assets.nodata)
    else:
        parts = _of_assets(
            path, assets.bands, lambda asset, stored: coding_of_item(item.properties, asset.said, stored)
        )
    if assets.cloud is not None and parts.cloud is None:
        parts = replace(parts, cloud=_cloud_of_asset(assets.cloud))
    return replace(parts, facts=item_facts(item).over(parts.facts))


def _of_product(path: str) -> EoParts:
    """Take the bands of a Sentinel-2 product."""
    product = open_sentinel2(Path(path))
    codings = dict(zip(product.bands, product.codings, strict=True))
    labels = ("B04", "B03", "B02")
    assets = tuple(BandAsset(file, 1, name, {}) for file, name in zip(product.bands, labels, strict=True))
    parts = _of_assets(path, assets, lambda asset, stored: codings[asset.href])
    classes = product.classes
    cloud = None if classes is None else _cloud_of_asset(CloudAsset(classes, SCENE_CLASSES, "SCL"))
    return replace(parts, cloud=cloud, facts=product.facts)


def _of_assets(
    path: str, assets: tuple[BandAsset, ...], coding_of: Callable[[BandAsset, Coding], Coding]
) -> EoParts:
    """Take one band each from files; `coding_of` settles how numbers are read, given what the file says."""
    bands, codings, dtypes, rasters = [], [], [], []
    for asset in assets:
        raster = _open_placed(asset.href)
        rasters.append(raster)
        band = next((band for band in raster.bands if band.index == asset.index), None)
        if band is None:
            raise PairsError(f"{path}: {asset.label} is band {asset.index} of a file that has fewer")
        with opened(raster.path) as dataset:
            dtypes.append(dataset.dtypes[asset.index - 1])
            stored = coding_of_tags({**dataset.tags(), **dataset.tags(asset.index)}, band.scale, band.offset)
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
    return EoParts(tuple(bands), labels, replace(first, files=files), dtypes[0], coding, None, first.facts)


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


def _unknown(raster: Raster, texts: list[BandText]) -> PairsError:
    found = ", ".join(text.label for text in texts)
    if raster.names is not None or len(texts) <= 2:
        names = ", ".join(raster.names or ())
        return PairsError(
            f"{raster.path}: no red, green and blue, but {names or f'{len(texts)} bands ({found})'}: "
            "is this a SAR scene, given as --eo by mistake?"
        )
    return PairsError(
        f"{raster.path}: which of its {len(texts)} bands ({found}) are red, green and blue is not known: "
        "describe them as red, green, blue or B04, B03, B02"
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


def _label(texts: list[BandText], index: int) -> str:
    return next(text.label for text in texts if text.index == index)


def _facts(name: str, tags: Mapping[str, str]) -> Facts:
    """Read time and platform: from a Sentinel-2 product's name, or else tags, or else the file's name."""
    product = _sentinel2_name(name, tags)
    if product:
        return Facts(datetime=iso_datetime(product[2].upper()), platform=f"Sentinel-2{product[1].upper()}")
    said = read_facts(name, tags)
    stamp = _TIMESTAMP.search(name)
    time = said.datetime or known_datetime(stamp and stamp[1].upper())
    return Facts(datetime=time, platform=sentinel2_platform(said.platform))


def _sentinel2_name(name: str, tags: Mapping[str, str]) -> re.Match[str] | None:
    """Find the name of a Sentinel-2 product in tags or the name of a file."""
    found = (_SENTINEL2.search(str(text)) for text in (*tags.values(), name))
    return next((product for product in found if product), None)


def _warn_of_baseline(path: str, name: str, tags: Mapping[str, str]) -> None:
    """Say that an offset is likely, where a product must have had one and the file does not tell."""
    product = _sentinel2_name(name, tags)
    if product and (product[3] or "") >= "0400":
        warnings.warn(
            f"{path}: Sentinel-2 since baseline 04.00 ({product[3]}) is stored with 1000 added, and the file "
            "declares no offset: its numbers are taken as they are; set GDAL's offset if they are too bright",
            PairsWarning,
            stacklevel=2,
        )
