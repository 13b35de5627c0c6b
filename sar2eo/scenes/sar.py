"""SAR scenes: `open_scene` opens every kind of SAR input."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from datetime import datetime as Datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sar2eo.errors import (
    PolarisationError,
    RadiometryError,
    RadiometryWarning,
    Sar2eoWarning,
    SceneError,
    SettingsError,
)
from sar2eo.geo.radiometry import CALIBRATIONS, POLARISATIONS, QUANTITIES, sample_windows
from sar2eo.scenes.gdal import check_polarisations, check_readable, display_name, gdal_path, parse_source
from sar2eo.scenes.lazy_array import make_lazy_scene
from sar2eo.scenes.metadata import Facts, iso_datetime
from sar2eo.scenes.placement import place_on_grid
from sar2eo.scenes.raster import Band, OpenedSource, Raster, RasterReader, open_raster, with_nodata
from sar2eo.scenes.reader import FloatArray, SceneReader
from sar2eo.scenes.sentinel1 import is_sentinel1, open_sentinel1
from sar2eo.scenes.stac_input import SarAssets, is_stac, read_sar_assets, select_assets

_GDAL_PREFIX = re.compile(r"[A-Za-z0-9_]{2,}:")

_ASK = f"say what they are with --quantity {'|'.join(QUANTITIES)}"
_DB_RANGE = (-100.0, 60.0)
_FILL = 0.001


def open_scene(
    source: str | Path | Mapping[str, str | Path],
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
        A raster that GDAL reads, local or remote (``https://``, ``s3://``); one file per polarisation as a
        mapping or as ``"VV=a.tif,VH=b.tif"``; a Sentinel-1 GRD ``.SAFE`` folder or zip; a STAC item
        (``items.json#ID`` for one of an item collection).
    polarisations : str or sequence of str, optional
        Names of the bands in order (``"VV,VH"``); of a source that names its bands itself, those to take. By
        default from band descriptions, tags and file names, all of them.
    quantity : {"dn", "amplitude", "intensity", "db"}, optional
        What the values are. By default from metadata, or from values that leave no doubt.
    calibration : {"none", "beta0", "sigma0", "gamma0", "rtc"}, optional
        What the values refer to. By default from metadata.
    nodata : float, optional
        Value that means nodata, instead of the one the file declares.
    crs : optional
        CRS to warp to, anything pyproj reads; "source" is that of the source. By default a projected,
        north-up grid is used as it is, and anything else is warped to its UTM zone.
    resolution : float or tuple of float, optional
        Pixel size, or width and height, in units of the CRS. By default the native one.
    datetime : str or datetime, optional
        Start of the acquisition, where metadata do not say or are wrong.
    allow_ungeoreferenced : bool, optional (default: False)
        Whether to open a source without a georeference.
    calibrate : {"sigma0", "beta0", "gamma0"}, optional
        Of a ``.SAFE``: calibrate by the vectors in its annotation. Values are then amplitude.

    Returns
    -------
    DataArray, dims (band, y, x)
        float32, NaN where there is no data. Attributes, each where it is known: polarisations, quantity,
        calibration, datetime, platform, orbit_direction, source, terrain_corrected, geolocation,
        geolocation_rmse_m (metres, of control points left out of the fit), and scene_grid, the grid of the
        whole scene, as JSON (see `sar2eo.scenes.lazy_array.decode_attributes`).

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
    names = check_polarisations(polarisations)
    for option, value, allowed in (
        ("quantity", quantity, QUANTITIES),
        ("calibration", calibration, CALIBRATIONS),
    ):
        if value is not None and value not in allowed:
            raise SettingsError(f"{option}={value!r}: must be one of {', '.join(allowed)}")
    time = None if datetime is None else iso_datetime(datetime)
    if calibrate is not None and (quantity or calibration):
        raise SettingsError(
            f"calibrate={calibrate}: makes {calibrate} amplitude, leave out quantity and calibration"
        )
    parsed = parse_source(source)
    if isinstance(parsed, str):
        opened = _open_path(_absolute(parsed), names, nodata, calibrate)
    else:
        _refuse_calibrate(calibrate)
        files: dict[tuple[str, ...], str] = {(name,): _absolute(file) for name, file in parsed.items()}
        opened = _open_files(files, names, nodata)
    facts = _complete_facts(opened, Facts(quantity=quantity, calibration=calibration, datetime=time))
    reader, geolocation = place_on_grid(
        opened,
        quantity=str(facts.quantity),
        crs=crs,
        resolution=resolution,
        allow_ungeoreferenced=allow_ungeoreferenced,
    )
    attrs = {"polarisations": reader.polarisations, **vars(facts), "source": opened.label, **geolocation}
    attrs |= {"stored_as": opened.kind}
    return make_lazy_scene(reader, attrs)


def _absolute(source: str) -> str:
    """Name a local file so that it is found when the folder changes, or by a worker in another one."""
    file, mark, item = source.partition("#")
    for path, fragment in ((source, ""), (file, f"{mark}{item}")):
        with suppress(OSError, ValueError):  # what can be no path is refused when it is opened
            if path and Path(path).exists():
                return f"{Path(path).absolute()}{fragment}"
    return source


def _open_path(
    source: str, names: tuple[str, ...] | None, nodata: float | None, calibrate: str | None
) -> OpenedSource:
    if not source:
        raise SceneError("the name of the scene is empty")
    path = gdal_path(source)
    if not path.startswith("/vsi"):
        _check_local(Path(path.partition("#")[0] if is_stac(source) else path))
        if is_sentinel1(Path(path)):
            if nodata not in (None, 0):
                raise SettingsError(
                    f"nodata={nodata:g}: in a Sentinel-1 product it is 0 by definition, leave it out"
                )
            return open_sentinel1(Path(path), polarisations=names, calibrate=calibrate)
    _refuse_calibrate(calibrate)
    label = display_name(source)
    if is_stac(source):
        item = read_sar_assets(source)
        found = _open_files(select_assets(item.files, names, source), names, nodata, item)
        return replace(found, facts=item.facts.over(found.facts), label=label)
    raster = open_raster(path, names=len(names or ()), nodata=nodata)
    return _join_rasters([(raster, *_choose_bands(raster, names))], label)


def _open_files(
    files: dict[tuple[str, ...], str],
    wanted: tuple[str, ...] | None,
    nodata: float | None,
    item: SarAssets | None = None,
) -> OpenedSource:
    """Open files that are known to hold certain polarisations, as one scene."""
    parts = []
    for names, file in files.items():
        raster = open_raster(file, names=len(names), nodata=nodata)
        if item is not None and item.nodata is not None:
            raster = replace(raster, bands=with_nodata(raster.bands, item.nodata))
        elif item is not None and item.grd and raster.kind in ("bytes", "unsigned"):
            raster = replace(raster, bands=with_nodata(raster.bands, 0.0))
        bands, chosen = _choose_bands(raster, names)
        kept = [i for i, name in enumerate(chosen) if wanted is None or name in wanted]
        parts.append((raster, tuple(bands[i] for i in kept), tuple(chosen[i] for i in kept)))
    known = [name for _, _, names in parts for name in names]
    missing = [name for name in wanted or () if name not in known]
    if missing:
        raise PolarisationError(f"no file for {', '.join(missing)}: there are files for {', '.join(known)}")
    label = ",".join(f"{'+'.join(names)}={display_name(file)}" for names, file in files.items())
    opened = _join_rasters([part for part in parts if part[2]], label)
    if wanted is None:
        return opened
    reader = opened.reader
    assert isinstance(reader, RasterReader)  # noqa: S101
    bands = tuple(reader.bands[reader.polarisations.index(name)] for name in wanted)
    return replace(opened, reader=replace(reader, bands=bands, polarisations=wanted))


def _join_rasters(parts: list[tuple[Raster, tuple[Band, ...], tuple[str, ...]]], label: str) -> OpenedSource:
    """Make one source of the bands of files that belong together."""
    first = parts[0][0]
    facts = first.facts
    for raster, _, _ in parts[1:]:
        _check_companions(first, raster)
        facts = facts.over(raster.facts)
    reader = RasterReader(
        bands=tuple(band for _, bands, _ in parts for band in bands),
        polarisations=tuple(name for _, _, names in parts for name in names),
        grid=first.grid,
        block_shape=first.block_shape,
        files=tuple(file for raster, _, _ in parts for file in raster.files),
    )
    return OpenedSource(reader, first.ground_control, facts, first.kind, label)


def _complete_facts(opened: OpenedSource, given: Facts) -> Facts:
    """Combine what the caller and the source say, and determine the quantity."""
    facts = given.over(opened.facts)
    if opened.kind == "complex" and given.quantity not in (None, "amplitude"):
        raise RadiometryError(f"{opened.label}: complex samples are read as amplitude, not {given.quantity}")
    if given.quantity is None and opened.kind != "calibrated":
        quantity = _determine_quantity(opened.reader, opened.kind, facts.quantity, opened.label)
        facts = replace(facts, quantity=quantity)
    uncalibrated = facts.calibration is None and facts.quantity == "dn"
    return replace(facts, calibration="none") if uncalibrated else facts


def _check_local(path: Path) -> None:
    """Refuse what cannot be a scene with a better message than GDAL's."""
    check_readable(str(path))
    if path.is_dir() and not is_sentinel1(path):
        raise SceneError(f"{path}: a folder, and not a Sentinel-1 .SAFE: name the raster in it")
    if path.is_file() and path.suffix.lower() == ".xml" and b"<adsHeader>" in path.read_bytes()[:4096]:
        raise SceneError(f"{path}: a Sentinel-1 annotation, which holds no pixels: give the .SAFE folder")
    if not path.exists() and not _GDAL_PREFIX.match(str(path)):
        raise SceneError(f"{path}: no such file")


