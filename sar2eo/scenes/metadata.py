"""File names, tags and band descriptions: what they say about a scene.

The file names of sensors are described in one table, `NAME_RULES`. Only what is said plainly is taken: words
stand between delimiters (``s1_vv_db.tif``), product names follow their agencies' conventions. What is not
said stays None.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

from sar2eo.errors import SettingsError
from sar2eo.geo.radiometry import POLARISATIONS


@dataclass(frozen=True)
class NameRule:
    """What the names of one kind of product say.

    Polarisations need no rule: they are found in every name, where they stand between delimiters.

    Parameters
    ----------
    pattern : str
        Regular expression, searched in a name whatever its case. These groups are read: ``unit``, ``date``
        (20201107, or 201107 of this century) with ``time`` (135241), and ``quantity``. Without ``date``, the
        first 20201107T135241 in the name is the start of the acquisition.
    platform : str or None
        Such as ``Sentinel-1{unit}``. A rule without one says nothing of the acquisition.
    calibration : str or None
        Key of `sar2eo.geo.radiometry.CALIBRATIONS`.
    quantities : dict
        Quantity that each value of the group ``quantity`` stands for.
    zero_is_nodata : bool
        Whether an unsigned 0 is nodata where the file declares none.
    optical : bool
        Whether the sensor is optical. Rules of SAR do not apply to optical scenes, nor the other way round.
    """

    pattern: str
    platform: str | None = None
    calibration: str | None = None
    quantities: Mapping[str, str] = field(default_factory=dict)
    zero_is_nodata: bool = False
    optical: bool = False

    def search(self, name: str) -> re.Match[str] | None:
        """Find the pattern in a name."""
        return re.search(self.pattern, name, re.I)


NAME_RULES = (
    # Sentinel-1 products and their measurements, also with hyphens:
    # https://sentiwiki.copernicus.eu/web/s1-products (naming convention).
    NameRule(r"(?<![A-Za-z0-9])S1(?P<unit>[A-D])[_-](?:IW|EW|WV|S\d)", platform="Sentinel-1{unit}"),
    # Any other name that begins so; but orbit files (S1A_OPER_AUX_...) say nothing of a scene.
    NameRule(r"(?s)^(?!.*(?-i:_OPER_)).*?(?<![A-Za-z0-9])S1(?P<unit>[A-D])[_-]", platform="Sentinel-1{unit}"),
    # DN 0 of a GRD lies outside of the swath.
    NameRule(r"(?<![A-Za-z0-9])S1[A-D][_-](?:IW|EW|S\d)[_-]GRD", zero_is_nodata=True),
    # ASF's terrain-corrected products, ``..._RTC30_G_gpuned_...``: gamma0 or sigma0; power, amplitude or dB.
    NameRule(
        r"_RTC\d\d_[A-Z]_[gs](?P<quantity>[pad])[uw][nf][ec][dm]_",
        calibration="rtc",
        quantities={"p": "intensity", "a": "amplitude", "d": "db"},
    ),
    # NovaSAR-1 products, ``NovaSAR_01_12345_slc_11_221015_091530_HH_1``: the year has two digits.
    NameRule(
        r"(?<![A-Za-z0-9])NovaSAR_0?(?P<unit>\d+)_.*_(?P<date>\d{6})_(?P<time>\d{6})(?!\d)",
        platform="NovaSAR-{unit}",
    ),
    # Sentinel-2 products: https://sentiwiki.copernicus.eu/web/s2-products (naming convention).
    NameRule(
        r"(?<![A-Za-z0-9])S2(?P<unit>[A-D])_MSIL\w\w_(?P<date>\d{8})T(?P<time>\d{6})",
        platform="Sentinel-2{unit}",
        optical=True,
    ),
    # Their true-colour images keep 0 for no data (S2-PDGS-TAS-DI-PSD), and do not declare it.
    NameRule(r"(?:^|_)TCI(?:_\d\dm)?\.(?:jp2|tiff?|vrt)$", zero_is_nodata=True, optical=True),
)
"""Rules for the names of products, tried in this order."""

_TIMESTAMP = re.compile(r"(?<!\d)((?:19|20)\d{6}T\d{6})(?!\d)", re.I)
# The TIFFTAG_IMAGEDESCRIPTION of a measurement: ``Sentinel-1A IW GRD HR L1``.
_GRD_DESCRIPTION = re.compile(r"Sentinel-1[A-D] \w+ GRD\b")

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
_ORBITS = {"a": "ascending", "ascending": "ascending", "d": "descending", "descending": "descending"}
_TIME_TAGS = ("acquisition_datetime", "acquisition_time", "acquisition_date", "datetime", "start_time")


@dataclass(frozen=True)
class Facts:
    """What is known about the values and the acquisition of a scene; None is not known."""

    quantity: str | None = None  # as `sar2eo.geo.radiometry` names them
    calibration: str | None = None
    datetime: str | None = None  # start of the acquisition, ISO 8601, UTC
    platform: str | None = None  # such as ``Sentinel-1A``
    orbit_direction: str | None = None  # "ascending" or "descending"
    terrain_corrected: bool | None = None  # whether relief was taken into account when the pixels were placed

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
    """Find the polarisation of every band, by descriptions and tags of bands, tags of the file, or its name.

    Returns the names, one per band, or None if not all are known; and whether the bands themselves say so
    (otherwise the file names them, in the order of the bands).
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
    """Gather what a file says about itself: its name, then its tags, then the words in both and in its bands.

    A product's name, as the file's own or in a tag, goes before TIFFTAG_DATETIME, which is often the time at
    which the file was written. `descriptions` and `units` are those of the bands.
    """
    words = _words(file_name)
    if not _CALIBRATION_WORDS.keys() & set(words):
        words = [word for word in words if word != "power"]  # a plant's, or a line's
    words += [word for description in descriptions for word in _words(description or "")]
    calibration = _first(_words(_tag(tags, _CALIBRATION_TAGS) or "") + words, _CALIBRATION_WORDS)
    quantity = _first(_words(" ".join(u or "" for u in units)), _QUANTITY_WORDS)
    quantity = quantity or _first(_words(_tag(tags, _QUANTITY_TAGS) or ""), _QUANTITY_WORDS)
    # ``Intensity_VV_db``: how the numbers are written, after what they are of.
    quantity = quantity or ("db" if _DECIBEL & set(words) else _first(words, _QUANTITY_WORDS))
    said = Facts(
        quantity=quantity,
        calibration=calibration,
        datetime=iso_datetime_or_none(_tag(tags, _TIME_TAGS))
        or iso_datetime_or_none(_tag(tags, ("tifftag_datetime",))),
        platform=platform_name(_tag(tags, _PLATFORM_TAGS)),
        orbit_direction=_ORBITS.get((_tag(tags, _ORBIT_TAGS) or "").strip().lower()),
    )
    # Only the file's own name says what the values are: a tag may name what the file was made from.
    found = _read_values(file_name).over(_read_acquisition([file_name, *tags.values()])).over(said)
    return Facts(terrain_corrected=True).over(found) if found.calibration == "rtc" else found


