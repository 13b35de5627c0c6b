"""Band names of optical scenes: which bands are red, green and blue, and which band masks clouds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

COLOURS = ("red", "green", "blue")

_MICROMETRES = {"red": (0.62, 0.69), "green": (0.53, 0.59), "blue": (0.45, 0.515)}
_WAVELENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(?:nm|nanomet|um\b|\u00b5m|\u03bcm|micromet)", re.I)
_WAVELENGTH_TAGS = ("central_wavelength_um", "center_wavelength", "central_wavelength", "wavelength")
_NAME_TAGS = ("common_name", "eo:common_name", "name", "bandname", "band_name", "band")
# Words that make another band of a colour's name: ``coastal_blue``, ``green_i``, ``Red Edge``.
_OTHER_BANDS = {
    *("edge", "rededge", "coastal", "aerosol", "aerosols", "deep", "ultra", "i"),
    *("near", "infra", "infrared", "nir"),
}
# A band's number in its product: ``B04``, ``SR_B4``, ``sr_band4``, ``sur_refl_b01``; VIIRS' M5, OLCI's Oa08.
_NUMBER = re.compile(r"(?:^|[^a-z0-9])(?:b|band|m|oa)(\d{1,2})(?:_radiance|_reflectance)?(?![a-z0-9])", re.I)

_BAND_FILE = re.compile(
    r"(?:^|[._-])((?:(?:SR|TOA|ST)_)?B(?:AND)?\d{1,2}A?|sur_refl_b\d\d|red|green|blue|nir)(?:_1)?$", re.I
)

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class _Sensor:
    """How a sensor counts its bands."""

    platform: str  # pattern of names that `sar2eo.scenes.metadata` gives to satellites, and of instruments
    numbers: Rgb | None = None  # of red, green and blue in its products; None: no such numbers, or no blue
    # Indexes of red, green and blue by the number of bands, in products whose bands carry no names
    orders: Mapping[int, Rgb] = field(default_factory=dict)


_BGRN: dict[int, Rgb] = {4: (3, 2, 1)}
_SENSORS = (
    # https://www.usgs.gov/faqs/what-are-band-designations-landsat-satellites; MSS has no blue.
    _Sensor(r"\bMSS\b|landsat[-_ ]?[123]"),
    _Sensor(r"landsat[-_ ]?[4567]", (3, 2, 1), {6: (3, 2, 1), 7: (3, 2, 1)}),
    _Sensor(r"landsat[-_ ]?[89]", (4, 3, 2), {7: (4, 3, 2), 11: (4, 3, 2)}),
    _Sensor(r"HLS", (4, 3, 2)),  # https://lpdaac.usgs.gov/documents/1698/HLS_User_Guide_V2.pdf
    _Sensor(r"sentinel-?2", (4, 3, 2), {12: (4, 3, 2), 13: (4, 3, 2)}),
    _Sensor(r"sentinel-?3", (8, 6, 4)),  # OLCI
    _Sensor(r"modis|terra\b|aqua\b", (1, 4, 3), {7: (1, 4, 3)}),  # MOD09 user guide
    _Sensor(r"viirs|suomi|noaa-2", (5, 4, 3)),  # M bands
    # https://docs.planet.com/data/imagery
    _Sensor(r"planetscope|dove", None, {3: (1, 2, 3), **_BGRN, 8: (6, 4, 2)}),
    _Sensor(r"skysat", None, {3: (1, 2, 3), **_BGRN}),
    _Sensor(r"rapideye", (3, 2, 1), {3: (1, 2, 3), 5: (3, 2, 1)}),
    # Blue, green, red, near infrared: Gaofen-1, 2, 6 and 7 (PMS, WFV; CRESDA); of Gaofen-4 the first is grey.
    _Sensor(r"gaofen-4", (4, 3, 2), {5: (4, 3, 2)}),
    _Sensor(r"gaofen-", (3, 2, 1), {**_BGRN, 8: (3, 2, 1)}),
    # Coastal, blue, green, yellow, red, red edge, two of near infrared: WorldView-2 and 3 (Maxar); else BGRN.
    _Sensor(r"worldview-[23]", None, {**_BGRN, 8: (5, 3, 2)}),
    _Sensor(r"worldview-4|quickbird|geoeye|ikonos", (3, 2, 1), _BGRN),
    _Sensor(r"alos\b|avnir", (3, 2, 1), _BGRN),  # AVNIR-2
)
# Band numbers that only one kind of sensor has among its products.
_TELLING = (
    (re.compile(r"sur_refl_b0\d"), "modis"),
    (re.compile(r"Oa\d\d_"), "sentinel-3"),
    (re.compile(r"(?:^|_)SR_B6$"), "landsat-8"),
    # With HLS, which counts red, green and blue alike.
    (re.compile(r"(?:^|_)B(?:8A|11|12|0[1-9])$", re.I), "sentinel-2"),
)


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
            _micrometres([lower[key] for key in _WAVELENGTH_TAGS if key in lower], named[0] or ""),
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
# 3 cloud, 4 cloud shadow (Landsat 8-9 Collection 2 Level 2 product guide). Fmask: 1 cloud, 2 beside it,
# 3 shadow (HLS user guide).
_RULES = {
    "scl": SCENE_CLASSES,
    "fmask": CloudRule("bits", (1, 2, 3)),
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
    """Return "red", "green" or "blue" where a band's name says so: ``red``, ``R``, ``B4 Red (665 nm)``."""
    if text.lower() in ("r", "g", "b"):
        return {"r": "red", "g": "green", "b": "blue"}[text.lower()]
    words = set(re.split(r"[^a-z0-9]+", text.lower()))
    found = [colour for colour in COLOURS if colour in words]
    return found[0] if len(found) == 1 and not words & _OTHER_BANDS else None