def _refuse_calibrate(calibrate: str | None) -> None:
    if calibrate is not None:
        raise SettingsError(
            f"calibrate={calibrate}: only a Sentinel-1 .SAFE folder or zip carries the tables this needs"
        )


def _check_companions(first: Raster, other: Raster) -> None:
    """Refuse two files that cannot be polarisations of one scene, by what their headers say.

    Their grids, quantities and calibrations must be alike. A `Sar2eoWarning` is given if they were acquired a
    day or more apart.
    """
    names = f"{display_name(first.path)} and {display_name(other.path)}"
    grids = first.grid, other.grid
    drift = max(abs(p - q) for p, q in zip(*(grid.transform for grid in grids), strict=True))
    alike = grids[0].crs == grids[1].crs and grids[0].shape == grids[1].shape
    pixel = max(map(abs, first.grid.transform[:2]))
    if not alike or drift > 1e-3 * pixel or first.ground_control != other.ground_control:
        where = "; ".join(
            f"{grid.crs}, {grid.shape}, corner {grid.transform[2]:.10g} {grid.transform[5]:.10g}"
            for grid in grids
        )
        raise SceneError(f"{names} are not on one grid ({where}): resample one of them first")
    a, b = first.facts, other.facts
    if (first.kind, a.quantity) != (other.kind, b.quantity):
        raise SceneError(
            f"{names} hold different quantities ({a.quantity or first.kind}, {b.quantity or other.kind})"
        )
    if a.calibration and b.calibration and a.calibration != b.calibration:
        raise SceneError(
            f"{names} are calibrated to {a.calibration} and {b.calibration}: the polarisations of a scene "
            "must be alike"
        )
    if a.datetime and b.datetime:
        apart = datetime.fromisoformat(a.datetime) - datetime.fromisoformat(b.datetime)
        if abs(apart) >= timedelta(days=1):
            # Not refused: the date in a file may be that of processing.
            warnings.warn(
                f"{names} are of {a.datetime} and {b.datetime}, and taken for one scene, of the first: is "
                "one of another acquisition?",
                Sar2eoWarning,
                stacklevel=2,
            )


