"""SNAP's description of a product, as XML: BEAM-DIMAP's ``.dim`` file, or tag 65000 of a GeoTIFF."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from sar2eo.store.documents import parse_xml

_TAG = 65000
_LARGEST = 1 << 25  # bytes


@dataclass(frozen=True)
class SnapBand:
    """One band of a product."""

    number: str | None  # by which the rest of the product names it
    name: str
    unit: str  # "db", "intensity", "amplitude" or what else SNAP computes
    nodata: float | None


@dataclass(frozen=True)
class SnapProduct:
    """What a product's description says."""

    bands: tuple[SnapBand, ...]
    tags: dict[str, str]


def read_snap_product(root: ElementTree.Element) -> SnapProduct:
    """Read a description."""
    bands = []
    for band in root.iter("Spectral_Band_Info"):
        unit = band.findtext("PHYSICAL_UNIT", "").lower()
        used = band.findtext("NO_DATA_VALUE_USED", "").lower() == "true"
        nodata = float(band.findtext("NO_DATA_VALUE", "nan")) if used else None
        number, name = band.findtext("BAND_INDEX"), band.findtext("BAND_NAME", "")
        bands.append(SnapBand(number, name, "db" if "db" in unit else unit, nodata))
    tags = {str(each.get("name")): each.text or "" for each in root.iter("MDATTR")}
    tags |= {each.tag: each.text or "" for each in root.iter("PRODUCT_SCENE_RASTER_START_TIME")}
    return SnapProduct(tuple(bands), tags)


def read_snap_tag(path: Path) -> SnapProduct | None:
    """Read the description in a GeoTIFF; None where there is none, or none that can be read."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    # Of a damaged file, or one of another kind, anything may be raised; what GDAL reads of it counts.
    with suppress(Exception), tifffile.TiffFile(path) as file:
        tag = file.pages.first.tags.get(_TAG)
        if tag is not None and tag.count < _LARGEST:
            text = tag.value.encode() if isinstance(tag.value, str) else bytes(tag.value)
            return read_snap_product(parse_xml(text))
    return None
