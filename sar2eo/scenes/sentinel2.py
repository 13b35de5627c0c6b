"""Sentinel-2 products as ESA lays them out, level 1C or 2A: a .SAFE folder or its zip; and their reflectance.

Layout, offsets and masks: Sentinel-2 Products Specification (S2-PDGS-TAS-DI-PSD); band ids count B01, B02,
B03, B04 ... from 0.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sar2eo.errors import SceneError
from sar2eo.scenes.metadata import Facts, iso_datetime_or_none
from sar2eo.store.documents import parse_xml, read_file, read_member

_METADATA = re.compile(r"(?:^|/)MTD_MSIL(?:1C|2A)\.xml$")
_BANDS = ("B04", "B03", "B02")
_BAND_IDS = {"B02": "1", "B03": "2", "B04": "3"}


REFLECTANCE_1 = 10_000.0
"""Value that stands for a reflectance of 1."""

_OFFSET_SINCE_0400 = -1000.0
_ADD_OFFSET = re.compile(r"^(?:boa|radio)_add_offset(?:_values?_list)?(?:_|$)", re.I)
_BASELINE_TAGS = ("s2:processing_baseline", "sentinel:processing_baseline", "processing_baseline")
_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")


@dataclass(frozen=True)
class Sentinel2Product:
    """The files of a product that show red, green, blue and clouds."""

    bands: tuple[str, ...]  # files of B04, B03 and B02 at 10 m, as GDAL opens them
    classes: str | None  # file of the scene classification, of level 2A
    codings: tuple[Coding, ...]  # one per band
    facts: Facts


def is_sentinel2(path: Path) -> bool:
    """Whether a path is a Sentinel-2 product: its folder, its zip, or the metadata file in the folder."""
    if path.is_dir():
        return any(_METADATA.search(file.name) for file in path.glob("MTD_MSIL*.xml"))
    if path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(map(_METADATA.search, archive.namelist()))
    return path.is_file() and _METADATA.search(path.name) is not None


def open_sentinel2(path: Path) -> Sentinel2Product:
    """Read the metadata of a product."""
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
        metadata_name = next(name for name in names if _METADATA.search(name))
        files = {name: f"/vsizip/{{{path.resolve()}}}/{name}" for name in names}
    else:
        folder = path if path.is_dir() else path.parent
        document = next(f for f in sorted(folder.glob("MTD_MSIL*.xml")) if _METADATA.search(f.name))
        images = sorted(folder.glob("GRANULE/*/IMG_DATA/**/*.jp2"))
        files = {image.relative_to(folder).as_posix(): str(image) for image in images}
    try:
        zipped = path.suffix.lower() == ".zip"
        metadata = parse_xml(read_member(path, metadata_name) if zipped else read_file(document))
    except (OSError, ValueError) as error:
        raise SceneError(f"{path}: its metadata are not readable XML ({error})") from error
    bands = [_file(files, rf"_{band}(?:_10m)?\.jp2$") for band in _BANDS]
    missing = [band for band, file in zip(_BANDS, bands, strict=True) if file is None]
    if missing:
        raise SceneError(f"{path}: no image of {', '.join(missing)} at 10 m: is the product complete?")
    try:
        codings = tuple(_coding(metadata, band) for band in _BANDS)
    except (ValueError, ZeroDivisionError) as error:
        raise SceneError(f"{path}: its metadata hold no number where one is due ({error})") from error
    return Sentinel2Product(
        bands=tuple(str(file) for file in bands),
        classes=_file(files, r"_SCL_20m\.jp2$"),
        codings=codings,
        facts=_facts(metadata),
    )


def _file(files: dict[str, str], pattern: str) -> str | None:
    return next((file for name, file in files.items() if re.search(pattern, name)), None)


def _coding(metadata: ElementTree.Element, band: str) -> Coding:
    quantification, offset = None, 0.0
    for element in metadata.iter():
        if element.tag in ("QUANTIFICATION_VALUE", "BOA_QUANTIFICATION_VALUE"):
            quantification = float(element.text or "nan")
        is_offset = element.tag in ("RADIO_ADD_OFFSET", "BOA_ADD_OFFSET")
        if is_offset and element.get("band_id") == _BAND_IDS[band]:
            offset = float(element.text or "nan")
    factor = 1.0 if quantification is None else REFLECTANCE_1 / quantification
    return Coding(factor, offset * factor, "ADD_OFFSET of the product" if offset else "product")


def _facts(metadata: ElementTree.Element) -> Facts:
    time = metadata.findtext(".//PRODUCT_START_TIME") or metadata.findtext(".//DATATAKE_SENSING_START")
    return Facts(datetime=iso_datetime_or_none(time), platform=metadata.findtext(".//SPACECRAFT_NAME"))


@dataclass(frozen=True)
class Coding:
    """How stored numbers become values: ``value = number * factor + offset``."""

    factor: float = 1.0  # to the scale of `REFLECTANCE_1`
    offset: float = 0.0
    origin: str = "numbers as stored"  # where they come from, in words

    @classmethod
    def declared(cls, scale: float, offset: float, origin: str) -> Coding:
        """Make one of a scale and an offset that give reflectance; a scale of 1 leaves stored numbers."""
        unit = 1.0 if scale == 1.0 else REFLECTANCE_1
        return cls(scale * unit, offset * unit, origin)


def read_coding_of_tags(tags: Mapping[str, str], scale: float, offset: float) -> Coding:
    """Read the coding a file declares: GDAL's scale and offset of a band, or else the offset in its tags."""
    if (scale, offset) != (1.0, 0.0):
        return Coding.declared(scale, offset, "scale and offset of the file")
    offsets = {float(text) for key, text in tags.items() if _ADD_OFFSET.match(key) and _is_number(text)}
    # Red, green and blue have always had the same offset; where there are several, nothing is guessed.
    return Coding(1.0, offsets.pop(), "ADD_OFFSET of the product") if len(offsets) == 1 else Coding()


def read_coding_of_item(properties: Mapping[str, Any], said: Mapping[str, float], stored: Coding) -> Coding:
    """Read the coding that a STAC item declares for a band.

    The item's scale and offset (`said`), without the offset if the item says that it is applied already; else
    `stored`, the file's; else by the processing baseline in the item's properties.
    """
    applied = any(properties.get(name) is True for name in _APPLIED)
    if "scale" in said or "offset" in said:
        offset = 0.0 if applied else said.get("offset", 0.0)
        origin = (
            "scale of the item, its offset applied already" if applied else "scale and offset of the item"
        )
        return Coding.declared(said.get("scale", 1.0), offset, origin)
    if stored != Coding() or applied:
        return stored
    baseline = next((str(properties[name]) for name in _BASELINE_TAGS if name in properties), "")
    if re.match(r"0[4-9]\.\d+|[1-9]\d\.\d+", baseline):
        return Coding(1.0, _OFFSET_SINCE_0400, f"processing baseline {baseline} of the item")
    return stored


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*-?\d+(?:\.\d+)?\s*", str(text)) is not None
