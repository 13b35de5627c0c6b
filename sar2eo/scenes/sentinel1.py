"""Sentinel-1 GRD products: a .SAFE folder or its zip.

Formats and calibration: Sentinel-1 Product Specification (S1-RS-MDA-52-7441) and Radiometric Calibration of
S-1 Level-1 Products (ESA-EOPG-CSCOP-TN-0002): ``sigma0 = DN^2 / A^2``, with A between the vectors of the
calibration annotation interpolated bilinearly; the same for beta0 and gamma0.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from sar2eo.errors import PolarisationError, SceneError, SettingsError
from sar2eo.geo.windows import Window
from sar2eo.scenes.identity import digest, identify_file
from sar2eo.scenes.metadata import Facts, iso_datetime_or_none, polarisation_words
from sar2eo.scenes.raster import GroundControl, OpenedSource, Raster, RasterReader, open_raster
from sar2eo.scenes.reader import BoolArray, FloatArray, WrappingReader
from sar2eo.store.documents import parse_xml, read_file, read_member

Array = npt.NDArray[np.float64]

CALIBRATED = {"sigma0": "sigmaNought", "beta0": "betaNought", "gamma0": "gamma"}
"""Calibrations that the annotation allows, and the names of their vectors."""

# Those of products are between 100 and 3000.
_FACTORS = (1e-2, 1e6)
# Without what macOS leaves beside files on other disks (``._name``) and in zips (``__MACOSX/``).
_MEASUREMENT = re.compile(r"^(?!__MACOSX/)(?:.*/)?measurement/([^/.][^/]*)\.tiff?$", re.I)


@dataclass(frozen=True, eq=False)
class CalibrationTable:
    """The A of one polarisation, on vectors along range."""

    lines: Array  # shape (vector,); image line of each vector, rising
    pixels: tuple[Array, ...]  # image columns of each vector
    values: tuple[Array, ...]  # A at those columns

    def at(self, window: Window) -> Array:
        """Interpolate A for the pixels of a window, shape (row, col); constant past the outer vectors."""
        cols = np.arange(window.col, window.stop_col, dtype=np.float64)
        rows = np.arange(window.row, window.stop_row, dtype=np.float64)
        below = np.clip(np.searchsorted(self.lines, rows, side="right") - 1, 0, max(0, len(self.lines) - 2))
        above = np.minimum(below + 1, len(self.lines) - 1)
        span = np.where(above > below, self.lines[above] - self.lines[below], 1.0)
        part = np.clip((rows - self.lines[below]) / span, 0.0, 1.0)[:, None]
        needed = np.unique(np.concatenate([below, above]))
        along = np.stack([np.interp(cols, self.pixels[i], self.values[i]) for i in needed])
        lower, upper = along[np.searchsorted(needed, below)], along[np.searchsorted(needed, above)]
        return np.asarray(lower * (1 - part) + upper * part)


@dataclass(frozen=True, eq=False)
class CalibratedReader(WrappingReader):
    """Divide digital numbers by A, which gives calibrated amplitude."""

    source: RasterReader  # digital numbers
    tables: tuple[CalibrationTable, ...]  # one per polarisation
    calibration: str  # key of `CALIBRATED`

    def read(self, window: Window) -> FloatArray:
        """Read a window; see `SceneReader.read`."""
        factors = np.stack([table.at(window) for table in self.tables])
        amplitude: FloatArray = (self.source.read(window) / factors).astype(np.float32)
        return amplitude

    def read_validity(self, longest: int) -> BoolArray:
        """Read validity decimated; see `SceneReader.read_validity`."""
        return self.source.read_validity(longest)

    def identity(self) -> dict[str, Any]:
        """Return the measurements' identity and the calibration with its tables."""
        tables = [[t.lines.tolist(), [v.tolist() for v in (*t.pixels, *t.values)]] for t in self.tables]
        return {**self.source.identity(), "calibrate": [self.calibration, digest(tables)]}


@dataclass(frozen=True)
class _Measurement:
    polarisation: str
    path: str
    annotation: ElementTree.Element
    stem: str


def is_sentinel1(path: Path) -> bool:
    """Whether a path is a .SAFE folder, its manifest, or a zip that holds a product."""
    if path.is_dir():
        # Others keep measurements, too; level 1 has an annotation in XML for each, or has lost them all.
        annotated = any(path.glob("annotation/**/*.xml"))
        lost = path.suffix.upper() == ".SAFE" and not (path / "annotation").is_dir()
        level_1 = (path / "measurement").is_dir() and (annotated or lost)
        return level_1 or (path / "manifest.safe").is_file()
    if path.name.lower() == "manifest.safe":
        return True
    if path.suffix.lower() != ".zip" or not path.is_file():
        return False
    with _archive(path) as archive:
        return any(_MEASUREMENT.search(_slashes(name)) for name in archive.namelist())