def read_optical_facts(file_name: str, tags: Mapping[str, str]) -> Facts:
    """Read time and platform of an optical scene: from a product's name in tags or the file's, else tags."""
    stamp = _TIMESTAMP.search(file_name)
    of_name = Facts(datetime=iso_datetime_or_none(stamp and stamp[1].upper()))
    said = read_facts(file_name, tags).over(of_name)
    return _read_acquisition([*tags.values(), file_name], optical=True).over(said)


def _read_values(file_name: str) -> Facts:
    found = Facts()
    for rule in NAME_RULES:
        match = None if rule.optical else rule.search(file_name)
        if match:
            quantity = rule.quantities.get(match.groupdict().get("quantity", "").lower())
            found = found.over(Facts(quantity=quantity, calibration=rule.calibration))
    return found


def _read_acquisition(names: Sequence[str], optical: bool = False) -> Facts:
    """Read time and platform from the first of the names that a rule knows."""
    for rule in NAME_RULES:
        if rule.platform is None or rule.optical != optical:
            continue
        match = next((match for name in names if (match := rule.search(name))), None)
        if match:
            groups = match.groupdict()
            stamp = _TIMESTAMP.search(match.string)
            text = stamp and stamp[1].upper()
            if "date" in groups:
                century = "20" if len(groups["date"]) == 6 else ""
                text = f"{century}{groups['date']}T{groups['time']}"
            platform = rule.platform.format(unit=groups.get("unit", "").upper())
            return Facts(datetime=iso_datetime_or_none(text), platform=platform)
    return Facts()


def zero_is_nodata(file_name: str, tags: Mapping[str, str], optical: bool = False) -> bool:
    """Whether 0 means nodata, by a file's name or tags that describe a Sentinel-1 GRD measurement."""
    rules = (rule for rule in NAME_RULES if rule.zero_is_nodata and rule.optical == optical)
    described = not optical and _GRD_DESCRIPTION.match(_tag(tags, ("tifftag_imagedescription",)) or "")
    return bool(described) or any(rule.search(file_name) for rule in rules)


def platform_name(text: str | None) -> str | None:
    """Spell a Sentinel as its products do, ``Sentinel-1A``, and leave any other name as it is."""
    unit = re.search(r"sentinel-?([12])([a-d])", text or "", re.I)
    return f"Sentinel-{unit[1]}{unit[2].upper()}" if unit else text


def iso_datetime(text: str | datetime) -> str:
    """Write a time as ISO 8601 in UTC, to the second: ``2020-11-07T13:52:41Z``.

    Parameters
    ----------
    text : str or datetime
        ISO 8601, TIFF's ``2020:11:07 13:52:41``, or a product name's ``20201107T135241``. Without a zone it
        is UTC.

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


def iso_datetime_or_none(text: str | datetime | None) -> str | None:
    """Write a time as `iso_datetime` does; None where there is none, or none that can be read."""
    try:
        return iso_datetime(text) if text else None
    except SettingsError:
        return None


def _words(text: str) -> list[str]:
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+", text) if word]


def _tag(tags: Mapping[str, str], names: Sequence[str]) -> str | None:
    lower = {key.lower(): str(value) for key, value in tags.items()}
    return next((lower[name] for name in names if lower.get(name)), None)


def _first(words: Iterable[str], meaning: Mapping[str, str]) -> str | None:
    return next((meaning[word] for word in words if word in meaning), None)
