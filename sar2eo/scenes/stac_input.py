"""STAC items: the assets that hold a SAR or an optical scene, and the facts that the item states.

Extensions read: sar (``sar:polarizations``, ``sar:product_type``), sat (``sat:orbit_state``), eo
(``eo:bands``, ``eo:common_name``) and raster (``unit``, ``scale``, ``offset`` and ``nodata`` of bands), in
the fields of STAC 1.0 and in ``bands`` of 1.1; https://stac-extensions.github.io.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pystac
from pystac.stac_io import DefaultStacIO

from sar2eo.errors import PolarisationError, SceneError, one_line
from sar2eo.scenes.band_names import COLOURS, CloudRule, find_cloud_rule, find_colour, rank_cloud_rule
from sar2eo.scenes.gdal import display_name
from sar2eo.scenes.metadata import Facts, iso_datetime_or_none, platform_name, polarisation_words
from sar2eo.store import http, s3

# What pystac raises where a field is of the wrong type.
_WRONG_TYPES = (AttributeError, KeyError, TypeError, ValueError)
_TIFF_OR_HDF5 = ("image/tiff", "image/vnd.stac.geotiff", "application/x-hdf5")
_NOT_PIXELS = {"metadata", "thumbnail", "overview"}
_PICTURES = ("visual", "rgb", "tci", "true_color", "true-color", "true_colour")
_MASK = CloudRule("nonzero")
_PROBABILITY = re.compile(r"(?<![a-z])cld(?![a-z])", re.I)
_FIELDS = ("raster:scale", "raster:offset", "nodata")


@dataclass(frozen=True)
class SarAssets:
    """The SAR assets of an item."""

    # Hrefs by polarisations, in order: one key per asset, of one or several names
    files: dict[tuple[str, ...], str]
    nodata: float | None  # what the item declares, for files that do not
    grd: bool  # whether it is a ground range product as it was measured, in which DN 0 is nodata
    facts: Facts


def is_stac(source: str) -> bool:
    """Whether a path or URL looks like a STAC item, or one of an item collection (``items.json#ID``)."""
    return source.partition("#")[0].partition("?")[0].lower().endswith((".json", ".geojson"))


def read_item(source: str) -> pystac.Item:
    """Read a STAC item from a file or URL; ``items.json#ID`` is one item of an item collection.

    A `SceneError` is raised where it cannot be read, or is not an item.
    """
    file, _, name = source.partition("#")
    try:
        if not name:
            return pystac.Item.from_file(source, stac_io=_Io())
        item = _collect(file).get(name)
    except (OSError, pystac.STACError, pystac.STACTypeError, RecursionError, *_WRONG_TYPES) as error:
        raise SceneError(
            f"{display_name(source)}: not a STAC item that can be read ({one_line(error)})"
        ) from error
    if item is None:
        raise SceneError(f"{display_name(source)}: the item collection has no item of this name")
    if item.get_self_href() is None:
        item.set_self_href(file)  # relative hrefs of assets start from the collection's file
    return item


class _Io(DefaultStacIO):
    """Reads remote files with retries, also from object stores."""

    def read_text_from_href(self, href: str) -> str:
        read = s3.fetch if s3.is_object(href) else http.fetch
        if not s3.is_object(href) and not href.startswith(("http://", "https://")):
            return super().read_text_from_href(href)
        try:
            return read(href).decode()
        except OSError as error:
            raise SceneError(str(error)) from error


def _collect(file: str) -> dict[str, pystac.Item]:
    """Read the items of a collection by name; a local one once for all of them."""
    path = Path(file).absolute()
    if not path.is_file():
        return _read_collection.__wrapped__(file)
    status = path.stat()
    return _read_collection(str(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _read_collection(file: str, *_version: int) -> dict[str, pystac.Item]:
    return {item.id: item for item in reversed(list(pystac.ItemCollection.from_file(file, _Io())))}


def read_sar_assets(source: str) -> SarAssets:
    """Read a STAC item, and find its SAR assets; a `SceneError` is raised where it has none.

    `source` is a path or URL; ``items.json#ID`` is one item of an item collection.
    """
    item = read_item(source)
    try:
        return _assets(item, source)
    except _WRONG_TYPES as error:
        raise SceneError(
            f"{display_name(source)}: a field of the STAC item is of the wrong type ({one_line(error)})"
        ) from error


def _assets(item: pystac.Item, source: str) -> SarAssets:
    files: dict[tuple[str, ...], str] = {}
    used = []
    for key, asset in item.assets.items():
        names = _names(key, asset, item)
        if names and not any(set(names) & set(known) for known in files):
            files[names] = _local_path(asset.get_absolute_href() or asset.href)
            used.append(asset)
    if not files:
        raise SceneError(
            f"{display_name(source)}: no SAR asset among {', '.join(item.assets) or 'none'}: their keys are "
            "such as vv, or they have sar:polarizations"
        )
    bands = [band for asset in used for band in _raster_bands(asset)]
    nodata = {float(band["nodata"]) for band in bands if band.get("nodata") is not None}
    declared = nodata.pop() if len(nodata) == 1 else None
    return SarAssets(files, declared, _product_type(item) == "GRD", _facts(item, bands))


def select_assets(
    files: Mapping[tuple[str, ...], str], wanted: tuple[str, ...] | None, source: str
) -> dict[tuple[str, ...], str]:
    """Keep the assets that hold the polarisations wanted; None wants all."""
    known = [name for names in files for name in names]
    missing = [name for name in wanted or () if name not in known]
    if missing:
        raise PolarisationError(
            f"{display_name(source)}: no {', '.join(missing)}, the item has {', '.join(known)}"
        )
    return {names: href for names, href in files.items() if wanted is None or set(names) & set(wanted)}


def _names(key: str, asset: pystac.Asset, item: pystac.Item) -> tuple[str, ...]:
    """Return the polarisations of an asset; none where it holds no SAR pixels."""
    if set(asset.roles or ()) & {"visual", "mask"} or not _is_raster(asset):
        return ()
    said = asset.extra_fields.get("sar:polarizations")
    if said:
        return _upper(said)
    of_key = polarisation_words(key)
    if len(of_key) == 1:
        return tuple(of_key)
    data = [a for a in item.assets.values() if "data" in (a.roles or ())]
    if data == [asset]:
        return _upper(item.properties.get("sar:polarizations", []))
    return ()


def _upper(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list):
        raise TypeError(f"sar:polarizations is {names!r}, must be a list")
    return tuple(str(name).upper() for name in names)


def _is_raster(asset: pystac.Asset, jp2: bool = False) -> bool:
    """Whether an asset holds pixels, by its media type or else its name; `jp2` lets JPEG 2000 count."""
    if set(asset.roles or ()) & _NOT_PIXELS:
        return False
    media = (asset.media_type or "").lower()
    if media:
        return media.startswith(_TIFF_OR_HDF5) or (jp2 and media.startswith("image/jp2"))
    suffixes = (".tif", ".tiff", ".vrt", *((".jp2",) if jp2 else ()))
    return asset.href.partition("?")[0].lower().endswith(suffixes)


def _raster_bands(asset: pystac.Asset) -> list[dict[str, Any]]:
    found = asset.extra_fields.get("raster:bands") or asset.extra_fields.get("bands") or []
    return [band for band in found if isinstance(band, dict)]


def _local_path(href: str) -> str:
    """Decode an href as a path where such a file exists: blanks may be written as ``%20``."""
    path = href.removeprefix("file://") if href.startswith("file://") else href
    plain = unquote(path)
    return plain if "://" not in path and not Path(path).exists() and Path(plain).exists() else path


def _facts(item: pystac.Item, bands: list[dict[str, Any]]) -> Facts:
    properties = item.properties
    units = {str(band.get("unit", "")).lower() for band in bands}
    is_rtc = _product_type(item) == "RTC"
    return Facts(
        quantity="db" if units == {"db"} else None,
        calibration="rtc" if is_rtc else None,
        datetime=iso_datetime_or_none(item.datetime or properties.get("start_datetime")),
        platform=platform_name(properties.get("platform")),
        orbit_direction=properties.get("sat:orbit_state"),
        terrain_corrected=True if is_rtc else None,
    )


def _product_type(item: pystac.Item) -> str:
    return str(item.properties.get("sar:product_type", "")).upper()


@dataclass(frozen=True)
class BandAsset:
    """One colour in a file."""

    href: str
    index: int  # band, from 1
    label: str  # name of the asset, and of the band where it has several
    said: dict[str, float]  # ``scale``, ``offset`` and ``nodata``, where the item declares them


@dataclass(frozen=True)
class CloudAsset:
    """A file whose first band masks clouds."""

    href: str
    rule: CloudRule
    label: str


@dataclass(frozen=True)
class EoAssets:
    """The optical assets of an item."""

    # A raster whose bands are chosen by what it says itself: a true-colour image, or the item's only raster
    picture: str | None
    bands: tuple[BandAsset, ...]  # red, green and blue; empty with a picture
    cloud: CloudAsset | None
    nodata: float | None = None  # of the picture, where the item declares it


def choose_eo_assets(item: pystac.Item) -> EoAssets | None:
    """Choose the optical assets of an item; None where there are none.

    The true-colour asset if there is one; else red, green and blue by the names of bands; else the only
    raster of an item that holds no SAR.
    """
    rasters = {key: asset for key, asset in item.assets.items() if _is_raster(asset, jp2=True)}
    cloud = _cloud(rasters)
    for key, asset in rasters.items():
        if _plain(key) in _PICTURES or "visual" in (asset.roles or ()):
            said = _list(asset)
            return EoAssets(_href(asset), (), cloud, _numbers(said[0]).get("nodata") if said else None)
    found: dict[str, BandAsset] = {}
    for key, asset in rasters.items():
        for colour, band in _colours(key, asset):
            found.setdefault(colour, band)
    if len(found) == len(COLOURS):
        return EoAssets(None, tuple(found[colour] for colour in COLOURS), cloud)
    is_sar = any(name.startswith("sar:") for name in item.properties) or any(map(polarisation_words, rasters))
    rest = [asset for key, asset in rasters.items() if find_cloud_rule(_plain(key)) is None]
    return EoAssets(_href(rest[0]), (), cloud) if len(rest) == 1 and not is_sar else None


def read_item_facts(item: pystac.Item) -> Facts:
    """Return when and by what an optical item was acquired."""
    time = item.datetime or item.properties.get("start_datetime")
    return Facts(datetime=iso_datetime_or_none(time), platform=platform_name(item.properties.get("platform")))


def _cloud(rasters: dict[str, pystac.Asset]) -> CloudAsset | None:
    found = [
        CloudAsset(_href(asset), rule, key)
        for key, asset in rasters.items()
        if (rule := _rule_of(key, asset)) is not None and _plain(key) != "mask"
    ]
    return min(found, key=lambda each: rank_cloud_rule(each.rule), default=None)


def _rule_of(key: str, asset: pystac.Asset) -> CloudRule | None:
    """Return the cloud rule of an asset; one called "cloud" may hold a mask, or percentages."""
    rule = find_cloud_rule(_plain(key))
    said = f"{asset.title or ''} {asset.description or ''}".lower()
    if rule == _MASK and ("probabilit" in said or _PROBABILITY.search(asset.href)):
        return find_cloud_rule("cloud_probability")
    return rule


def _plain(key: str) -> str:
    """Return an asset's name without what only some catalogues add: ``B04-jp2``, ``SCL_20m``."""
    return re.sub(r"(-jp2|_\d+m)$", "", key.lower())


def _colours(key: str, asset: pystac.Asset) -> list[tuple[str, BandAsset]]:
    """Find colours in an asset; by its name where it has one band, or does not list its bands."""
    bands = _list(asset)
    if len(bands) <= 1:
        said = bands[0] if bands else {}
        colour = _colour_of(said) or find_colour(key)
        return [(colour, BandAsset(_href(asset), 1, key, _numbers(said)))] if colour else []
    return [
        (colour, BandAsset(_href(asset), number, f"{key} {colour}", _numbers(said)))
        for number, said in enumerate(bands, start=1)
        if (colour := _colour_of(said)) is not None
    ]


def _list(asset: pystac.Asset) -> list[dict[str, Any]]:
    """Merge what all lists of bands say of each band."""
    lists = [asset.extra_fields.get(name) or [] for name in ("bands", "eo:bands", "raster:bands")]
    whole = {name: asset.extra_fields[name] for name in _FIELDS if name in asset.extra_fields}
    merged: list[dict[str, Any]] = [{**whole} for _ in range(max(map(len, lists)))]
    for said in lists:
        for band, more in zip(merged, said, strict=False):
            band |= more
    return merged or ([whole] if whole else [])


def _colour_of(said: dict[str, Any]) -> str | None:
    common = said.get("eo:common_name") or said.get("common_name")
    return find_colour(str(common or said.get("name") or ""))


def _numbers(said: dict[str, Any]) -> dict[str, float]:
    found = {name: said.get(f"raster:{name}", said.get(name)) for name in ("scale", "offset", "nodata")}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _href(asset: pystac.Asset) -> str:
    return _local_path(str(asset.get_absolute_href() or asset.href))
