"""Small SAR inputs of every kind, made by code."""

import warnings
import zipfile
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from sar2eo.geo.windows import Window

UTM = "EPSG:32633"
NORTH_UP = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)


def speckle(shape, seed=1, dtype="uint16", scale=500.0):
    """Rayleigh amplitude, never 0."""
    draw = np.random.default_rng(seed).rayleigh(scale, shape) + 1
    return draw.astype(dtype)


def write_raster(
    path,
    values,
    *,
    crs=UTM,
    transform=NORTH_UP,
    nodata=None,
    names=None,
    tags=None,
    gcps=None,
    scale=None,
    offset=None,
    mask=None,
    roles=None,
    **creation,
):
    """Write (band, row, col) values as GeoTIFF, with one oddity or other."""
    values = values if values.ndim == 3 else values[None]
    profile = {
        "driver": "GTiff",
        "count": values.shape[0],
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
        "nodata": nodata,
        **creation,
    }
    if crs is not None:
        profile["crs"] = crs
    if transform is not None:
        profile["transform"] = transform
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", **profile) as file:
            if roles is not None:
                file.colorinterp = [ColorInterp[role] for role in roles]
            file.write(values)
            if gcps is not None:
                file.gcps = ([GroundControlPoint(*p) for p in gcps], rasterio.CRS.from_epsg(4326))
            for i, name in enumerate(names or (), start=1):
                file.set_band_description(i, name)
            if tags:
                file.update_tags(**tags)
            if scale is not None:
                file.scales = (scale,) * values.shape[0]
            if offset is not None:
                file.offsets = (offset,) * values.shape[0]
            if mask is not None:
                file.write_mask(mask)
    return path


def windows_of(shape):
    """Windows inside of a scene of this shape."""

    def window(ends):
        (r0, r1), (c0, c1) = ends
        return Window(min(r0, r1), min(c0, c1), abs(r1 - r0) + 1, abs(c1 - c0) + 1)

    def axis(size):
        return st.tuples(st.integers(0, size - 1), st.integers(0, size - 1))

    return st.tuples(axis(shape[0]), axis(shape[1])).map(window)


def curved_control(rows, cols, *, lon=12.0, lat=45.0, count=(6, 7)):
    """Control points of a swath that is tilted and a little curved: row, col, lon, lat."""
    found = []
    for r in np.linspace(0, rows, count[0]):
        for c in np.linspace(0, cols, count[1]):
            east, north = 10 * (c + 0.2 * r), 10 * (-r + 0.2 * c) + 2e-4 * (c - cols / 2) ** 2
            found.append((r, c, lon + east / 78_800.0, lat + north / 111_100.0))
    return [(r, c, (x + 180) % 360 - 180, y) for r, c, x, y in found]


ANNOTATION = """<?xml version="1.0" encoding="UTF-8"?>
<product><adsHeader><missionId>S1B</missionId><productType>{kind}</productType>
<polarisation>{polarisation}</polarisation><startTime>2019-03-04T05:06:07.890123</startTime></adsHeader>
<generalAnnotation><productInformation><pass>Descending</pass></productInformation></generalAnnotation>
<geolocationGrid><geolocationGridPointList>{points}</geolocationGridPointList></geolocationGrid></product>"""

CALIBRATION = """<?xml version="1.0" encoding="UTF-8"?>
<calibration><calibrationVectorList count="3">{vectors}</calibrationVectorList></calibration>"""


def calibration_vectors(tag="sigmaNought", base=100.0):
    """A that rises by 1 per pixel and by 2 per line, on uneven vectors."""
    text = ""
    for line in (-10, 20, 100):
        pixels = (0, 15, 40, 90)
        values = {name: [1.0] * 4 for name in ("sigmaNought", "betaNought", "gamma")}
        values[tag] = [base + p + 2 * line for p in pixels]
        inner = "".join(f"<{n}>{' '.join(map(str, v))}</{n}>" for n, v in values.items())
        where = f"<line>{line}</line><pixel>{' '.join(map(str, pixels))}</pixel>"
        text += f"<calibrationVector>{where}{inner}</calibrationVector>"
    return text


def write_safe(
    parent, *, shape=(60, 80), polarisations=("VV", "VH"), kind="GRD", tag="sigmaNought", control=True
):
    """Write a product folder as ESA lays it out; return it and its digital numbers by polarisation."""
    folder = Path(parent) / "S1B_IW_GRDH_1SDV_20190304T050607_20190304T050632_015205_01C6F5_ABCD.SAFE"
    for name in ("measurement", "annotation/calibration"):
        (folder / name).mkdir(parents=True)
    (folder / "manifest.safe").write_text("<xml/>")
    points = "".join(
        f"<geolocationGridPoint><line>{r}</line><pixel>{c}</pixel>"
        f"<latitude>{y:.12f}</latitude><longitude>{x:.12f}</longitude></geolocationGridPoint>"
        for r, c, x, y in curved_control(shape[0] - 1, shape[1] - 1)
    )
    numbers = {}
    for i, polarisation in enumerate(polarisations):
        stem = f"s1b-iw-grd-{polarisation.lower()}-20190304t050607-20190304t050632-015205-01c6f5-00{i + 1}"
        values = speckle(shape, seed=i)
        values[:, :3] = 0
        write_raster(folder / f"measurement/{stem}.tiff", values, crs=None, transform=None)
        annotation = ANNOTATION.format(kind=kind, polarisation=polarisation, points=points if control else "")
        (folder / f"annotation/{stem}.xml").write_text(annotation)
        calibration = CALIBRATION.format(vectors=calibration_vectors(tag))
        (folder / f"annotation/calibration/calibration-{stem}.xml").write_text(calibration)
        numbers[polarisation] = values
    return folder, numbers


def zip_safe(folder, path, *, top=True, backslashes=False):
    """Pack a product folder, with or without the folder itself, as Windows programs do or as others do."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                name = file.relative_to(folder.parent if top else folder).as_posix()
                info = zipfile.ZipInfo(name)
                info.filename = name.replace("/", "\\") if backslashes else name
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, file.read_bytes())
    return path