def open_sentinel1(
    path: Path, *, polarisations: tuple[str, ...] | None = None, calibrate: str | None = None
) -> OpenedSource:
    """Open a Sentinel-1 GRD product, in the frame of the sensor with its control points.

    Parameters
    ----------
    path : Path
        A .SAFE folder, the manifest in it, or a zip of it with or without the folder.
    polarisations : tuple of str, optional
        Those to take, in this order; by default all.
    calibrate : {"sigma0", "beta0", "gamma0"}, optional
        What to calibrate to. Values are then amplitude, else digital numbers.
    """
    if calibrate is not None and calibrate not in CALIBRATED:
        raise SettingsError(f"calibrate={calibrate!r}: must be one of {', '.join(CALIBRATED)}")
    label = path.parent if path.name.lower() == "manifest.safe" else path
    members = _archive_members(label) if label.is_file() else _folder_members(label)
    found = _measurements(str(label), members)
    missing = [name for name in polarisations or () if name not in found]
    if missing:
        raise PolarisationError(f"{label}: no {', '.join(missing)}, the product has {', '.join(found)}")
    chosen = [found[name] for name in polarisations or tuple(found)]
    # DN 0 is where nothing was measured (Product Specification, border of the swath).
    rasters = [open_raster(measurement.path, nodata=0.0) for measurement in chosen]
    reader = _stack(chosen, rasters, members)
    facts = _product_facts(chosen[0].annotation, calibrate)
    try:
        control = _ground_control(chosen[0].annotation) or rasters[0].ground_control
        if calibrate is None:
            return OpenedSource(reader, control, facts, "unsigned", str(path))
        tables = tuple(_calibration_table(str(label), m, members, calibrate) for m in chosen)
    except ValueError as error:
        raise SceneError(f"{label}: an annotation holds text in place of a number ({error})") from error
    calibrated = CalibratedReader(reader, tables, calibrate)
    return OpenedSource(calibrated, control, facts, "calibrated", str(path))


@dataclass(frozen=True)
class _Members:
    """Files of a product by their path in it, as GDAL opens them, and a function that reads their bytes."""

    paths: dict[str, str]
    read: Callable[[str], bytes]
    identity: dict[str, Any] | None


def _folder_members(folder: Path) -> _Members:
    files = [*folder.glob("measurement/*"), *folder.glob("annotation/**/*.xml")]
    paths = {file.relative_to(folder).as_posix(): str(file) for file in sorted(files)}
    return _Members(paths, lambda name: read_file(Path(paths[name])), None)


def _archive_members(path: Path) -> _Members:
    with _archive(path) as archive:
        names = {_slashes(name): name for name in sorted(archive.namelist())}
    root = str(path.resolve())

    def read(name: str) -> bytes:
        return read_member(path, names[name])

    paths = {name: f"/vsizip/{{{root}}}/{name}" for name in names if not name.endswith("/")}
    return _Members(paths, read, identify_file(str(path)))


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise SceneError(f"{path}: not a zip archive, or cut short in transfer ({error})") from error


def _slashes(name: str) -> str:
    # Some Windows programs write backslashes, against the zip specification (APPNOTE 4.4.17.1).
    return name.replace("\\", "/")


def _measurements(label: str, members: _Members) -> dict[str, _Measurement]:
    """Find the measurement and annotation of every polarisation, in the product's order."""
    found: dict[str, _Measurement] = {}
    unknown = []
    for name, path in members.paths.items():
        match = _MEASUREMENT.search(name)
        if not match:
            continue
        wanted = f"annotation/{match[1]}.xml".lower()
        if not any(("/" + other.lower()).endswith("/" + wanted) for other in members.paths):
            unknown.append((match[1], wanted))
            continue
        annotation = _parse(label, wanted, members)
        product_type = annotation.findtext("adsHeader/productType", "GRD")
        polarisation = annotation.findtext("adsHeader/polarisation", "").upper()
        if product_type != "GRD" or (polarisation in found and found[polarisation].stem != match[1]):
            raise SceneError(f"{label}: a product of type {product_type}, and only GRD products can be read")
        found[polarisation] = _Measurement(polarisation, path, annotation, match[1])
    # What users add, say a picture, has no annotation; nor have measurements of an incomplete product.
    missing = [
        wanted for stem, wanted in unknown if set(polarisation_words(stem)) - found.keys() or not found
    ]
    if missing:
        raise SceneError(f"{label}: {missing[0]} is missing: is the product complete?")
    if not found:
        inside = ", ".join(list(members.paths)[:6]) or "nothing of the kind"
        raise SceneError(f"{label}: no measurement/*.tiff inside, but {inside}: is the product complete?")
    # Co-polarisation first, as the products number them.
    return dict(sorted(found.items(), key=lambda item: (item[0][:1] != item[0][1:], item[0])))


