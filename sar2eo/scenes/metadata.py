"""File names, tags and band descriptions: what they say about a scene.

The file names of sensors are described in one table, `NAME_RULES`. Only what is said plainly is taken: words
stand between delimiters (``s1_vv_db.tif``), product names follow their agencies' conventions. What is not
said stays None.
"""

from __future__ import annotations

import json
import re
import warnings
from calendar import month_abbr
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from sar2eo.errors import Sar2eoWarning, SettingsError
from sar2eo.geo.radiometry import POLARISATIONS


@dataclass(frozen=True)
class NameRule:
    """What the names of one kind of product say.

    Polarisations need no rule: they are found in every name, where they stand between delimiters.

    Parameters
    ----------
    pattern : str
        Regular expression, searched in a name whatever its case. These groups are read: ``unit``, ``date``
        (20201107, 201107 of this century, or 2020312) with or without ``time`` (135241), and ``quantity``.
        Without ``date``, the first time in the name is the start of the acquisition.
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


_START = r"(?<![A-Za-z0-9])"

NAME_RULES = (
    # Sentinel-1 products and their measurements, also with hyphens:
    # https://sentiwiki.copernicus.eu/web/s1-products (naming convention).
    NameRule(_START + r"S1(?P<unit>[A-D])[_-](?:IW|EW|WV|S\d)", platform="Sentinel-1{unit}"),
    # SAOCOM-1, S1A_OPER_SAR_EOSSP__CORE_L1A_OLF_...: https://saocom.veng.com.ar
    NameRule(
        _START + r"(?:S(?=1[AB]_OPER_SAR_EOSSP)|SAO(?:COM)?-?)1(?P<unit>[AB])_", platform="SAOCOM-1{unit}"
    ),
    # Any other name that begins so; but orbit files (S1A_OPER_AUX_...) say nothing of a scene.
    NameRule(r"(?s)^(?!.*(?-i:_OPER_)).*?(?<![A-Za-z0-9])S1(?P<unit>[A-D])[_-]", platform="Sentinel-1{unit}"),
    # DN 0 of a GRD lies outside of the swath.
    NameRule(_START + r"S1[A-D][_-](?:IW|EW|S\d)[_-]GRD", zero_is_nodata=True),
    # ASF's terrain-corrected products, ``..._RTC30_G_gpuned_...``: gamma0 or sigma0; power, amplitude or dB.
    NameRule(
        r"_RTC\d\d_[A-Z]_[gs](?P<quantity>[pad])[uw][nf][ec][dm]_",
        calibration="rtc",
        quantities={"p": "intensity", "a": "amplitude", "d": "db"},
    ),
    # Normalised radar backscatter, ``s1a-iw-nrb-...-vv-g-lin.tif``: https://s1ard.readthedocs.io
    NameRule(r"-(?:nrb|orb)-.*-[gs]-(?P<quantity>lin|log)\b", quantities={"lin": "intensity", "log": "db"}),
    NameRule(r"-nrb-.*-g-", calibration="rtc"),
    # ``iw-vv.rtc.tiff``, linear power: https://planetarycomputer.microsoft.com/dataset/sentinel-1-rtc
    NameRule(
        r"^(?:IW|EW|S\d)-[VH]{2}\.(?P<quantity>rtc)\.tiff?$",
        calibration="rtc",
        quantities={"rtc": "intensity"},
    ),
    # NISAR products: https://nisar-docs.asf.alaska.edu/naming-conventions. GCOV is power, terrain-corrected.
    NameRule(_START + r"NISAR_L\d_", platform="NISAR"),
    NameRule(
        _START + r"NISAR_L2_\w\w_(?P<quantity>GCOV)_", calibration="rtc", quantities={"gcov": "intensity"}
    ),
    # NovaSAR-1 products, ``NovaSAR_01_12345_slc_11_221015_091530_HH_1``: the year has two digits.
    NameRule(
        _START + r"NovaSAR_0?(?P<unit>\d+)_.*_(?P<date>\d{6})_(?P<time>\d{6})(?!\d)",
        platform="NovaSAR-{unit}",
    ),
    # ALOS-2 scene ids, ``ALOS2014410740-140829``: https://www.eorc.jaxa.jp/ALOS/en/alos-2/a2_format_e.htm
    NameRule(_START + r"ALOS(?P<unit>[24])\d{9}-(?P<date>\d{6})(?!\d)", platform="ALOS-{unit}"),
    # The product names of other agencies; their time is the first in the name.
    # https://sar.iceye.com/productspecification, https://docs.capellaspace.com, https://help.umbra.space,
    # TerraSAR-X TX-GS-DD-3302, RADARSAT-2 RN-SP-52-1238, https://www.asc-csa.gc.ca (RCM),
    # COSMO-SkyMed products handbook (ASI), KOMPSAT-5 image data manual (SI Imaging Services).
    NameRule(_START + r"ICEYE_X(?P<unit>\d+)_", platform="ICEYE-X{unit}"),
    NameRule(_START + r"CAPELLA_C0*(?P<unit>\d+)_", platform="Capella-{unit}"),
    NameRule(r"_UMBRA-(?P<unit>\d+)", platform="Umbra-{unit}"),
    NameRule(_START + r"TSX1_SAR_", platform="TerraSAR-X"),
    NameRule(_START + r"TD[XM]1_SAR_", platform="TanDEM-X"),
    NameRule(_START + r"PAZ1_SAR_", platform="PAZ"),
    NameRule(_START + r"RS2_", platform="RADARSAT-2"),
    NameRule(_START + r"RCM(?P<unit>[1-3])_", platform="RCM-{unit}"),
    NameRule(_START + r"CSKS(?P<unit>[1-4])_", platform="COSMO-SkyMed-{unit}"),
    NameRule(_START + r"CSG_SSAR(?P<unit>[1-4])_", platform="CSG-{unit}"),
    NameRule(_START + r"GF3(?P<unit>[BC]?)_", platform="Gaofen-3{unit}"),
    NameRule(_START + r"K5_\d{8}", platform="KOMPSAT-5"),
    # Sentinel-2 products: https://sentiwiki.copernicus.eu/web/s2-products (naming convention).
    NameRule(_START + r"S2(?P<unit>[A-D])_MSIL\w\w_", platform="Sentinel-2{unit}", optical=True),
    # Before 2016-12 the first time was that of processing, and V... that of sensing.
    NameRule(
        _START + r"S2(?P<unit>[A-D])_OPER_PRD_.*_V(?P<date>\d{8})T(?P<time>\d{6})",
        platform="Sentinel-2{unit}",
        optical=True,
    ),
    NameRule(_START + r"S2(?P<unit>[A-D])_(?!OPER)", platform="Sentinel-2{unit}", optical=True),
    NameRule(_START + r"(?:T\d\d[A-Z]{3}_\d{8}T|S2_)", platform="Sentinel-2", optical=True),
    # Landsat: https://www.usgs.gov/faqs/what-naming-convention-landsat-collections-level-1-scenes, before
    # collections ``LC81930282023161LGN00``. Instruments: C, O and T are OLI and TIRS, M is MSS.
    NameRule(_START + r"LM0?(?P<unit>[1-5])(?:_|\d{13})", platform="Landsat-{unit} MSS", optical=True),
    NameRule(_START + r"L[COTE]0(?P<unit>\d)_", platform="Landsat-{unit}", optical=True),
    NameRule(
        _START + r"L[COTE](?P<unit>\d)\d{6}(?P<date>\d{7})[A-Z]{3}\d\d",
        platform="Landsat-{unit}",
        optical=True,
    ),
    # https://lpdaac.usgs.gov: HLS v2 and MODIS; PlanetScope, SkySat, RapidEye: https://docs.planet.com
    NameRule(_START + r"HLS\.(?P<unit>[LS])30\.", platform="HLS-{unit}30", optical=True),
    NameRule(_START + r"M[OYC]D\d\d\w*\.A\d{7}", platform="MODIS", optical=True),
    NameRule(_START + r"VNP\d\d\w*\.A\d{7}", platform="VIIRS", optical=True),
    NameRule(r"SkySat|_ssc?\d+(?:d\d+)?_\d{4}_", platform="SkySat", optical=True),
    NameRule(r"_RE\d_[13][AB]_|RapidEye", platform="RapidEye", optical=True),
    NameRule(
        r"PlanetScope|SuperDove|PSScene|_[0-9a-f]{4}_[13][AB]_|_[13]B_(?:Analytic|Visual)",
        platform="PlanetScope",
        optical=True,
    ),
    # Gaofen, and other satellites whose files are named alike (China Centre for Resources Satellite Data).
    NameRule(_START + r"GF(?P<unit>[124567])[A-D]?_", platform="Gaofen-{unit}", optical=True),
    # Maxar, ``23JUN12054021-M2AS-...``; satellites that its names, or those of others, spell out.
    NameRule(
        _START + r"(?:WV|WorldView-?)0?(?P<unit>[1-4])(?![0-9])", platform="WorldView-{unit}", optical=True
    ),
    NameRule(_START + r"(?:QB0?2|QuickBird)(?![a-z0-9])", platform="QuickBird", optical=True),
    NameRule(_START + r"(?:GE0?1|GeoEye-?1)(?![a-z0-9])", platform="GeoEye-1", optical=True),
    # Their true-colour images keep 0 for no data (S2-PDGS-TAS-DI-PSD), and do not declare it.
    NameRule(r"(?:^|_)TCI(?:_\d\dm)?\.(?:jp2|tiff?|vrt)$", zero_is_nodata=True, optical=True),
)
"""Rules for the names of products, tried in this order."""

_YEAR, _MONTH = r"(?<!\d)((?:19|20)\d\d", "|".join(month_abbr[1:])
# The ways that names write a time, and how `datetime.strptime` reads what stands in the groups.
_STAMPS = [
    (re.compile(pattern, re.I), form)
    for pattern, form in (
        (_YEAR + r"\d{4})[T_-]?(\d{6})(?!\d)", "%Y%m%d%H%M%S"),  # 20210620T052843, RADARSAT's 20080415_143807
        (_YEAR + r"\d{10})\d(?!\d)", "%Y%m%d%H%M%S"),  # Pleiades' 201206181035409
        (_YEAR + r")[-:](\d\d)[-:](\d\d)[T_ -](\d\d)[-:_]?(\d\d)[-:_]?(\d\d)(?!\d)", "%Y%m%d%H%M%S"),
        (_YEAR + r"\d{3})T(\d{6})(?!\d)", "%Y%j%H%M%S"),  # HLS: 2023161T102601
        (r"(?<![a-z0-9])A((?:19|20)\d{5})(?!\d)", "%Y%j"),  # MODIS: A2023161
        (_YEAR + r"\d{4})(?!\d)", "%Y%m%d"),
        (_YEAR + r")[-_](\d\d)[-_](\d\d)(?!\d)", "%Y%m%d"),
        (rf"(?<!\d)(\d\d)({_MONTH})(\d\d)(\d{{6}})(?!\d)", "%y%b%d%H%M%S"),  # Maxar: 23JUN12054021
        (rf"(?<!\d)(\d\d)-?({_MONTH})-?(\d{{4}})(?!\d)", "%d%b%Y"),  # SNAP: 12Jun2023
        (rf"(?<!\d)(\d\d)-({_MONTH})-(\d{{4}}) (\d\d):(\d\d):(\d\d)", "%d%b%Y%H%M%S"),
    )
]
# The TIFFTAG_IMAGEDESCRIPTION of a measurement: ``Sentinel-1A IW GRD HR L1``.
_GRD_DESCRIPTION = re.compile(r"Sentinel-1[A-D] \w+ GRD\b")

_QUANTITY_WORDS = {
    "db": "db",
    "decibel": "db",
    "decibels": "db",
    "logarithmic": "db",
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
    "nrb": "rtc",
    "beta0": "beta0",
    "sigma0": "sigma0",
    "gamma0": "gamma0",
    "uncalibrated": "none",
}
# Tags by the ends of their names, in lower case and with "_" between words, the best first: Capella's
# ``collect_state_direction``, SNAP's ``PASS``, OPERA's ``..._BACKSCATTER_EXPRESSION_CONVENTION``.
_QUANTITY_TAGS = ("quantity", "units?", "(expression|measurement|backscatter)_convention")
_CALIBRATION_TAGS = (
    *("calibration", "radiometry", "(measurement|product)_type", "specification"),
    *("backscatter_measurement", "normali[sz]ation_convention"),
)
_POLARISATION_TAGS = ("(?<!transmit_)(?<!receive_)polari[sz]ations?(_list)?", "polarimetric_interp")
_PLATFORM_TAGS = (
    *("platform(_name)?", "mission(_id)?", "satellite(_(id|identifier|name))?", "sensor"),
    "spacecraft(_(id|name))?",
)
_ORBIT_TAGS = ("direction", "orbit_state", "pass")
_ORBITS = {"a": "ascending", "ascending": "ascending", "d": "descending", "descending": "descending"}
# Those that mean the acquisition; never when a file was made.
_TIME_TAGS = (
    *("acquisition_(start_)?(datetime|time|date|utc)", "^datetime", "date_acquired", "acquired"),
    *(
        "(?<!processing_)start_(date)?time(stamp)?(_utc)?",
        "start_at_utc",
        "begin_position",
        "first_line_time",
    ),
    *("sens(ing|e)_(start(_utc|_time)?|time|date)", "datatake_sensing_start", "time_coverage_start"),
    *("zero_doppler_(start_time|time_first_line)", "product_(scene_raster_)?start_time", "nitf_idatim"),
    *("range_beginning_date", "imaging_(date|time)", "acquisition_start"),
)
_CLOCK_TAGS = ("scene_center_time", "range_beginning_time", "acquisition_time")
_PRODUCT_TAGS = ("product(_(uri|id|name))?", "(scene|granule)(_(id|name))?")
_JSON_TAG = 1 << 20  # characters of JSON in a tag, at most
_CLOCK = re.compile(r"(\d\d):?(\d\d):?(\d\d)")


# What stands beside radar in products: anywhere in a name, among its last two words, or, of what may mean
# something else, as its last.
_LAYERS = {"incidence", "lia", "layover", "coherence", "anf"}
_LAST_LAYERS = {"dem", "dsm", "dtm", "elevation", "angle", "ratio", "coh", "ls", "inc"}
_PERHAPS_LAYERS = {"area", "mask", "rgb", "height", "slope", "looks", "noise", "quality", "lat", "lon"}
# Compact polarimetry: transmitted circularly (right, left, or either hand), received linearly.
_COMPACT = {"RH", "RV", "CH", "CV", "LH", "LV"}


@dataclass(frozen=True)
class Facts:
    """What is known about the values and the acquisition of a scene; None is not known."""

    quantity: str | None = None  # as `sar2eo.geo.radiometry` names them
    calibration: str | None = None
    datetime: str | None = None  # start of the acquisition, ISO 8601, UTC
    platform: str | None = None  # such as ``Sentinel-1A``
    orbit_direction: str | None = None  # "ascending" or "descending"
    terrain_corrected: bool | None = None  # whether relief was taken into account when the pixels were placed
    written: str | None = None  # when the file was written, which says little about the acquisition

    def over(self, other: Facts) -> Facts:
        """Return these facts, with those of `other` where these are not known."""
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return Facts(**{name: getattr(other, name) if v is None else v for name, v in mine.items()})


def polarisation_words(text: str) -> list[str]:
    """Return the polarisations that stand between delimiters in a text, each once, in order.

    ``HHHH``, the power of HH in covariances, counts as HH.
    """
    found = (word[:2] if word[:2] == word[2:] else word for word in map(str.upper, _words(text)))
    return list(dict.fromkeys(word for word in found if word in POLARISATIONS))


def polarisation_tag(tags: Mapping[str, str]) -> str:
    """Return the text of the tag that names polarisations, empty for none."""
    return _find(tags, _POLARISATION_TAGS)


def band_polarisations(description: str | None, tags: Mapping[str, str]) -> list[str]:
    """Return the polarisations that the description and the tags of a band name."""
    return polarisation_words(f"{description or ''} {polarisation_tag(tags)}")


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
    of_bands = [band_polarisations(*each) for each in zip(descriptions, band_tags, strict=True)]
    if all(len(found) == 1 for found in of_bands) and len({found[0] for found in of_bands}) == count:
        return tuple(found[0] for found in of_bands), True
    # One letter for each way, of Capella: "H" and "H".
    ways = "".join(_find(tags, (f"{way}_polari[sz]ation",)) for way in ("transmit", "receive"))
    single = re.search(r"_1S(S[HV])_", file_name)  # a Sentinel-1 product of one polarisation
    for text in (polarisation_tag(tags), ways, file_name, single[1][1] * 2 if single else ""):
        found = polarisation_words(text)
        if len(found) == count:
            return tuple(found), False
    return None, False


def compact_polarisations(texts: Iterable[str | None]) -> list[str]:
    """Return compact polarimetry that texts name: two of one kind, or one at the end of a text."""
    found: list[str] = []
    for text in texts:
        words = [word.upper() for word in _words(text or "")]
        named = [word for word in words if word in _COMPACT]
        kinds = [word[0] for word in named]
        if any(kinds.count(kind) > 1 for kind in kinds) or (named and words[-1] in _COMPACT):
            found += named
    return list(dict.fromkeys(found))


def is_layer(name: str | None, beside: bool = False) -> bool:
    """Whether a band or file is named as what stands beside radar: DEM, angle, area, mask, ratio, coherence.

    Of a file, `name` has no suffix. Words that may mean something else (``study_area``) count after a
    polarisation, or `beside` files whose names have one.
    """
    words = _words(name or "")
    at = [number for number, word in enumerate(words) if word.upper() in POLARISATIONS]
    last = words[at[-1] + 1 if at else 0 :][-2:]
    if _LAYERS & set(words) or _LAST_LAYERS & set(last):
        return True
    return bool(_PERHAPS_LAYERS & set(last[-1:])) and (bool(at) or beside)


def read_facts(
    file_name: str,
    tags: Mapping[str, str],
    descriptions: Iterable[str | None] = (),
    units: Iterable[str | None] = (),
) -> Facts:
    """Gather what a file says about itself: its name, then its tags, then the words in both and in its bands.

    A product's name, as the file's own or in a tag, says when and by what the scene was acquired; then tags
    that mean it; then any time in the file's name. `descriptions` and `units` are those of the bands.
    """
    tags = _flatten(tags)
    words = _words(file_name)
    if not _CALIBRATION_WORDS.keys() & set(words):
        words = [word for word in words if word != "power"]  # a plant's, or a line's
    words += [word for description in descriptions for word in _words(description or "")]
    referred = _calibration_words(_find(tags, _CALIBRATION_TAGS, most=9))
    quantity = _first(_words(" ".join(u or "" for u in units)), _QUANTITY_WORDS)
    quantity = quantity or _first(_words(_find(tags, _QUANTITY_TAGS, most=9)), _QUANTITY_WORDS)
    # ``Intensity_VV_db``: how the numbers are written, after what they are of.
    quantity = quantity or ("db" if _DECIBEL & set(words) else _first(words, _QUANTITY_WORDS))
    said = Facts(
        quantity=quantity,
        calibration="rtc" if {"rtc", "nrb"} & {*referred} else _first(referred + words, _CALIBRATION_WORDS),
        datetime=_read_time(file_name, tags),
        platform=platform_name(_find(tags, _PLATFORM_TAGS) or None),
        orbit_direction=_first(_words(_find(tags, _ORBIT_TAGS, most=9)), _ORBITS),
        written=iso_datetime_or_none(tags.get("tifftag_datetime")),
    )
    # Only the file's own name says what the values are: a tag may name what the file was made from.
    acquired = _read_acquisition([file_name, *tags.values()], said)
    found = _read_values(file_name).over(acquired).over(said)
    return Facts(terrain_corrected=True).over(found) if found.calibration == "rtc" else found


def _calibration_words(text: str) -> list[str]:
    """Return words in lower case, with ``sigma nought``, ``sigmaNaught`` and ``Sigma-0`` as ``sigma0``."""
    return _words(re.sub(r"(sigma|beta|gamma)[\W_]*(nought|naught|zero|0)", r"\g<1>0", text, flags=re.I))


def read_optical_facts(file_name: str, tags: Mapping[str, str]) -> Facts:
    """Read time and platform of an optical scene: from a product's name in tags or the file's, else tags."""
    tags = _flatten(tags)
    said = Facts(
        datetime=_read_time(file_name, tags, optical=True),
        platform=platform_name(_find(tags, _PLATFORM_TAGS) or None),
        written=iso_datetime_or_none(tags.get("tifftag_datetime")),
    )
    return _read_acquisition([*tags.values(), file_name], said, optical=True).over(said)


def fall_back_on_written(facts: Facts, label: str) -> Facts:
    """Take the time at which a file was written where nothing says when it was acquired, with a warning."""
    if facts.datetime is None and facts.written is not None:
        warnings.warn(
            f"{label}: nothing says when it was acquired but TIFFTAG_DATETIME, {facts.written}, which is "
            "often when the file was written: give --datetime if that is wrong",
            Sar2eoWarning,
            stacklevel=2,
        )
    return replace(facts, datetime=facts.datetime or facts.written, written=None)


def find_time(text: str) -> str | None:
    """Return the first time in a text, in any of the ways that names of products write it, as ISO 8601."""
    found = []
    for pattern, form in _STAMPS:
        for match in pattern.finditer(text):
            with suppress(ValueError):  # digits that are no date
                stamp = datetime.strptime("".join(match.groups()), form)
                found.append((match.start(), -match.end(), stamp))
    return iso_datetime(min(found)[2]) if found else None


def _read_time(file_name: str, tags: Mapping[str, str], optical: bool = False) -> str | None:
    """Read the time of acquisition that tags state, else that in the file's name."""
    said = _find(tags, _TIME_TAGS)
    stated = iso_datetime_or_none(said) or find_time(said)
    clock = _CLOCK.match(_find(tags, _CLOCK_TAGS))
    if stated and clock:
        stated = _finer(stated, f"{stated[:10]}T{':'.join(clock.groups())}Z")
    # Orbit files and products of the other kind of sensor say nothing of a scene.
    others = (rule for rule in NAME_RULES if rule.platform and rule.optical != optical)
    alien = "_OPER_" in file_name or any(rule.search(file_name) for rule in others)
    named = find_time(_find(tags, _PRODUCT_TAGS)) or (None if alien else find_time(file_name))
    return _finer(stated, named)


