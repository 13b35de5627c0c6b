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
from typing import Any, Literal

import xarray as xr

from sar2eo.errors import (
    PairsError,
    PolarisationError,
    RadiometryWarning,
    Sar2eoWarning,
    SceneError,
    SettingsError,
    refuse_misfit,
)
from sar2eo.geo.radiometry import CALIBRATIONS, POLARISATIONS, QUANTITIES
from sar2eo.scenes.containers import read_container
from sar2eo.scenes.gdal import check_polarisations, check_readable, display_name, gdal_path, parse_source
from sar2eo.scenes.lazy_array import make_lazy_scene
from sar2eo.scenes.metadata import Facts, compact_polarisations, is_layer, iso_datetime
from sar2eo.scenes.placement import place_on_grid
from sar2eo.scenes.raster import (
    Band,
    OpenedSource,
    Raster,
    RasterReader,
    list_dates,
    open_raster,
    with_nodata,
)
from sar2eo.scenes.sentinel1 import is_sentinel1, open_sentinel1
from sar2eo.scenes.sources import expand_sources, holds_scenes
from sar2eo.scenes.stac_input import SarAssets, is_stac, read_sar_assets, select_assets
from sar2eo.scenes.values import look_at_values, looks_like_parts
from sar2eo.store.documents import read_start

_GDAL_PREFIX = re.compile(r"[A-Za-z0-9_]{2,}:")


