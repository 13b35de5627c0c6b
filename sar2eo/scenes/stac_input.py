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
from sar2eo.scenes.band_names import (
    BandText,
    CloudRule,
    choose_named,
    find_cloud_rule,
    rank_cloud_rule,
)
from sar2eo.scenes.gdal import display_name, gdal_path
from sar2eo.scenes.metadata import Facts, iso_datetime_or_none, platform_name, polarisation_words
from sar2eo.store import http, s3
from sar2eo.store.documents import read_file

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
    """Reads files of bounded size, remote ones with retries, also from object stores."""

    def read_text_from_href(self, href: str) -> str:
        read = s3.fetch if s3.is_object(href) else http.fetch
        if not s3.is_object(href) and not href.startswith(("http://", "https://")):
            return read_file(Path(gdal_path(href))).decode()
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


def read_sar_assets(
    source: str, asset: str | None = None, polarisations: tuple[str, ...] | None = None
) -> SarAssets:
    """Read a STAC item, and find its SAR assets; a `SceneError` is raised where it has none.

    Parameters
    ----------
    source : str
        A path or URL; ``items.json#ID`` is one item of an item collection.
    asset : str, optional
        Key of the asset to take.
    polarisations : tuple of str, optional
        What the asset holds, where the item does not say.
    """
    item = read_item(source)
    try:
        return _assets(item, source, asset, polarisations or ())
    except _WRONG_TYPES as error:
        raise SceneError(
            f"{display_name(source)}: a field of the STAC item is of the wrong type ({one_line(error)})"
        ) from error


def _assets(item: pystac.Item, source: str, wanted: str | None, given: tuple[str, ...]) -> SarAssets:
    files: dict[tuple[str, ...], str] = {}
    used = []
    keys = ", ".join(item.assets) or "none"
    if wanted is not None and wanted not in item.assets:
        raise SceneError(f"{display_name(source)}: no asset {wanted}, the item has {keys}")
    chosen = item.assets if wanted is None else {wanted: item.assets[wanted]}
    for key, asset in chosen.items():
        names = _names(key, asset, item)
        if wanted is not None and not names:
            names = _upper(item.properties.get("sar:polarizations", [])) or given
            if not names:
                raise PolarisationError(
                    f"{display_name(source)}: asset {wanted}: its polarisations are not said: give --pol"
                )
        if names and not any(set(names) & set(known) for known in files):
            files[names] = _local_path(asset.get_absolute_href() or asset.href)
            used.append(asset)
    if not files:
        raise SceneError(
            f"{display_name(source)}: no SAR asset among {keys}: their keys are such as vv, or they have "
            "sar:polarizations; choose one with --asset"
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
    data = [k for k, a in item.assets.items() if "data" in (a.roles or ("data",)) and _is_raster(a)]
    if len(data) > 1:  # Umbra's GEC and CSI: the one of the item's type of product
        words = {k: re.split(r"[^A-Z0-9]+", f"{k} {item.assets[k].title}".upper()) for k in data}
        data = [k for k in data if _product_type(item) in words[k]]
    if data == [key]:
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
    units = {str(band.get("unit", "")).lower() for band in bands}
    # Some catalogues keep the type that the product was made from: ``sentinel-1-rtc``, ``..._rtc``.
    is_rtc = _product_type(item) == "RTC" or any(
        re.search(r"(?<![a-z])rtc(?![a-z])", text or "", re.I) for text in (item.collection_id, item.id)
    )
    values = Facts(
        quantity="db" if units == {"db"} else None,
        calibration="rtc" if is_rtc else None,
        terrain_corrected=True if is_rtc else None,
    )
    return values.over(read_item_facts(item))


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


def choose_eo_assets(item: pystac.Item, numbers: tuple[int, ...] | None = None) -> EoAssets | None:
    """Choose the optical assets of an item; None where there are none.

    The true-colour asset if there is one; else red, green and blue by what is said of bands; else the only
    raster of an item that holds no SAR. `numbers` are those of red, green and blue in the names of bands,
    where the user gives them.
    """
    rasters = {key: asset for key, asset in item.assets.items() if _is_raster(asset, jp2=True)}
    cloud = _cloud(rasters)
    sensor = " ".join(
        str(item.properties.get(name, "")) for name in ("platform", "constellation", "instruments")
    )
    visual = (a for key, a in rasters.items() if _plain(key) in _PICTURES or "visual" in (a.roles or ()))
    picture = next(visual, None)
    if picture is not None and numbers is None:
        said = _list(picture)
        return EoAssets(_href(picture), (), cloud, _numbers(said[0]).get("nodata") if said else None)
    # Assets of several bands each by itself, then those of one band together, each of a name once.
    single: dict[str, tuple[BandText, BandAsset]] = {}
    groups = []
    for key, asset in rasters.items():
        bands = [
            (_text(said, None if many else _plain(key)), BandAsset(_href(asset), at, label, _numbers(said)))
            for many in [len(_list(asset)) > 1]
            for at, said in enumerate(_list(asset) or [{}], start=1)
            for label in [f"{key} {at}" if many else key]
        ]
        groups += [bands] if len(bands) > 1 else []
        single |= {} if len(bands) > 1 else {_plain(key): single.get(_plain(key), bands[0])}
    for bands in (*groups, list(single.values())):
        chosen = choose_named([text for text, _ in bands], sensor, numbers)
        if chosen is not None:
            return EoAssets(None, tuple(bands[at][1] for at in chosen), cloud)
    is_sar = any(name.startswith("sar:") for name in item.properties) or any(map(polarisation_words, rasters))
    rest = [asset for key, asset in rasters.items() if find_cloud_rule(_plain(key)) is None]
    picture = rest[0] if len(rest) == 1 and not is_sar else picture
    return None if picture is None else EoAssets(_href(picture), (), cloud)


def read_item_facts(item: pystac.Item) -> Facts:
    """Return when and by what an item was acquired."""
    properties = item.properties
    return Facts(
        datetime=iso_datetime_or_none(item.datetime or properties.get("start_datetime")),
        platform=platform_name(properties.get("platform")),
        orbit_direction=properties.get("sat:orbit_state"),
    )


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


def _list(asset: pystac.Asset) -> list[dict[str, Any]]:
    """Merge what all lists of bands say of each band."""
    lists = [asset.extra_fields.get(name) or [] for name in ("bands", "eo:bands", "raster:bands")]
    whole = {name: asset.extra_fields[name] for name in _FIELDS if name in asset.extra_fields}
    merged: list[dict[str, Any]] = [{**whole} for _ in range(max(map(len, lists)))]
    for said in lists:
        for band, more in zip(merged, said, strict=False):
            band |= more
    return merged or ([whole] if whole else [])


def _text(said: dict[str, Any], key: str | None) -> BandText:
    """Return what an item says of a band; `key` is that of an asset of one band."""
    fields = [said.get(f"{space}{name}") for name in ("common_name", "name") for space in ("eo:", "")]
    micrometres = said.get("eo:center_wavelength", said.get("center_wavelength"))
    texts = dict.fromkeys(str(text) for text in (*fields, key) if text)
    return BandText(0, tuple(texts), micrometres if isinstance(micrometres, int | float) else None)


def _numbers(said: dict[str, Any]) -> dict[str, float]:
    found = {name: said.get(f"raster:{name}", said.get(name)) for name in ("scale", "offset", "nodata")}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _href(asset: pystac.Asset) -> str:
    return _local_path(str(asset.get_absolute_href() or asset.href))