def _choose_bands(raster: Raster, wanted: tuple[str, ...] | None) -> tuple[tuple[Band, ...], tuple[str, ...]]:
    """Pair bands with polarisations; both tuples are of equal length.

    `wanted` names all bands in their order; or, where the bands carry names of their own, those to take. None
    takes all.
    """
    bands, names, count = raster.bands, raster.names, len(raster.bands)
    if count > len(POLARISATIONS):
        raise SceneError(
            f"{display_name(raster.path)}: {count} bands, and a SAR scene has 1 to {len(POLARISATIONS)} "
            "polarisations: is this an optical image?"
        )
    if wanted is not None and names is not None and set(wanted) <= set(names):
        if raster.named_by_band or len(wanted) < count:
            return tuple(bands[names.index(name)] for name in wanted), wanted
        return bands, wanted
    if wanted is not None:
        if len(wanted) != count:
            known = f" ({', '.join(names)})" if names else ""
            raise PolarisationError(
                f"{display_name(raster.path)}: --pol {','.join(wanted)} names {len(wanted)} polarisations, "
                f"and the file has {count} bands{known}"
            )
        if names is not None:
            warnings.warn(
                f"{display_name(raster.path)}: says that it has {','.join(names)}, and is read as "
                f"{','.join(wanted)}, as --pol says",
                RadiometryWarning,
                stacklevel=2,
            )
        return bands, wanted
    if names is not None:
        return bands, names
    if raster.optical:
        raise SceneError(
            f"{display_name(raster.path)}: its bands are marked red, green, blue: is this an optical image? "
            "If not, name its polarisations with --pol"
        )
    if count == 1:
        question = (
            "neither the file nor its name says which polarisation its band is, and a model is trained "
            "for certain ones; give --pol VV (or VH, HH, HV)"
        )
    else:
        example = ",".join(("VV", "VH", "HH", "HV")[:count])
        question = (
            f"the polarisations of its {count} bands are not known; give them in order, such as "
            f"--pol {example}"
        )
    raise PolarisationError(f"{display_name(raster.path)}: {question}")


