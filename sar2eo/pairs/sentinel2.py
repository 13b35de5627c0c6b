"""Sentinel-2 products as ESA lays them out: a .SAFE folder or its zip, level 1C or 2A.

Layout, offsets and masks: Sentinel-2 Products Specification (S2-PDGS-TAS-DI-PSD); band ids count
B01, B02, B03, B04 ... from 0.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from sar2eo.errors import SceneError
from sar2eo.pairs.reflectance import REFLECTANCE_1, Coding
from sar2eo.scene.metadata import Facts, known_datetime

__all__ = ["Sentinel2Product", "is_sentinel2", "open_sentinel2"]

_METADATA = re.compile(r"(?:^|/)MTD_MSIL(?:1C|2A)\.xml$")
_BANDS = ("B04", "B03", "B02")
_BAND_IDS = {"B02": "1", "B03": "2", "B04": "3"}


@dataclass(frozen=True)
class Sentinel2Product:
    """What is needed of a product.

    Parameters
    ----------
    bands : tuple of str
        Files of B04, B03 and B02 at 10 m, as GDAL opens them.
    classes : str or None
        File of the scene classification, of level 2A.
    codings : tuple of Coding
        One per band.
    facts : Facts
        Of the acquisition.
    """

    bands: tuple[str, ...]
    classes: str | None
    codings: tuple[Coding, ...]
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
    """Read what a product says of itself.

    Raises
    ------
    SceneError
        If it is not complete, or its metadata cannot be read.
    """
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            text = archive.read(next(name for name in names if _METADATA.search(name)))
        files = {name: f"/vsizip/{{{path.resolve()}}}/{name}" for name in names}
    else:
        folder = path if path.is_dir() else path.parent
        text = next(f for f in sorted(folder.glob("MTD_MSIL*.xml")) if _METADATA.search(f.name)).read_bytes()
        images = sorted(folder.glob("GRANULE/*/IMG_DATA/**/*.jp2"))
        files = {image.relative_to(folder).as_posix(): str(image) for image in images}
    try:
        metadata = ElementTree.fromstring(text)  # noqa: S314 (a local file the user named)
    except ElementTree.ParseError as error:
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
    return Facts(datetime=known_datetime(time), platform=metadata.findtext(".//SPACECRAFT_NAME"))
