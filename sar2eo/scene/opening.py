"""`open_scene`: one door for every kind of SAR input."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping as MappingABC
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime as Datetime
from pathlib import Path
from typing import Any

import xarray as xr

from sar2eo.errors import GeolocationWarning, PolarisationError, RadiometryError, SceneError, SettingsError
from sar2eo.radiometry import CALIBRATIONS, POLARISATIONS, QUANTITIES
from sar2eo.scene.companions import check_companions
from sar2eo.scene.handles import gdal_path, shown
from sar2eo.scene.lazy import lazy_scene
from sar2eo.scene.metadata import Facts, iso_datetime
from sar2eo.scene.placement import Placement, place
from sar2eo.scene.plausibility import check_readable
from sar2eo.scene.polarisations import choose_bands
from sar2eo.scene.quantity import certain_quantity
from sar2eo.scene.raster import GroundControl, Raster, RasterReader, open_raster, with_nodata
from sar2eo.scene.reader import SceneReader
from sar2eo.scene.sentinel1 import is_safe, open_safe
from sar2eo.scene.stac import ItemAssets, is_stac, open_item, select_assets

__all__ = ["Source", "open_scene", "parse_source", "shown_source"]

Source = str | Path | MappingABC[str, str | Path]
"""A path, a URL, ``VV=a.tif,VH=b.tif``, or a mapping of polarisations to files."""

_FEW_POINTS = 10
_LARGE_RMSE_M = 100.0
_GDAL_PREFIX = re.compile(r"[A-Za-z0-9_]{2,}:")
_PAIR = re.compile(rf"(?:^|,)\s*({'|'.join(POLARISATIONS)})=", re.I)


@dataclass(frozen=True)
class _Opened:
    """Pixels in the frame of their source, and what is known about them."""

    reader: SceneReader
    control: GroundControl | None
    facts: Facts
    kind: str
    label: str


def open_scene(
    source: Source,
    *,
    polarisations: str | Sequence[str] | None = None,
    quantity: str | None = None,
    calibration: str | None = None,
    nodata: float | None = None,
    crs: Any = None,
    resolution: float | tuple[float, float] | None = None,
    datetime: str | Datetime | None = None,
    allow_ungeoreferenced: bool = False,
    calibrate: str | None = None,
) -> xr.DataArray:
    """Open a SAR scene, lazily.

    Parameters
    ----------
    source : str, Path or mapping
        A raster that GDAL reads, local or remote (``https://``, ``s3://``); one file per polarisation
        as a mapping or as ``"VV=a.tif,VH=b.tif"``; a Sentinel-1 GRD ``.SAFE`` folder or zip; a STAC
        item (``items.json#ID`` for one of an item collection).
    polarisations : str or sequence of str, optional
        Names of the bands in order (``"VV,VH"``); of a source that names its bands itself, those to
        take. By default from band descriptions, tags and file names, all of them.
    quantity : {"dn", "amplitude", "intensity", "db"}, optional
        What the values are. By default as metadata say, or values leave no doubt.
    calibration : {"none", "beta0", "sigma0", "gamma0", "rtc"}, optional
        What they are calibrated to. By default as metadata say.
    nodata : float, optional
        Value that means nodata, instead of the one the file declares.
    crs : optional
        CRS to warp to, anything pyproj reads; "source" stays in that of the source. By default a
        projected, north-up grid is used as it is, and anything else goes to its UTM zone.
    resolution : float or tuple of float, optional
        Pixel size, or width and height, in units of the CRS. By default the native one.
    datetime : str or datetime, optional
        Start of the acquisition, where metadata do not say or are wrong.
    allow_ungeoreferenced : bool, optional (default: False)
        Whether to open a source without CRS.
    calibrate : {"sigma0", "beta0", "gamma0"}, optional
        Of a ``.SAFE``: calibrate by the vectors in its annotation; values then are amplitude.

    Returns
    -------
    DataArray
        (band, y, x), float32, NaN where there is no data. Attributes: polarisations, quantity,
        calibration, datetime, platform, orbit_direction, source, terrain_corrected, geolocation,
        geolocation_rmse_m (metres, of control points left out), and scene_grid, the grid of the whole
        scene, by which a slice knows where it lies. What is not known is left out; a grid is JSON, as
        `sar2eo.attributes.attributes_of` reads it.

    Raises
    ------
    SceneError
        If it cannot be opened, or is no SAR scene; as `GeoreferenceError`, `PolarisationError` or
        `RadiometryError` where that says more.
    SettingsError
        For options that are not allowed, or do not apply to this source.

    Warns
    -----
    GeolocationWarning
        If control points are few, or the spline through them misplaces points by over 100 m.
    """
    names = _checked_names(polarisations)
    _check_choice("quantity", quantity, QUANTITIES)
    _check_choice("calibration", calibration, CALIBRATIONS)
    time = None if datetime is None else iso_datetime(datetime)
    if calibrate is not None and (quantity or calibration):
        raise SettingsError(
            f"calibrate={calibrate}: makes {calibrate} amplitude, leave out quantity and calibration"
        )
    parsed = parse_source(source)
    if isinstance(parsed, str):
        located: str | dict[str, str] = _absolute(parsed)
    else:
        located = {name: _absolute(file) for name, file in parsed.items()}
    opened = _open(located, names, nodata, calibrate)
    facts = _settled(opened, Facts(quantity=quantity, calibration=calibration, datetime=time))
    placed = place(
        opened.reader,
        opened.control,
        quantity=str(facts.quantity),
        crs=crs,
        resolution=resolution,
        allow_ungeoreferenced=allow_ungeoreferenced,
        label=opened.label,
    )
    _warn_of(placed, opened.label)
    return lazy_scene(placed.reader, _attributes(facts, placed, opened.label))


def shown_source(source: str) -> str:
    """Name a scene to people, as `open_scene` takes it, without the queries of signed URLs: secrets.

    Parameters
    ----------
    source : str
    """
    try:
        parsed = parse_source(source)
    except SceneError:
        return source
    if isinstance(parsed, str):
        return shown(parsed)
    return ",".join(f"{polarisation}={shown(str(file))}" for polarisation, file in parsed.items())


def parse_source(source: Source) -> str | dict[str, str]:
    """Read ``VV=a.tif,VH=b.tif`` as a dict by polarisation, and leave a path or URL as it is.

    Raises
    ------
    PolarisationError
        For a name that is no polarisation, one given twice, or one without a file.
    """
    if isinstance(source, MappingABC):
        names = _checked_names(list(source)) or ()
        return dict(zip(names, map(str, source.values()), strict=True))
    text = str(source)
    starts = list(_PAIR.finditer(text))
    if not starts or starts[0].start() != 0:
        return text
    stops = [match.start() for match in starts[1:]] + [len(text)]
    names = _checked_names([match[1] for match in starts]) or ()
    files = [text[match.end() : stop].strip() for match, stop in zip(starts, stops, strict=True)]
    unnamed = [name for name, file in zip(names, files, strict=True) if not file]
    if unnamed:
        raise PolarisationError(f"{text!r}: {unnamed[0]}= names no file")
    return dict(zip(names, files, strict=True))


def _absolute(source: str) -> str:
    """Name a local file so that it is found when the folder is changed, or by a worker in another one."""
    file, mark, item = source.partition("#")
    for path, fragment in ((source, ""), (file, f"{mark}{item}")):
        with suppress(OSError, ValueError):  # of what can be no path; opening it will tell
            if path and Path(path).exists():
                return f"{Path(path).absolute()}{fragment}"
    return source


def _open(
    source: str | dict[str, str], names: tuple[str, ...] | None, nodata: float | None, calibrate: str | None
) -> _Opened:
    if isinstance(source, dict):
        _refuse_calibrate(calibrate)
        return _open_files({(name,): file for name, file in source.items()}, names, nodata)
    if not source:
        raise SceneError("the name of the scene is empty")
    path = gdal_path(source)
    if not path.startswith("/vsi"):
        _check_local(Path(path.partition("#")[0] if is_stac(source) else path))
        if is_safe(Path(path)):
            return _open_product(Path(path), names, nodata, calibrate)
    _refuse_calibrate(calibrate)
    if is_stac(source):
        item = open_item(source)
        chosen = select_assets(item.files, names, source)
        found = _open_files(chosen, names, nodata, item)
        return _Opened(found.reader, found.control, item.facts.over(found.facts), found.kind, shown(source))
    raster = open_raster(path, names=len(names or ()), nodata=nodata)
    bands, chosen_names = choose_bands(raster, names)
    return _from_rasters([(raster, bands, chosen_names)], shown(source))


def _open_product(
    path: Path, names: tuple[str, ...] | None, nodata: float | None, calibrate: str | None
) -> _Opened:
    if nodata not in (None, 0):
        raise SettingsError(f"nodata={nodata:g}: in a Sentinel-1 product it is 0 by definition, leave it out")
    safe = open_safe(path, polarisations=names, calibrate=calibrate)
    kind = "unsigned" if calibrate is None else "calibrated"
    return _Opened(safe.reader, safe.control, safe.facts, kind, str(path))


def _open_files(
    files: dict[tuple[str, ...], str],
    wanted: tuple[str, ...] | None,
    nodata: float | None,
    item: ItemAssets | None = None,
) -> _Opened:
    """Open files that are known to hold certain polarisations, as one scene."""
    parts = []
    for names, file in files.items():
        raster = open_raster(file, names=len(names), nodata=nodata)
        if item is not None and item.nodata is not None:
            raster = replace(raster, bands=with_nodata(raster.bands, item.nodata))
        elif item is not None and item.grd and raster.kind == "unsigned":
            raster = replace(raster, bands=with_nodata(raster.bands, 0.0))
        bands, chosen = choose_bands(raster, names)
        kept = [i for i, name in enumerate(chosen) if wanted is None or name in wanted]
        parts.append((raster, tuple(bands[i] for i in kept), tuple(chosen[i] for i in kept)))
    known = [name for _, _, names in parts for name in names]
    missing = [name for name in wanted or () if name not in known]
    if missing:
        raise PolarisationError(f"no file for {', '.join(missing)}: there are files for {', '.join(known)}")
    label = ",".join(f"{'+'.join(names)}={shown(file)}" for names, file in files.items())
    opened = _from_rasters([part for part in parts if part[2]], label)
    if wanted is None:
        return opened
    reader = opened.reader
    assert isinstance(reader, RasterReader)  # noqa: S101
    at = [reader.polarisations.index(name) for name in wanted]
    ordered = RasterReader(
        tuple(reader.bands[i] for i in at), wanted, reader.grid, reader.block_shape, reader.files
    )
    return _Opened(ordered, opened.control, opened.facts, opened.kind, opened.label)


def _from_rasters(parts: list[tuple[Raster, Any, tuple[str, ...]]], label: str) -> _Opened:
    first = parts[0][0]
    facts = first.facts
    for raster, _, _ in parts[1:]:
        check_companions(first, raster)
        facts = facts.over(raster.facts)
    reader = RasterReader(
        bands=tuple(band for _, bands, _ in parts for band in bands),
        polarisations=tuple(name for _, _, names in parts for name in names),
        grid=first.grid,
        block_shape=first.block_shape,
        files=tuple(file for raster, _, _ in parts for file in raster.files),
    )
    return _Opened(reader, first.ground_control, facts, first.kind, label)


def _settled(opened: _Opened, given: Facts) -> Facts:
    """Combine what the caller and the source say, with a quantity that is certain."""
    facts = given.over(opened.facts)
    if opened.kind == "complex" and given.quantity not in (None, "amplitude"):
        raise RadiometryError(f"{opened.label}: complex samples are read as amplitude, not {given.quantity}")
    if given.quantity is None and opened.kind != "calibrated":
        settled = certain_quantity(opened.reader, opened.kind, facts.quantity, opened.label)
        facts = Facts(quantity=settled).over(facts)
    uncalibrated = facts.calibration is None and facts.quantity == "dn"
    return Facts(calibration="none").over(facts) if uncalibrated else facts


def _attributes(facts: Facts, placed: Placement, label: str) -> dict[str, Any]:
    return {
        "polarisations": placed.reader.polarisations,
        "quantity": facts.quantity,
        "calibration": facts.calibration,
        "datetime": facts.datetime,
        "platform": facts.platform,
        "orbit_direction": facts.orbit_direction,
        "source": label,
        # Control points place an image without its relief.
        "terrain_corrected": False if placed.points else facts.terrain_corrected,
        "geolocation": placed.geolocation,
        "geolocation_rmse_m": placed.rmse_m,
    }


def _warn_of(placed: Placement, label: str) -> None:
    if placed.points is None or placed.rmse_m is None:
        return
    if placed.points < _FEW_POINTS:
        text = (
            f"{label}: placed by {placed.points} ground control points only, which say little of the relief"
        )
    elif placed.rmse_m > _LARGE_RMSE_M:
        text = f"{label}: ground control points left out of the fit are misplaced by {placed.rmse_m:.0f} m"
    else:
        return
    warnings.warn(text, GeolocationWarning, stacklevel=3)


def _check_local(path: Path) -> None:
    """Refuse what cannot be a scene with a better message than GDAL's."""
    check_readable(str(path))
    if path.is_dir() and not is_safe(path):
        raise SceneError(f"{path}: a folder, and not a Sentinel-1 .SAFE: name the raster in it")
    if path.is_file() and path.suffix.lower() == ".xml" and b"<adsHeader>" in path.read_bytes()[:4096]:
        raise SceneError(f"{path}: a Sentinel-1 annotation, which holds no pixels: give the .SAFE folder")
    if not path.exists() and not _GDAL_PREFIX.match(str(path)):
        raise SceneError(f"{path}: no such file")


def _checked_names(names: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    parts = names.split(",") if isinstance(names, str) else names
    checked = tuple(str(name).strip().upper() for name in parts)
    if not checked or len(set(checked)) != len(checked) or not set(checked) <= set(POLARISATIONS):
        raise PolarisationError(
            f"polarisations={','.join(checked) or 'none'}: allowed are {', '.join(POLARISATIONS)}, each once"
        )
    return checked


def _check_choice(name: str, value: str | None, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        raise SettingsError(f"{name}={value!r}: must be one of {', '.join(allowed)}")


def _refuse_calibrate(calibrate: str | None) -> None:
    if calibrate is not None:
        raise SettingsError(
            f"calibrate={calibrate}: only a Sentinel-1 .SAFE folder or zip carries the tables this needs"
        )