def _parse(label: str, wanted: str, members: _Members) -> ElementTree.Element:
    name = next((n for n in members.paths if ("/" + n.lower()).endswith("/" + wanted)), None)
    if name is None:
        raise SceneError(f"{label}: {wanted} is missing: is the product complete?")
    try:
        return parse_xml(members.read(name))
    except (OSError, ValueError) as error:
        raise SceneError(f"{label}: {name} is not readable XML ({error})") from error


def _stack(chosen: list[_Measurement], rasters: list[Raster], members: _Members) -> RasterReader:
    first = rasters[0].grid
    for measurement, raster in zip(chosen, rasters, strict=True):
        if raster.grid.shape != first.shape:
            raise SceneError(
                f"{measurement.path}: {raster.grid.shape} pixels, and {chosen[0].path} has {first.shape}"
            )
    files = (members.identity,) if members.identity else tuple(f for raster in rasters for f in raster.files)
    annotations = [ElementTree.tostring(m.annotation).decode() for m in chosen]
    return RasterReader(
        bands=tuple(raster.bands[0] for raster in rasters),
        polarisations=tuple(m.polarisation for m in chosen),
        grid=replace(first, crs=None, transform=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
        block_shape=rasters[0].block_shape,
        files=(*files, {"annotations": digest(annotations)}),
    )


def _product_facts(annotation: ElementTree.Element, calibrate: str | None) -> Facts:
    start = annotation.findtext("adsHeader/startTime")
    mission = annotation.findtext("adsHeader/missionId", "")
    orbit = annotation.findtext("generalAnnotation/productInformation/pass", "").lower()
    return Facts(
        quantity="amplitude" if calibrate else "dn",
        calibration=calibrate or "none",
        datetime=iso_datetime_or_none(start),
        platform=f"Sentinel-{mission[1:]}" if re.fullmatch(r"S1[A-D]", mission) else mission or None,
        orbit_direction=orbit or None,
        terrain_corrected=False,
    )


def _ground_control(annotation: ElementTree.Element) -> GroundControl | None:
    points = []
    for point in annotation.iterfind("geolocationGrid/geolocationGridPointList/geolocationGridPoint"):
        line, pixel, lon, lat = (
            float(point.findtext(t, "")) for t in ("line", "pixel", "longitude", "latitude")
        )
        # Annotations number samples, whose centres are half a pixel from their corners.
        points.append((line + 0.5, pixel + 0.5, lon, lat))
    return GroundControl("EPSG:4326", tuple(points)) if points else None


def _calibration_table(
    label: str, measurement: _Measurement, members: _Members, calibrate: str
) -> CalibrationTable:
    root = _parse(label, f"annotation/calibration/calibration-{measurement.stem}.xml".lower(), members)
    tag = CALIBRATED[calibrate]
    vectors = sorted(
        (
            (
                float(vector.findtext("line", "")),
                np.array(vector.findtext("pixel", "").split(), dtype=np.float64),
                np.array(vector.findtext(tag, "").split(), dtype=np.float64),
            )
            for vector in root.iterfind("calibrationVectorList/calibrationVector")
        ),
        key=lambda vector: vector[0],
    )
    finite = all(np.isfinite([line, *p, *v]).all() for line, p, v in vectors)
    broken = any(p.size == 0 or p.size != v.size or (np.diff(p) <= 0).any() for _, p, v in vectors)
    broken |= any(((v < _FACTORS[0]) | (v > _FACTORS[1])).any() for _, _, v in vectors)
    if not vectors or not finite or broken or (np.diff([line for line, _, _ in vectors]) <= 0).any():
        raise SceneError(
            f"{label}: no usable {tag} vectors in the calibration annotation of {measurement.stem}"
        )
    lines, pixels, values = zip(*vectors, strict=True)
    return CalibrationTable(np.array(lines), pixels, values)
