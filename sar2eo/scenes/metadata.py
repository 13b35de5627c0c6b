"""What tags, band descriptions and file names say about a scene.

Only what is said plainly is taken: words stand between delimiters (``s1_vv_db.tif``), product names
follow their agencies' conventions. What is not said stays None.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import xarray as xr

from sar2eo.errors import SettingsError
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import POLARISATIONS

__all__ = [
    "Facts",
    "attributes_of",
    "is_grd",
    "iso_datetime",
    "known_datetime",
    "polarisation_names",
    "polarisation_words",
    "read_facts",
    "to_attributes",
]

# Sentinel-1 product names: https://sentiwiki.copernicus.eu/web/s1-products (naming convention).
_SENTINEL1 = re.compile(r"(?<![A-Za-z0-9])S1([A-D])[_-]", re.I)
_TIMESTAMP = re.compile(r"(?<!\d)((?:19|20)\d{6}T\d{6})(?!\d)", re.I)
# Of a product, or of one of its measurements; names of orbit files and noise tables begin like them.
_PRODUCT = re.compile(r"(?<![A-Za-z0-9])S1[A-D][_-](?:IW|EW|WV|S\d)", re.I)
_GRD = re.compile(r"(?<![A-Za-z0-9])S1[A-D][_-](?:IW|EW|S\d)[_-]GRD", re.I)
# The TIFFTAG_IMAGEDESCRIPTION of a measurement: ``Sentinel-1A IW GRD HR L1``.
_GRD_DESCRIPTION = re.compile(r"Sentinel-1[A-D] \w+ GRD\b")
# ASF's terrain-corrected products, ``..._RTC30_G_gpuned_...``: gamma0 or sigma0; power, amplitude or dB.
_ASF_RTC = re.compile(r"_RTC\d\d_[A-Z]_[gs]([pad])[uw][nf][ec][dm]_", re.I)

_QUANTITY_WORDS = {
    "db": "db",
    "decibel": "db",
    "decibels": "db",
    "amplitude": "amplitude",
    "amp": "amplitude",
    "intensity": "intensity",
    "power": "intensity",
    "dn": "dn",
}
_DECIBEL = {"db", "decibel", "decibels"}
_CALIBRATION_WORDS = {
    "rtc": "rtc",
    "s1rtc": "rtc",
    "beta0": "beta0",
    "sigma0": "sigma0",
    "gamma0": "gamma0",
    "uncalibrated": "none",
}
_QUANTITY_TAGS = ("quantity", "units", "unit")
_CALIBRATION_TAGS = ("calibration", "radiometry", "radiometric_calibration", "product_type")
_PLATFORM_TAGS = ("platform", "mission", "satellite", "sensor", "spacecraft")
_ORBIT_TAGS = ("orbit_direction", "orbit_state", "sat:orbit_state", "pass")
_TIME_TAGS = ("acquisition_datetime", "acquisition_time", "acquisition_date", "datetime", "start_time")


@dataclass(frozen=True)
class Facts:
    """What is known about the values and the acquisition of a scene; None is not known.

    Parameters
    ----------
    quantity, calibration : str or None
        As `sar2eo.geo.radiometry` names them.
    datetime : str or None
        Start of the acquisition, ISO 8601, UTC.
    platform : str or None
        Such as ``Sentinel-1A``.
    orbit_direction : str or None
        ``ascending`` or ``descending``.
    terrain_corrected : bool or None
        Whether relief was taken into account when the pixels were placed.
    """

    quantity: str | None = None
    calibration: str | None = None
    datetime: str | None = None
    platform: str | None = None
    orbit_direction: str | None = None
    terrain_corrected: bool | None = None

    def over(self, other: Facts) -> Facts:
        """Return these facts, with those of `other` where these are not known."""
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return Facts(**{name: getattr(other, name) if v is None else v for name, v in mine.items()})


def polarisation_words(text: str) -> list[str]:
    """Return the polarisations that stand between delimiters in a text, each once, in order."""
    return list(dict.fromkeys(w.upper() for w in _words(text) if w.upper() in POLARISATIONS))


def polarisation_names(
    descriptions: Sequence[str | None],
    band_tags: Sequence[Mapping[str, str]],
    tags: Mapping[str, str],
    file_name: str,
) -> tuple[tuple[str, ...] | None, bool]:
    """Find the polarisation of every band.

    Parameters
    ----------
    descriptions : sequence of str or None
        One per band.
    band_tags : sequence of mapping
        One per band.
    tags : mapping
        Of the file.
    file_name : str
        Without folder.

    Returns
    -------
    names : tuple of str or None
        One per band, or None if not all are known.
    by_band : bool
        Whether the bands themselves say so; otherwise the file names them, and their order is
        taken to be that of the bands.
    """
    count = len(descriptions)
    of_bands = [
        polarisation_words(" ".join([description or "", _tag(tag, ("polarization", "polarisation")) or ""]))
        for description, tag in zip(descriptions, band_tags, strict=True)
    ]
    if all(len(found) == 1 for found in of_bands) and len({found[0] for found in of_bands}) == count:
        return tuple(found[0] for found in of_bands), True
    keys = ("polarization", "polarisation", "polarizations", "polarisations", "sar:polarizations")
    for text in (_tag(tags, keys) or "", file_name):
        found = polarisation_words(text)
        if len(found) == count:
            return tuple(found), False
    return None, False


def read_facts(
    file_name: str,
    tags: Mapping[str, str],
    descriptions: Iterable[str | None] = (),
    units: Iterable[str | None] = (),
) -> Facts:
    """Gather what a file says about itself.

    A product's name, as the file's own or in a tag, goes before TIFFTAG_DATETIME, which is often
    the time at which the file was written.
    """
    names = [file_name, *tags.values()]
    products = [name for name in names if _PRODUCT.search(name)]
    missions = [name for name in names if _SENTINEL1.search(name) and "_OPER_" not in name]
    product = next(iter(products + missions), "")
    words = _words(file_name)
    if not _CALIBRATION_WORDS.keys() & set(words):
        words = [word for word in words if word != "power"]  # a plant's, or a line's
    words += [word for description in descriptions for word in _words(description or "")]
    calibration = _first(_words(_tag(tags, _CALIBRATION_TAGS) or "") + words, _CALIBRATION_WORDS)
    quantity = _first(_words(" ".join(u or "" for u in units)), _QUANTITY_WORDS)
    quantity = quantity or _first(_words(_tag(tags, _QUANTITY_TAGS) or ""), _QUANTITY_WORDS)
    # ``Intensity_VV_db``: how the numbers are written, after what they are of.
    quantity = quantity or ("db" if _DECIBEL & set(words) else _first(words, _QUANTITY_WORDS))
    asf = _ASF_RTC.search(file_name)
    if asf:
        calibration = "rtc"
        quantity = {"p": "intensity", "a": "amplitude", "d": "db"}[asf[1].lower()]
    return Facts(
        quantity=quantity,
        calibration=calibration,
        datetime=_acquisition_time(product, tags),
        platform=_platform(product, tags),
        orbit_direction=_orbit_direction(_tag(tags, _ORBIT_TAGS)),
        terrain_corrected=True if calibration == "rtc" else None,
    )


def is_grd(file_name: str, tags: Mapping[str, str]) -> bool:
    """Tell whether a file is a Sentinel-1 GRD measurement or made of one, by its name or its description."""
    said = _tag(tags, ("tifftag_imagedescription",)) or ""
    return bool(_GRD.search(file_name) or _GRD_DESCRIPTION.match(said))


def iso_datetime(text: str | datetime) -> str:
    """Write a time as ISO 8601 in UTC, to the second: ``2020-11-07T13:52:41Z``.

    Parameters
    ----------
    text : str or datetime
        ISO 8601, TIFF's ``2020:11:07 13:52:41``, or a product name's ``20201107T135241``. Without
        a zone it is UTC.

    Raises
    ------
    SettingsError
        If it cannot be read.
    """
    if isinstance(text, datetime):
        time = text
    else:
        plain = re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", text.strip())
        plain = re.sub(r"(\.\d{6})\d+", r"\1", plain)
        try:
            time = datetime.fromisoformat(plain)
        except ValueError as error:
            raise SettingsError(
                f"datetime={text!r}: must be ISO 8601, such as 2020-11-07T13:52:41Z"
            ) from error
    try:
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError as error:  # within a day of the year 1 or 9999
        raise SettingsError(f"datetime={text!r}: is outside of the calendar in UTC") from error
    return f"{time.replace(tzinfo=None).isoformat(timespec='seconds')}Z"


def known_datetime(text: str | datetime | None) -> str | None:
    """Write a time as `iso_datetime` does; None where metadata name none, or none that can be read."""
    try:
        return iso_datetime(text) if text else None
    except SettingsError:
        return None


def _acquisition_time(product: str, tags: Mapping[str, str]) -> str | None:
    stamp = _TIMESTAMP.search(product)
    for text in (stamp and stamp[1].upper(), _tag(tags, _TIME_TAGS), _tag(tags, ("tifftag_datetime",))):
        known = known_datetime(text)
        if known is not None:
            return known
    return None


def _platform(product: str, tags: Mapping[str, str]) -> str | None:
    mission = _SENTINEL1.search(product)
    said = _tag(tags, _PLATFORM_TAGS)
    unit = re.search(r"sentinel-?1([a-d])", said or "", re.I)
    letter = mission[1] if mission else unit[1] if unit else None
    return f"Sentinel-1{letter.upper()}" if letter else said


def _orbit_direction(text: str | None) -> str | None:
    words = {"a": "ascending", "ascending": "ascending", "d": "descending", "descending": "descending"}
    return words.get((text or "").strip().lower())


def _words(text: str) -> list[str]:
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+", text) if word]


def _tag(tags: Mapping[str, str], names: Sequence[str]) -> str | None:
    lower = {key.lower(): str(value) for key, value in tags.items()}
    return next((lower[name] for name in names if lower.get(name)), None)


def _first(words: Iterable[str], meaning: Mapping[str, str]) -> str | None:
    return next((meaning[word] for word in words if word in meaning), None)


_GRIDS = ("grid", "scene_grid")
_TRUTHS = ("terrain_corrected",)
_LISTS = ("polarisations",)  # netCDF gives one of a single item back as the item


def to_attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as attributes: text, numbers, and lists of them.

    Parameters
    ----------
    values : mapping
        Also `Grid`, mappings of JSON values, booleans; None is left out.
    """
    return {name: _stored(value) for name, value in values.items() if value is not None}


def attributes_of(array: xr.DataArray | xr.Dataset) -> dict[str, Any]:
    """Return the attributes of a scene or a result as the values that `to_attributes` was given.

    Of other attributes, and of what users have put in place of ours, the values as they are.
    """
    return {str(name): _read(str(name), value) for name, value in array.attrs.items()}


def _stored(value: Any) -> Any:
    if isinstance(value, Grid):
        return json.dumps(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, bool):
        return int(value)
    return value


def _read(name: str, value: Any) -> Any:
    if name in _TRUTHS and value is not None:
        return bool(value)
    if name in _LISTS and isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    if not isinstance(value, str) or not value.startswith("{"):
        return value
    try:
        read = json.loads(value)
    except ValueError:
        return value
    if name not in _GRIDS:
        return read
    return Grid(read["crs"], tuple(read["transform"]), tuple(read["shape"]))