def _determine_quantity(reader: SceneReader, kind: str, said: str | None, label: str) -> str:
    """Determine the quantity of a scene whose caller did not give it, or raise `RadiometryError`.

    Unsigned integers are dn, complex samples amplitude. Other numbers are dB if most are negative and all lie
    within -100 to 60, and signed integers without a negative one are dn. `said` is the quantity according to
    metadata.
    """
    if kind == "complex":
        return "amplitude"
    if kind in ("bytes", "unsigned"):
        if said == "db":
            raise RadiometryError(
                f"{label}: named as dB, but stored as unsigned integers without GDAL scale and offset; {_ASK}"
            )
        return said or "dn"
    values = _sample(reader, label)
    # Undeclared fill is often exactly 0, and says nothing about the rest.
    real = values[values != 0]
    low, high = (float(real.min()), float(real.max())) if real.size else (0.0, 0.0)
    in_range = _DB_RANGE[0] <= low and high <= _DB_RANGE[1]
    looks_db = bool(real.size) and in_range and float(np.mean(real < 0)) > 0.5
    shown = f"{label}: values from {low:g} to {high:g}"
    if said is not None:
        if (said == "db" and not in_range) or (said != "db" and looks_db):
            raise RadiometryError(
                f"{shown} do not look like {said}, which the metadata say; {_nodata(low)}{_ASK}"
            )
        return _check_fill(said, values, label)
    if looks_db:
        return _check_fill("db", values, label)
    if kind == "signed" and low >= 0:
        return "dn"
    raise RadiometryError(f"{shown} may be amplitude or intensity; {_nodata(low)}{_ASK}")


def _check_fill(quantity: str, values: FloatArray, label: str) -> str:
    """Refuse dB with many values of exactly 0: as fill they would count as brighter than nearly all land."""
    share = float(np.mean(values == 0)) if quantity == "db" else 0.0
    if share > _FILL:
        raise RadiometryError(
            f"{label}: dB, and {share:.1%} of the values are exactly 0, brighter than nearly all land: "
            "if 0 means nodata, give --nodata 0, else --quantity db"
        )
    return quantity


def _nodata(low: float) -> str:
    return f"if {low:g} means nodata, give --nodata {low:g}; " if low < _DB_RANGE[0] else ""


def _sample(reader: SceneReader, label: str) -> FloatArray:
    """Read valid values of a few seeded windows at full resolution; of many while all is nodata."""
    for strata, size in ((4, 64), (32, 64)):
        blocks = [reader.read(w) for w in sample_windows(reader.grid.shape, strata=strata, size=size)]
        valid = np.concatenate([block[np.isfinite(block)] for block in blocks])
        if valid.size:
            return valid
    raise RadiometryError(f"{label}: no valid pixel found to determine the quantity from; {_ASK}")
