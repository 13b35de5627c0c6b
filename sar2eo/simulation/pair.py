"""Simulated pairs of SAR and EO scenes with their truth, in memory and as GeoTIFFs like real ones."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile

from sar2eo.errors import OutputError
from sar2eo.geo.grid import Grid, ignore_missing_georeference
from sar2eo.simulation.fields import GSD_M, MARGIN, FloatArray, SimulationSettings, stream
from sar2eo.simulation.landscape import LandCover, make_landscape
from sar2eo.simulation.objects import ObjectKind, ObjectState, PlantedObject, plant_objects
from sar2eo.simulation.sensors import expected_power, render_eo, speckled_amplitude
from sar2eo.store.atomic import write_unseen

CRS = "EPSG:32611"
"""UTM zone 11 north."""

SETTINGS_TAG = "SIMULATION"
"""Tag of every simulated file that holds the settings as JSON: equal text, equal pixels."""

BLOCK = 512
SAR_TIME = "2021:06:15 13:52:41"
EO_TIME = "2021:06:12 18:35:41"

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SimulatedPair:
    """A simulated SAR scene, the EO scene of the same place, and the truth, on one grid.

    The truth is in the EO's geometry: with a shift, the SAR shows an object that far from its mask.

    Parameters
    ----------
    sar : ndarray of float32, shape (polarisation, H, W)
        Amplitude, the square root of sigma nought; NaN without data.
    backscatter : ndarray of float32, shape (polarisation, H, W)
        The same without speckle, everywhere: the square root of the expected intensity.
    sar_valid, eo_valid : ndarray of bool, shape (H, W)
        Where the scenes have data.
    eo : ndarray of uint8, shape (3, H, W)
        Red, green, blue; 0 without data.
    land_cover, label : ndarray, shape (H, W)
        `LandCover` of each pixel, and the number of the planted object there, 0 for none.
    objects : tuple of PlantedObject
        Every planted object, by number.
    """

    settings: SimulationSettings
    grid: Grid
    sar: FloatArray
    backscatter: FloatArray
    sar_valid: BoolArray
    eo: npt.NDArray[np.uint8]
    eo_valid: BoolArray
    land_cover: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint16]
    objects: tuple[PlantedObject, ...]


def simulate_pair(settings: SimulationSettings) -> SimulatedPair:
    """Simulate a SAR and an EO scene of one place, a few days apart, with known truth.

    The same settings give the same pixels; another shift gives the same place, another set of polarisations
    the same bands where they agree.
    """
    landscape = make_landscape(settings)
    sar_valid, eo_valid = _edges(settings)
    rows, cols = settings.shape
    inner = np.s_[..., MARGIN : MARGIN + rows, MARGIN : MARGIN + cols]
    both = np.zeros(settings.canvas, dtype=bool)
    both[inner] = sar_valid & eo_valid
    objects = plant_objects(landscape, both)
    eo = render_eo(landscape, objects)[inner]
    eo[:, ~eo_valid] = 0
    backscatter = np.empty((len(settings.polarisations), rows, cols), dtype=np.float32)
    sar = np.empty_like(backscatter)
    for band, polarisation in enumerate(settings.polarisations):
        power = expected_power(landscape, objects, polarisation)
        sar[band] = speckled_amplitude(settings, power, polarisation)
        np.sqrt(power, out=backscatter[band])
    sar[:, ~sar_valid] = np.nan
    draw = stream(settings.seed, "place")
    east, north = (float(draw.integers(*limits)) * 400 for limits in ((800, 1500), (9300, 9700)))
    transform = Affine(GSD_M, 0, east, 0, -GSD_M, north)
    return SimulatedPair(
        settings=settings,
        grid=Grid.create(CRS, transform, settings.shape),
        sar=sar,
        backscatter=backscatter,
        sar_valid=sar_valid,
        eo=eo,
        eo_valid=eo_valid,
        land_cover=landscape.cover[inner],
        label=objects.label[inner],
        objects=objects.planted,
    )


def _edges(settings: SimulationSettings) -> tuple[BoolArray, BoolArray]:
    """Return the valid pixels of the SAR and of the EO, each cut by the slanted edge of its product."""
    rows, cols = settings.shape
    if not settings.nodata_edges:
        return np.ones((rows, cols), dtype=bool), np.ones((rows, cols), dtype=bool)
    draw = stream(settings.seed, "edges")
    row = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
    col = np.linspace(0, 1, cols, dtype=np.float32)[None, :]
    slant = np.float32(draw.uniform(0.05, 0.11))
    sar = (col > slant * row) & (row > slant * 0.6 * (1 - col))
    slant = np.float32(draw.uniform(0.06, 0.12))
    return sar, col < 1 - slant * (1 - row)


def write_pair(pair: SimulatedPair, folder: Path) -> dict[str, Path]:
    """Write a pair as three GeoTIFFs; return their paths by name, "sar", "eo" and "truth".

    =============  =================================================================================
    ``sar.tif``    uint8 digital numbers: amplitude over the scene's 99th percentile, clipped to 1,
                   times 255; valid pixels at least 1, nodata 0; a band per polarisation
    ``eo.tif``     red, green, blue uint8 with an internal mask
    ``truth.tif``  uint16: land cover, object kind, object state, object number; legends in the tags
    =============  =================================================================================

    Files of these names in the folder are replaced.
    """
    make_folder(folder)
    paths = _paths(folder)
    names = pair.settings.polarisations
    common = {"LICENSE": "Simulated; no rights reserved", "SENSOR": "simulated"}
    seed = f"SEED{pair.settings.seed:06d}"
    tags = {
        "TIFFTAG_DATETIME": SAR_TIME,
        "POLARIZATION": " ".join(names),
        "PRODUCT": f"SIM_IW_GRDH_1SDV_20210615T135241_20210615T135306_{seed}",
        "SCALING": "amplitude / 99th percentile of the scene, clipped to 0..1, x 255",
    }
    digital = np.stack([_digital_numbers(band) for band in pair.sar])
    files = {"sar": _encode(pair, digital, names, tags | common, nodata=0)}
    tags = {
        "TIFFTAG_DATETIME": EO_TIME,
        "PRODUCT": f"SIM_MSIL1C_20210612T183541_{seed}",
        "SCALING": "like reflectance / 99th percentile, clipped to 0..1, x 255",
    }
    files["eo"] = _encode(pair, pair.eo, ("red", "green", "blue"), tags | common, mask=pair.eo_valid)
    kind = np.array([0, *(found.kind for found in pair.objects)], dtype=np.uint16)
    state = np.array([0, *(found.state for found in pair.objects)], dtype=np.uint16)
    truth = np.stack([pair.land_cover.astype(np.uint16), kind[pair.label], state[pair.label], pair.label])
    tags = {
        legend.__name__: ", ".join(f"{entry.value} {entry.name.lower()}" for entry in legend)
        for legend in (LandCover, ObjectKind, ObjectState)
    }
    rows, cols = pair.settings.shift
    tags["SHIFT"] = f"{rows:g} rows, {cols:g} columns: the SAR against the EO and this truth"
    names = ("land cover", "object kind", "object state", "object number")
    files["truth"] = _encode(pair, truth, names, tags)
    for name, data in files.items():
        write_unseen(paths[name], data)
    return paths


def simulated_before(settings: SimulationSettings, folder: Path) -> bool:
    """Check whether a folder holds all that `write_pair` would write; other files are an error."""
    existing = [path for path in _paths(folder).values() if path.exists()]
    for path in existing:
        try:
            with ignore_missing_georeference(), rasterio.open(path) as dataset:
                found = dataset.tags().get(SETTINGS_TAG, "not simulated")
        except rasterio.errors.RasterioError:
            found = "no raster"
        if found != _settings_text(settings):
            raise OutputError(f"{path} is another file ({found}): choose another folder")
    return len(existing) == len(_paths(folder))


def make_folder(folder: Path) -> None:
    """Make a folder, if need be; `OutputError` if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make this folder: {error.strerror}") from error