class BandFile(NamedTuple):
    """What the name of a file says, which holds one band of a scene."""

    scene: str  # the name without the band, which the files of a scene share
    band: str | None  # such as ``SR_B4`` or ``red``; None where it names none
    cloud: CloudRule | None  # where it names a mask


def find_band_file(name: str) -> BandFile:
    """Read the name of a file of one band: ``LC08_L2SP_193028_20230610_20230620_02_T1_SR_B4.TIF``."""
    stem = re.sub(r"_\d\dm$", "", name.rpartition(".")[0] or name)
    words = re.split(r"[^a-z0-9]+", stem.lower())
    masks = (find_cloud_rule("_".join(words[-count:])) for count in (2, 1))
    found = _BAND_FILE.search(stem)
    return BandFile(
        stem[: found.start()] if found else stem,
        found[1] if found else None,
        next((rule for rule in masks if rule), None),
    )


def find_number(text: str) -> int | None:
    """Return the number in a band's name, as its product counts: 4 of ``SR_B4``."""
    found = _NUMBER.search(text)
    return int(found[1]) if found else None


def choose_rgb(bands: Sequence[BandText], dtype: str, sensor: str = "") -> Rgb | None:
    """Find red, green and blue among the bands of a file.

    Parameters
    ----------
    bands : sequence of BandText
        All of a file, without an alpha band.
    dtype : str
        Type of the pixels.
    sensor : str
        What is known of satellite and instrument.

    Returns
    -------
    tuple of int or None
        Indexes from 1: by names of colours, wavelengths, the numbers that the sensor gives its bands, or
        roles. Where bands say nothing, three of bytes are red, green and blue, and 12 or 13 of 16 bits are
        those of Sentinel-2. None where it is not known, or two bands say the same.
    """
    for found in (_by_colour(bands), _by_wavelength(bands), _by_role(bands)):
        if found is not None:
            return found
    names = [text for band in bands for text in band.texts]
    numbers = {number: b.index for b in bands for text in b.texts if (number := find_number(text))}
    told = next((kind for mark, kind in _TELLING if any(map(mark.search, names))), "")
    told = told or ("sentinel-2" if {2, 3, 4, 8} <= numbers.keys() else "")
    known = next(
        (each for each in _SENSORS if re.search(each.platform, f"{sensor} {told}", re.I)), _Sensor("")
    )
    if numbers and known.numbers is not None:
        red, green, blue = map(numbers.get, known.numbers)
        return None if red is None or green is None or blue is None else (red, green, blue)
    if any(number != index for number, index in numbers.items()) or known == _SENSORS[0]:
        return None
    order = known.orders.get(len(bands))
    roles = [band.role for band in bands]
    if order is None and (
        roles == list(COLOURS) or (dtype == "uint8" and (roles[:3] == list(COLOURS) or len(bands) == 3))
    ):
        order = (
            1,
            2,
            3,
        )  # of more than three bands of other types, TIFF's photometric says so whatever they are
    described = sensor or any(map(find_colour, names)) or any(band.micrometres for band in bands)
    if order is None and dtype in ("uint16", "int16") and len(bands) in (12, 13) and not described:
        order = (4, 3, 2)  # B01 ... B08, B8A, B09, (B10 of level 1 only,) B11, B12
    return None if order is None else _at(bands, order)


