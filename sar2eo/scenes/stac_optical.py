"""EO in STAC items: which assets show red, green and blue, which tells clouds, and how values are stored.

Extensions read: eo (``eo:bands``, ``eo:common_name``) and raster (``scale``, ``offset`` and ``nodata`` of
bands), in the fields of version 1.0 and in ``bands`` of 1.1; https://stac-extensions.github.io.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pystac

from sar2eo.scenes.band_names import COLOURS, CloudRule, cloud_rule, colour_of, telling
from sar2eo.scenes.metadata import Facts, known_datetime, polarisation_words
from sar2eo.scenes.stac_input import local_path

__all__ = ["BandAsset", "CloudAsset", "EoAssets", "eo_assets", "item_facts", "sentinel2_platform"]

_PICTURES = ("visual", "rgb", "tci", "true_color", "true-color", "true_colour")
_NOT_PIXELS = {"metadata", "thumbnail", "overview"}
_MEDIA = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2", "application/x-hdf5")
_MASK = CloudRule("nonzero")
_PROBABILITY = re.compile(r"(?<![a-z])cld(?![a-z])", re.I)
_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2")
_FIELDS = ("raster:scale", "raster:offset", "nodata")


@dataclass(frozen=True)
class BandAsset:
    """One colour in a file.

    Parameters
    ----------
    href : str
        Path or URL.
    index : int
        Band, from 1.
    label : str
        Name of the asset, and of the band where it has several.
    said : dict
        ``scale``, ``offset`` and ``nodata``, where the item says them.
    """

    href: str
    index: int
    label: str
    said: dict[str, float]


@dataclass(frozen=True)
class CloudAsset:
    """A file that tells clouds, in its first band."""

    href: str
    rule: CloudRule
    label: str


@dataclass(frozen=True)
class EoAssets:
    """What an item offers.

    Parameters
    ----------
    picture : str or None
        A raster to be read by what it says of itself: a true-colour image, or the item's only raster.
    bands : tuple of BandAsset
        Red, green and blue; empty with a picture.
    cloud : CloudAsset or None
        Where there is one.
    nodata : float or None
        Of the picture, where the item says it.
    """

    picture: str | None
    bands: tuple[BandAsset, ...]
    cloud: CloudAsset | None
    nodata: float | None = None


def eo_assets(item: pystac.Item) -> EoAssets | None:
    """Choose an item's assets; None where it has no EO that can be told.

    The true-colour asset is taken where there is one, then red, green and blue by the names of bands, then
    the only raster of an item that holds no SAR.
    """
    rasters = {key: asset for key, asset in item.assets.items() if _is_raster(asset)}
    cloud = _cloud(rasters)
    for key, asset in rasters.items():
        if _plain(key) in _PICTURES or "visual" in (asset.roles or ()):
            said = _listed(asset)
            return EoAssets(_href(asset), (), cloud, _numbers(said[0]).get("nodata") if said else None)
    found: dict[str, BandAsset] = {}
    for key, asset in rasters.items():
        for colour, band in _colours(key, asset):
            found.setdefault(colour, band)
    if len(found) == len(COLOURS):
        return EoAssets(None, tuple(found[colour] for colour in COLOURS), cloud)
    is_sar = any(name.startswith("sar:") for name in item.properties) or any(map(polarisation_words, rasters))
    rest = [asset for key, asset in rasters.items() if cloud_rule(_plain(key)) is None]
    return EoAssets(_href(rest[0]), (), cloud) if len(rest) == 1 and not is_sar else None


def item_facts(item: pystac.Item) -> Facts:
    """Return when and by what an EO item was acquired."""
    time = item.datetime or item.properties.get("start_datetime")
    return Facts(datetime=known_datetime(time), platform=sentinel2_platform(item.properties.get("platform")))


def sentinel2_platform(name: str | None) -> str | None:
    """Spell a Sentinel-2 as its products do, ``Sentinel-2A``, and leave any other name as it is."""
    unit = re.search(r"sentinel-?2([a-d])", name or "", re.I)
    return f"Sentinel-2{unit[1].upper()}" if unit else name


def _is_raster(asset: pystac.Asset) -> bool:
    if set(asset.roles or ()) & _NOT_PIXELS:
        return False
    media = (asset.media_type or "").lower()
    return media.startswith(_MEDIA) if media else asset.href.partition("?")[0].lower().endswith(_SUFFIXES)


def _cloud(rasters: dict[str, pystac.Asset]) -> CloudAsset | None:
    found = [
        CloudAsset(_href(asset), rule, key)
        for key, asset in rasters.items()
        if (rule := _rule_of(key, asset)) is not None and _plain(key) != "mask"
    ]
    return min(found, key=lambda each: telling(each.rule), default=None)


def _rule_of(key: str, asset: pystac.Asset) -> CloudRule | None:
    """Return how an asset tells clouds; one called "cloud" may hold a mask, or probabilities in percent."""
    rule = cloud_rule(_plain(key))
    said = f"{asset.title or ''} {asset.description or ''}".lower()
    if rule == _MASK and ("probabilit" in said or _PROBABILITY.search(asset.href)):
        return cloud_rule("cloud_probability")
    return rule


def _plain(key: str) -> str:
    """Return an asset's name without what only some catalogues add: ``B04-jp2``, ``SCL_20m``."""
    return re.sub(r"(-jp2|_\d+m)$", "", key.lower())


def _colours(key: str, asset: pystac.Asset) -> list[tuple[str, BandAsset]]:
    """Colours in an asset; by the name of the asset where it has one band, or does not list its bands."""
    bands = _listed(asset)
    if len(bands) <= 1:
        said = bands[0] if bands else {}
        colour = _colour_of(said) or colour_of(key)
        return [(colour, BandAsset(_href(asset), 1, key, _numbers(said)))] if colour else []
    return [
        (colour, BandAsset(_href(asset), number, f"{key} {colour}", _numbers(said)))
        for number, said in enumerate(bands, start=1)
        if (colour := _colour_of(said)) is not None
    ]


def _listed(asset: pystac.Asset) -> list[dict[str, Any]]:
    """Gather what is said of each band, from all lists of bands there are."""
    lists = [asset.extra_fields.get(name) or [] for name in ("bands", "eo:bands", "raster:bands")]
    whole = {name: asset.extra_fields[name] for name in _FIELDS if name in asset.extra_fields}
    merged: list[dict[str, Any]] = [{**whole} for _ in range(max(map(len, lists)))]
    for said in lists:
        for band, more in zip(merged, said, strict=False):
            band |= more
    return merged or ([whole] if whole else [])


def _colour_of(said: dict[str, Any]) -> str | None:
    common = said.get("eo:common_name") or said.get("common_name")
    return colour_of(str(common or said.get("name") or ""))


def _numbers(said: dict[str, Any]) -> dict[str, float]:
    found = {name: said.get(f"raster:{name}", said.get(name)) for name in ("scale", "offset", "nodata")}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _href(asset: pystac.Asset) -> str:
    return local_path(str(asset.get_absolute_href() or asset.href))