def open_scene(
    source: str | Path | Mapping[str, str | Path],
    *,
    polarisations: str | Sequence[str] | None = None,
    quantity: str | None = None,
    calibration: str | None = None,
    bands: Sequence[int] | None = None,
    nodata: float | Literal["none"] | None = None,
    crs: Any = None,
    resolution: float | tuple[float, float] | None = None,
    datetime: str | Datetime | None = None,
    allow_ungeoreferenced: bool = False,
    calibrate: str | None = None,
    asset: str | None = None,
    date: str | None = None,
    force: bool = False,
) -> xr.DataArray:
    """Open a SAR scene, lazily.

    Parameters
    ----------
    source : str, Path or mapping
        A raster that GDAL reads, local or remote (``https://``, ``s3://``); one file per polarisation as a
        mapping or as ``"VV=a.tif,VH=b.tif"``; a Sentinel-1 GRD ``.SAFE`` folder or zip; a STAC item
        (``items.json#ID`` for one of an item collection).
    polarisations : str or sequence of str, optional
        Those to take (``"VV,VH"``); of a source that does not name its bands, their names in order. By
        default all, from band descriptions, tags and file names.
    quantity : {"dn", "amplitude", "intensity", "db"}, optional
        What the values are. By default from metadata, or from values that leave no doubt.
    calibration : {"none", "beta0", "sigma0", "gamma0", "rtc"}, optional
        What the values refer to. By default from metadata.
    bands : sequence of int, optional
        Bands of a raster to take, from 1. By default all, without alpha and layers beside polarisations.
    nodata : float or "none", optional
        Value that means nodata, instead of the one the file declares. By default a constant that fills a
        scene from its border inwards means it, too; "none" keeps that constant.
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
    asset : str, optional
        Of a STAC item: key of the asset to take. By default all that hold polarisations.
    date : str, optional
        Of a stack of dates: the day to take, ISO 8601.
    force : bool
        Go on, with a warning, where values contradict what is said of them.

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
    RadiometryWarning
        If undeclared fill is masked, bands are left out, or values contradict what is said of them.
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
    if isinstance(nodata, str) and nodata != "none":
        raise SettingsError(f"nodata={nodata!r}: must be a number or 'none'")
    declared = None if isinstance(nodata, str) else nodata
    if isinstance(parsed, str) and holds_scenes(Path(parsed)):
        parsed = parse_source(_find_inside(parsed))
    if isinstance(parsed, str):
        opened = _open_path(_absolute(parsed), names, declared, calibrate, bands, asset, date, force)
    elif not parsed.keys() <= set(POLARISATIONS):
        raise SceneError(f"{source}: the files of an optical scene, where a SAR scene is due")
    else:
        _refuse_calibrate(calibrate)
        _refuse_bands(bands)
        files: dict[tuple[str, ...], str] = {(name,): _absolute(file) for name, file in parsed.items()}
        opened = _open_files(files, names, declared, date, force)
    given = Facts(quantity=quantity, calibration=calibration, datetime=time)
    opened = look_at_values(opened, given, keep=nodata is not None, force=force)
    facts = opened.facts
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
    source: str,
    names: tuple[str, ...] | None,
    nodata: float | None,
    calibrate: str | None,
    chosen: Sequence[int] | None,
    asset: str | None,
    date: str | None,
    force: bool,
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
            _refuse_bands(chosen)
            return open_sentinel1(Path(path), polarisations=names, calibrate=calibrate)
    _refuse_calibrate(calibrate)
    if asset is not None and not is_stac(source):
        raise SettingsError(f"asset={asset}: goes with a STAC item, and {source} is none")
    label = display_name(source)
    container = None if path.startswith("/vsi") else read_container(Path(path))
    if container is not None or is_stac(source):
        _refuse_bands(chosen)
        item = container or read_sar_assets(source, asset, names)
        found = _open_files(select_assets(item.files, names, source), names, nodata, date, force, item)
        return replace(found, facts=item.facts.over(found.facts), label=label, unnamed=False)
    raster = open_raster(path, names=len(names or ()), nodata=nodata, chosen=chosen, date=date)
    return _join_rasters([(raster, *_choose_bands(raster, names, force))], label)


def _open_files(
    files: dict[tuple[str, ...], str],
    wanted: tuple[str, ...] | None,
    nodata: float | None,
    date: str | None,
    force: bool,
    item: SarAssets | None = None,
) -> OpenedSource:
    """Open files that are known to hold certain polarisations, as one scene."""
    parts = []
    for names, file in files.items():
        raster = open_raster(file, names=len(names), nodata=nodata, date=date)
        if item is not None and item.nodata is not None:
            raster = replace(raster, bands=with_nodata(raster.bands, item.nodata))
        elif item is not None and item.grd and raster.kind in ("bytes", "unsigned"):
            raster = replace(raster, bands=with_nodata(raster.bands, 0.0))
        bands, chosen = _choose_bands(raster, names, force)
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
    return OpenedSource(
        *(reader, first.ground_control, facts, first.kind, label),
        plain=True,
        unnamed=any(raster.names is None for raster, _, _ in parts),
        unapplied=first.unapplied,
    )


def _check_local(path: Path) -> None:
    """Refuse what cannot be a scene with a better message than GDAL's."""
    check_readable(str(path))
    if path.is_file() and path.suffix.lower() == ".xml" and b"<adsHeader>" in read_start(path):
        raise SceneError(f"{path}: a Sentinel-1 annotation, which holds no pixels: give the .SAFE folder")
    if not path.exists() and not _GDAL_PREFIX.match(str(path)):
        raise SceneError(f"{path}: no such file")


def _find_inside(path: str) -> str:
    """Return the one scene in a folder or a zip."""
    try:
        found = expand_sources([path], "sar")
    except PairsError as error:
        names = sorted(each.name for each in Path(path).iterdir()) if Path(path).is_dir() else []
        inside = ", ".join(names[:6]) or "nothing that can be read"
        raise SceneError(f"{path}: a folder without a SAR scene, but with {inside}") from error
    if len(found) > 1:
        names = [Path(each.href).name for each in found]
        raise SceneError(f"{path}: holds {len(found)} scenes, name one: {', '.join(names[:6])}")
    return found[0].href


def _refuse_calibrate(calibrate: str | None) -> None:
    if calibrate is not None:
        raise SettingsError(
            f"calibrate={calibrate}: only a Sentinel-1 .SAFE folder or zip carries the tables this needs"
        )


