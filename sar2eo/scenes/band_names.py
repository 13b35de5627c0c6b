"""Band names of optical scenes: which bands are red, green and blue, and which band masks clouds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

COLOURS = ("red", "green", "blue")

# Sentinel-2 names; Landsat 8 and 9 count these three alike.
_NAMES = {"red": ("red", "b04", "b4"), "green": ("green", "b03", "b3"), "blue": ("blue", "b02", "b2")}
_MICROMETRES = {"red": (0.62, 0.69), "green": (0.53, 0.59), "blue": (0.45, 0.515)}
_WAVELENGTH_TAGS = ("central_wavelength_um", "center_wavelength", "central_wavelength", "wavelength")
_NAME_TAGS = ("common_name", "eo:common_name", "name", "bandname", "band_name", "band")

# Bands in the order of the product: B01 ... B08, B8A, B09, (B10 of level 1 only,) B11, B12.
_SENTINEL2_COUNTS = (12, 13)
_SENTINEL2_RGB = (4, 3, 2)


@dataclass(frozen=True)
class BandText:
    """What a file says about one band."""

    index: int  # from 1
    texts: tuple[str, ...]  # description and names, most reliable first
    micrometres: float | None = None  # central wavelength
    role: str = "undefined"  # GDAL's colour interpretation

    @classmethod
    def read(cls, dataset: Any, index: int) -> BandText:
        """Read it from an open rasterio dataset."""
        tags = {**dataset.tags(index, ns="IMAGERY"), **dataset.tags(index)}
        lower = {key.lower(): str(value) for key, value in tags.items()}
        named = [dataset.descriptions[index - 1], *(lower.get(key) for key in _NAME_TAGS)]
        return cls(
            index,
            tuple(dict.fromkeys(text for text in named if text)),
            _micrometres([lower[key] for key in _WAVELENGTH_TAGS if key in lower]),
            dataset.colorinterp[index - 1].name,
        )

    @property
    def label(self) -> str:
        """The band's name in messages and records."""
        return self.texts[0] if self.texts else f"band {self.index}"


@dataclass(frozen=True)
class CloudRule:
    """How the values of a band mark clouds."""

    kind: Literal["classes", "bits", "nonzero", "percent"]  # percent: a probability of at least 50 %
    numbers: tuple[int, ...] = ()  # classes of which one, or bits from 0 of which one is set

    def __str__(self) -> str:
        return " ".join([self.kind, *([", ".join(map(str, self.numbers))] if self.numbers else [])])


# Scene classification of Sen2Cor: 3 cloud shadow, 8 and 9 cloud of medium and high probability, 10 cirrus.
SCENE_CLASSES = CloudRule("classes", (3, 8, 9, 10))
# QA60: 10 opaque cloud, 11 cirrus (Sentinel-2 L1C product guide). QA_PIXEL: 1 dilated cloud, 2 cirrus,
# 3 cloud, 4 cloud shadow (Landsat 8-9 Collection 2 Level 2 product guide).
_RULES = {
    "scl": SCENE_CLASSES,
    "qa60": CloudRule("bits", (10, 11)),
    "qa_pixel": CloudRule("bits", (1, 2, 3, 4)),
    "cldprb": CloudRule("percent"),
    "cld": CloudRule("percent"),
    "cloud_probability": CloudRule("percent"),
    "clm": CloudRule("nonzero"),
    "cloud": CloudRule("nonzero"),
    "clouds": CloudRule("nonzero"),
    "cloudmask": CloudRule("nonzero"),
    "cloud_mask": CloudRule("nonzero"),
    "mask": CloudRule("nonzero"),
}


def find_colour(text: str) -> str | None:
    """Return "red", "green" or "blue" where a band's name says so: ``B04``, ``red``, ``Red (665 nm)``."""
    words = re.split(r"[^a-z0-9]+", text.lower())
    if "edge" in words or "rededge" in words:
        return None
    found = [colour for colour in COLOURS if set(words) & set(_NAMES[colour])]
    return found[0] if len(found) == 1 else None


def choose_rgb(bands: Sequence[BandText], dtype: str) -> tuple[int, int, int] | None:
    """Find red, green and blue among the bands of a file.

    Parameters
    ----------
    bands : sequence of BandText
        All of a file, without an alpha band.
    dtype : str
        Type of the pixels.

    Returns
    -------
    tuple of int or None
        Indexes from 1, by names, wavelengths, or roles. Where bands say nothing, by their number: three of
        bytes are red, green and blue, and 12 or 13 of 16 bits are those of Sentinel-2.
    """
    ways: list[dict[str, int]] = [
        _first((c, band.index) for band in bands for text in band.texts if (c := find_colour(text))),
        _by_wavelength(bands),
        # Last, because GDAL gives three or four bands of bytes these roles whatever they are.
        _first((band.role, band.index) for band in bands if band.role in COLOURS),
    ]
    for found in ways:
        if len(found) == len(COLOURS):
            return found["red"], found["green"], found["blue"]
    if dtype == "uint8" and len(bands) == 3:
        return bands[0].index, bands[1].index, bands[2].index
    described = any(band.micrometres or any(map(find_colour, band.texts)) for band in bands)
    if dtype in ("uint16", "int16") and len(bands) in _SENTINEL2_COUNTS and not described:
        return _SENTINEL2_RGB
    return None


def choose_cloud(bands: Iterable[BandText]) -> tuple[int, CloudRule] | None:
    """Find the band that masks clouds, and its rule; the most precise where there are several."""
    found = [(band.index, rule) for band in bands for text in band.texts if (rule := find_cloud_rule(text))]
    return min(found, key=lambda each: rank_cloud_rule(each[1])) if found else None


def rank_cloud_rule(rule: CloudRule) -> int:
    """Rank a rule among others; the most precise is 0."""
    return list(_RULES.values()).index(rule)


def find_cloud_rule(name: str) -> CloudRule | None:
    """Return the cloud rule for a band or asset of this name, or None."""
    return _RULES.get(re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_"))


def _first(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for colour, index in pairs:
        found.setdefault(colour, index)
    return found


def _by_wavelength(bands: Sequence[BandText]) -> dict[str, int]:
    found = {}
    for colour, (low, high) in _MICROMETRES.items():
        near = [b for b in bands if b.micrometres is not None and low <= b.micrometres <= high]
        if near:
            middle = (low + high) / 2
            found[colour] = min(near, key=lambda b: abs((b.micrometres or 0) - middle)).index
    return found


def _micrometres(texts: Sequence[str]) -> float | None:
    for text in texts:
        number = re.match(r"\s*(\d+(?:\.\d+)?)", text)
        if number:
            value = float(number[1])
            return value / 1000 if value > 100 else value
    return None