def _finer(first: str | None, second: str | None) -> str | None:
    """Return the first of two times, or the second where it adds the hour to the first's date."""
    if first is None or (second and first.endswith("T00:00:00Z") and first[:10] == second[:10]):
        return second
    return first


def _read_values(file_name: str) -> Facts:
    found = Facts()
    for rule in NAME_RULES:
        match = None if rule.optical else rule.search(file_name)
        if match:
            quantity = rule.quantities.get(match.groupdict().get("quantity", "").lower())
            found = found.over(Facts(quantity=quantity, calibration=rule.calibration))
    return found


def _read_acquisition(names: Sequence[str], said: Facts, optical: bool = False) -> Facts:
    """Read time and platform from the first of the names that a rule knows; `said` may add the hour."""
    for rule in NAME_RULES:
        if rule.platform is None or rule.optical != optical:
            continue
        match = next((match for name in names if (match := rule.search(name))), None)
        if match:
            groups = match.groupdict()
            date, clock = groups.get("date"), groups.get("time")
            century = {6: "20", 7: "A"}.get(len(date or ""), "")
            text = match.string if date is None else f"{century}{date}{f'T{clock}' if clock else ''}"
            platform = rule.platform.format(unit=groups.get("unit", "").upper())
            return Facts(datetime=_finer(find_time(text), said.datetime), platform=platform)
    return Facts()


