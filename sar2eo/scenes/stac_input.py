"""STAC items: which assets are SAR, which polarisation each holds, and what the item says of them.

Extensions read: sar (``sar:polarizations``, ``sar:product_type``), sat (``sat:orbit_state``) and raster
(``unit`` and ``nodata`` of bands); https://stac-extensions.github.io.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pystac
from pystac.stac_io import DefaultStacIO

from sar2eo.errors import PolarisationError, SceneError, one_line
from sar2eo.scenes.gdal import shown
from sar2eo.scenes.metadata import Facts, known_datetime, polarisation_words
from sar2eo.store import http, s3

__all__ = ["ItemAssets", "is_stac", "local_path", "open_item", "read_item", "select_assets"]

# What a catalogue's reader raises where a field holds another type than it should.
_WRONG_TYPES = (AttributeError, KeyError, TypeError, ValueError)
_NOT_PIXELS = {"metadata", "thumbnail", "overview", "visual", "mask"}


@dataclass(frozen=True)
class ItemAssets:
    """What an item offers.

    Parameters
    ----------
    files : dict
        Polarisations, in order, to hrefs: one key per asset, one or several names each.
    nodata : float or None
        What the item declares, for files that do not.
    grd : bool
        Whether it is a ground range product as it was measured, in which DN 0 is nodata.
    facts : Facts
        Of the acquisition and the values.
    """

    files: dict[tuple[str, ...], str]
    nodata: float | None
    grd: bool
    facts: Facts


def is_stac(source: str) -> bool:
    """Whether a path or URL looks like a STAC item, or one of an item collection (``items.json#ID``)."""
    return source.partition("#")[0].partition("?")[0].lower().endswith((".json", ".geojson"))


def read_item(source: str) -> pystac.Item:
    """Read a STAC item from a file or URL; ``items.json#ID`` is one item of an item collection.

    Raises
    ------
    SceneError
        If it cannot be read, or is not an item.
    """
    file, _, name = source.partition("#")
    try:
        if not name:
            return pystac.Item.from_file(source, stac_io=_Io())
        item = _collected(file).get(name)
    except (OSError, pystac.STACError, pystac.STACTypeError, RecursionError, *_WRONG_TYPES) as error:
        raise SceneError(f"{shown(source)}: not a STAC item that can be read ({one_line(error)})") from error
    if item is None:
        raise SceneError(f"{shown(source)}: the item collection has no item of this name")
    if item.get_self_href() is None:
        item.set_self_href(file)  # relative hrefs of assets start from the collection's file
    return item


class _Io(DefaultStacIO):
    """Reads what is remote with patience, and from object stores, too."""

    def read_text_from_href(self, href: str) -> str:
        read = s3.fetch if s3.is_object(href) else http.fetch
        if not s3.is_object(href) and not href.startswith(("http://", "https://")):
            return super().read_text_from_href(href)
        try:
            return read(href).decode()
        except OSError as error:
            raise SceneError(str(error)) from error


def _collected(file: str) -> dict[str, pystac.Item]:
    """Read an item collection, a local one once for all of its items."""
    path = Path(file).absolute()
    if not path.is_file():
        return _read_collection(file)
    status = path.stat()
    return _read_local(str(path), status.st_mtime_ns, status.st_size)


def _read_collection(file: str) -> dict[str, pystac.Item]:
    return {item.id: item for item in reversed(list(pystac.ItemCollection.from_file(file, _Io())))}


@lru_cache(maxsize=2)
def _read_local(file: str, *_: int) -> dict[str, pystac.Item]:
    return _read_collection(file)


def open_item(source: str) -> ItemAssets:
    """Read a STAC item from a file or URL.

    Parameters
    ----------
    source : str
        Path or URL; ``items.json#ID`` for one item of an item collection.

    Raises
    ------
    SceneError
        If it cannot be read, is not an item, or has no SAR asset.
    """
    item = read_item(source)
    try:
        return _assets(item, source)
    except _WRONG_TYPES as error:
        raise SceneError(
            f"{shown(source)}: a field of the STAC item holds another type than it may ({one_line(error)})"
        ) from error


def _assets(item: pystac.Item, source: str) -> ItemAssets:
    files: dict[tuple[str, ...], str] = {}
    used = []
    for key, asset in item.assets.items():
        names = _names(key, asset, item)
        if names and not any(set(names) & set(known) for known in files):
            files[names] = local_path(asset.get_absolute_href() or asset.href)
            used.append(asset)
    if not files:
        raise SceneError(
            f"{shown(source)}: no SAR asset among {', '.join(item.assets) or 'none'}: they are told by keys "
            "such as vv or by sar:polarizations"
        )
    bands = [band for asset in used for band in _raster_bands(asset)]
    nodata = {float(band["nodata"]) for band in bands if band.get("nodata") is not None}
    declared = nodata.pop() if len(nodata) == 1 else None
    return ItemAssets(files, declared, _product_type(item) == "GRD", _facts(item, bands))


def select_assets(
    files: Mapping[tuple[str, ...], str], wanted: tuple[str, ...] | None, source: str
) -> dict[tuple[str, ...], str]:
    """Keep the assets that hold the polarisations wanted; None wants all.

    Raises
    ------
    PolarisationError
        If one is not there.
    """
    known = [name for names in files for name in names]
    missing = [name for name in wanted or () if name not in known]
    if missing:
        raise PolarisationError(f"{shown(source)}: no {', '.join(missing)}, the item has {', '.join(known)}")
    return {names: href for names, href in files.items() if wanted is None or set(names) & set(wanted)}


def _names(key: str, asset: pystac.Asset, item: pystac.Item) -> tuple[str, ...]:
    """Polarisations of an asset; none where it holds no SAR pixels."""
    if set(asset.roles or ()) & _NOT_PIXELS or not _is_raster(asset):
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


def _is_raster(asset: pystac.Asset) -> bool:
    media = (asset.media_type or "").lower()
    if media:
        return media.startswith("image/tiff") or media in {"application/x-hdf5", "image/vnd.stac.geotiff"}
    return asset.href.partition("?")[0].lower().endswith((".tif", ".tiff", ".vrt"))


def _raster_bands(asset: pystac.Asset) -> list[dict[str, Any]]:
    found = asset.extra_fields.get("raster:bands") or asset.extra_fields.get("bands") or []
    return [band for band in found if isinstance(band, dict)]


def local_path(href: str) -> str:
    """Return the path that an href means, which is a URI: blanks may be written as ``%20``."""
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
        datetime=known_datetime(item.datetime or properties.get("start_datetime")),
        platform=_platform(properties.get("platform")),
        orbit_direction=properties.get("sat:orbit_state"),
        terrain_corrected=True if is_rtc else None,
    )


def _product_type(item: pystac.Item) -> str:
    return str(item.properties.get("sar:product_type", "")).upper()


def _platform(name: str | None) -> str | None:
    # Catalogues write sentinel-1a, products Sentinel-1A.
    lower = (name or "").lower()
    return f"Sentinel-1{lower[-1].upper()}" if lower[:-1] == "sentinel-1" else name