def _paths(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.tif" for name in ("sar", "eo", "truth")}


def _settings_text(settings: SimulationSettings) -> str:
    return json.dumps(dataclasses.asdict(settings), sort_keys=True)


def _digital_numbers(amplitude: FloatArray) -> npt.NDArray[np.uint8]:
    valid = np.isfinite(amplitude)
    top = np.percentile(amplitude[valid], 99)
    scaled = np.clip(np.rint(amplitude * np.float32(255 / top)), 1, 255)
    return np.where(valid, scaled, 0).astype(np.uint8)


def _encode(
    pair: SimulatedPair,
    bands: npt.NDArray[Any],
    names: tuple[str, ...],
    tags: dict[str, str],
    *,
    nodata: int | None = None,
    mask: BoolArray | None = None,
) -> bytes:
    """Return the bytes of a GeoTIFF."""
    profile = {
        "driver": "GTiff", "dtype": bands.dtype, "count": len(bands), "nodata": nodata,
        "height": pair.grid.shape[0], "width": pair.grid.shape[1],
        "crs": pair.grid.crs, "transform": pair.grid.affine,
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "predictor": 2,
        "photometric": "minisblack" if mask is None else "RGB",
    }  # fmt: skip
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile(ext=".tif") as file:
        with file.open(**profile) as dataset:
            dataset.descriptions = names
            dataset.update_tags(**tags, **{SETTINGS_TAG: _settings_text(pair.settings)})
            dataset.write(bands)
            if mask is not None:
                dataset.write_mask(mask)
                dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        return bytes(file.getbuffer())