def _by_role(bands: Sequence[BandText]) -> Rgb | None:
    """Find colours by GDAL's roles, where they are not what it calls the first three of any bands."""
    found = _first((band.role, band.index) for band in bands if band.role in COLOURS)
    plain = [found.get(colour) for colour in COLOURS] == [band.index for band in bands[:3]]
    if len(found) < len(COLOURS) or (plain and all(band.role != "nir" for band in bands)):
        return None
    return found["red"], found["green"], found["blue"]


def _at(bands: Sequence[BandText], order: Rgb) -> Rgb:
    red, green, blue = (bands[place - 1].index for place in order)
    return red, green, blue


def choose_named(
    bands: Sequence[BandText], sensor: str, numbers: tuple[int, ...] | None = None
) -> tuple[int, ...] | None:
    """Find red, green and blue among bands of several files, as places in `bands` from 0.

    `numbers` are those in the names of red, green and blue, where the user gives them.
    """
    counted = [replace(band, index=place) for place, band in enumerate(bands, start=1)]
    if numbers is None:
        chosen = choose_rgb(counted, "", sensor)
        return None if chosen is None else tuple(index - 1 for index in chosen)
    known = {number: b.index - 1 for b in reversed(counted) for t in b.texts if (number := find_number(t))}
    return tuple(known[number] for number in numbers) if set(numbers) <= known.keys() else None


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


def _by_colour(bands: Sequence[BandText]) -> Rgb | None:
    """Find the one band of each colour, or else the one called nothing but that."""
    chosen = []
    for colour in COLOURS:
        said = {
            b.index
            for b in bands
            if next((c for text in b.texts if (c := find_colour(text))), None) == colour
        }
        plain = {b.index for b in bands if colour in map(str.lower, b.texts)}
        (index,) = plain if len(plain) == 1 else said if len(said) == 1 else (0,)
        chosen.append(index)
    return (chosen[0], chosen[1], chosen[2]) if all(chosen) else None


def _by_wavelength(bands: Sequence[BandText]) -> Rgb | None:
    found = []
    for low, high in _MICROMETRES.values():
        near = [b for b in bands if b.micrometres is not None and low <= b.micrometres <= high]
        if not near:
            return None
        found.append(min(near, key=lambda b: abs((b.micrometres or 0) - (low + high) / 2)).index)
    return found[0], found[1], found[2]


def _micrometres(tags: Sequence[str], description: str) -> float | None:
    """Read a wavelength from tags, where its size says the unit, or a description that names the unit."""
    numbers = [re.match(r"\s*(\d+(?:\.\d+)?)", text) for text in tags] + [_WAVELENGTH.search(description)]
    value = next((float(number[1]) for number in numbers if number), None)
    return value / 1000 if value is not None and value > 100 else value