def _refuse_bands(chosen: Sequence[int] | None) -> None:
    if chosen is not None:
        raise SettingsError(
            f"bands={','.join(map(str, chosen))}: goes with one raster; elsewhere polarisations choose"
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


def _choose_bands(
    raster: Raster, wanted: tuple[str, ...] | None, force: bool
) -> tuple[tuple[Band, ...], tuple[str, ...]]:
    """Pair bands with polarisations; both tuples are of equal length.

    `wanted` are those to take of the names that the file says; where it says none, the names of all bands in
    their order. None takes all.
    """
    bands, names, count = raster.bands, raster.names, len(raster.bands)
    label = display_name(raster.path)
    _refuse_no_radar(raster, label, force)
    if len(raster.dates) > 1:
        raise SceneError(f"{label}: a stack of dates ({list_dates(raster.dates)}): choose one with --date")
    if count > len(POLARISATIONS):
        raise SceneError(
            f"{label}: {count} bands, and a SAR scene has 1 to {len(POLARISATIONS)} polarisations: is this "
            "an optical image? Else choose with --band"
        )
    if raster.layers:
        warnings.warn(
            f"{label}: left out {', '.join(raster.layers)}, which is no radar backscatter",
            RadiometryWarning,
            stacklevel=2,
        )
    if names is not None and wanted is not None:
        if absent := [name for name in wanted if name not in names]:
            raise PolarisationError(
                f"{label}: no {', '.join(absent)}, the file says that it has {', '.join(names)}; --pol "
                "chooses among these"
            )
        if raster.named_by_band or len(wanted) < count:
            return tuple(bands[names.index(name)] for name in wanted), wanted
        return bands, wanted
    if wanted is not None:
        if len(wanted) != count:
            raise PolarisationError(
                f"{label}: --pol {','.join(wanted)} names {len(wanted)} polarisations, and the file has "
                f"{count} bands: choose bands with --band"
            )
        return bands, wanted
    if names is not None:
        return bands, names
    if raster.optical:
        raise SceneError(
            f"{label}: its bands are marked red, green, blue: is this an optical image? "
            "If not, name its polarisations with --pol"
        )
    if count == 1:
        question = (
            "neither the file nor its name says which polarisation its band is, and a model is trained "
            "for certain ones; give --pol VV (or VH, HH, HV)"
        )
    else:
        dual = re.search(r"_1SD([HV])_", raster.path) if count == 2 else None
        usual = {"V": "VH,VV (SNAP's order of this product)", "H": "HH,HV"}
        example = usual[dual[1]] if dual else ",".join(("VV", "VH", "HH", "HV")[:count])
        question = (
            f"the polarisations of its {count} bands are not known; give them in order, such as "
            f"--pol {example}, or choose some with --band"
        )
    raise PolarisationError(f"{label}: {question}")


def _refuse_no_radar(raster: Raster, label: str, force: bool) -> None:
    """Refuse what is no linear polarisation: layers beside radar by name, parts of samples, compact ones."""
    stem = Path(raster.path.partition("?")[0]).stem
    if len(raster.bands) == 1 and is_layer(stem):
        refuse_misfit(
            f"{label}: named as what stands beside radar (DEM, angle, mask, ratio, coherence), not as radar",
            SceneError,
            verb="reads it",
            force=force,
        )
    compact = compact_polarisations([stem, *raster.texts])
    if compact and raster.names is None:
        raise PolarisationError(
            f"{label}: compact polarimetry ({', '.join(compact)}), transmitted circularly: no model is "
            f"trained for it; allowed are {', '.join(POLARISATIONS)}"
        )
    if looks_like_parts(raster):
        raise SceneError(
            f"{label}: two signed bands of one polarisation look like the real and imaginary parts of "
            "complex samples: compute their amplitude, sqrt(i^2 + q^2), and open that"
        )