def zero_is_nodata(file_name: str, tags: Mapping[str, str], optical: bool = False) -> bool:
    """Whether 0 means nodata, by a file's name or tags that describe a Sentinel-1 GRD measurement."""
    rules = (rule for rule in NAME_RULES if rule.zero_is_nodata and rule.optical == optical)
    described = not optical and _GRD_DESCRIPTION.match(_find(tags, ("tifftag_imagedescription",)))
    return bool(described) or any(rule.search(file_name) for rule in rules)


def platform_name(text: str | None) -> str | None:
    """Spell a Sentinel or Landsat as its agency does, ``Sentinel-1A``, and leave any other name as it is."""
    unit = re.search(r"sentinel-?([1-3])([a-d])|^s([12])([a-d])$|landsat[-_ ]?(\d)$", text or "", re.I)
    if unit is None:
        return text
    if unit[5]:
        return f"Landsat-{unit[5]}"
    return f"Sentinel-{unit[1] or unit[3]}{(unit[2] or unit[4]).upper()}"


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


def _flatten(tags: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return tags with plain names (``startAt`` as ``start_at``), and those of JSON in their values."""
    found: dict[str, str] = {}
    for key, value in tags.items():
        name = prefix + re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", key).lower()
        inner = value if isinstance(value, dict) else None
        with suppress(ValueError, RecursionError):
            if isinstance(value, str) and value.startswith("{") and len(value) < _JSON_TAG:
                inner = json.loads(value)
            if inner is not None:
                found = _flatten(inner, f"{name}_") | found
        found.setdefault(name, "" if inner is not None else str(value))
    return found


def _find(tags: Mapping[str, str], ends: Sequence[str], most: int = 1) -> str:
    """Return the values of tags whose names end in a pattern, the best first; by default the first alone."""
    flat = _flatten(tags)
    names = [
        name
        for end in ends
        for name in sorted(flat, key=len)
        if flat[name] and re.search(rf"(?:^|_)(?:{end})$", name)
    ]
    return " ".join(flat[name] for name in names[:most])


def _first(words: Iterable[str], meaning: Mapping[str, str]) -> str | None:
    return next((meaning[word] for word in words if word in meaning), None)
