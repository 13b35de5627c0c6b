"""Simulated scenes as GeoTIFFs like real ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import ColorInterp

from sar2eo.errors import OutputError
from sar2eo.geo.grid import ignore_missing_georeference
from sar2eo.simulation.landscape import LandCover
from sar2eo.simulation.objects import ObjectKind, ObjectState
from sar2eo.simulation.pair import SimulatedPair, SimulatedScene
from sar2eo.simulation.settings import SimulationSettings
from sar2eo.store.atomic import atomic_file

__all__ = ["SETTINGS_TAG", "make_folder", "settings_tag", "simulated_before", "write_pair", "write_scene"]

SETTINGS_TAG = "SIMULATION"
"""Tag that holds the settings, as `settings_tag` writes them."""

BLOCK = 512
SAR_TIME = "2021:06:15 13:52:41"
EO_TIME = "2021:06:12 18:35:41"
LICENCE = "Simulated; no rights reserved"


def write_pair(pair: SimulatedPair, folder: Path) -> dict[str, Path]:
    """Write a pair as three GeoTIFFs.

    =============  =================================================================================
    ``sar.tif``    uint8 digital numbers: amplitude over the scene's 99th percentile, clipped to 1,
                   times 255; valid pixels at least 1, nodata 0; a band per polarisation
    ``eo.tif``     red, green, blue uint8 with an internal mask
    ``truth.tif``  uint16: land cover, object kind, object state, object number; legends in the tags
    =============  =================================================================================

    Parameters
    ----------
    pair : SimulatedPair
        What to write.
    folder : Path
        Made if it is not there; files of these names in it are replaced.

    Returns
    -------
    dict of str to Path
        ``"sar"``, ``"eo"`` and ``"truth"``.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    make_folder(folder)
    paths = _paths(folder)
    write_scene(pair, paths["sar"])
    _write_eo(pair, paths["eo"])
    _write_truth(pair, paths["truth"])
    return paths


def simulated_before(settings: SimulationSettings, folder: Path) -> bool:
    """Tell whether a folder holds the whole of what `write_pair` would write there.

    Raises
    ------
    OutputError
        If one of the files is there and is another's.
    """
    there = [path for path in _paths(folder).values() if path.exists()]
    for path in there:
        try:
            with ignore_missing_georeference(), rasterio.open(path) as dataset:
                found = dataset.tags().get(SETTINGS_TAG, "not simulated")
        except rasterio.errors.RasterioError:
            found = "no raster"
        if found != settings_tag(settings):
            raise OutputError(f"{path} is there, and is another file ({found}): choose another folder")
    return len(there) == len(_paths(folder))


def _paths(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.tif" for name in ("sar", "eo", "truth")}


def settings_tag(settings: SimulationSettings) -> str:
    """Return settings as the text that every simulated file carries: equal text, equal pixels."""
    return json.dumps(dataclasses.asdict(settings), sort_keys=True)


def write_scene(scene: SimulatedScene, path: Path) -> Path:
    """Write only the SAR scene, as `write_pair` does, and return its path."""
    make_folder(path.parent)
    names = scene.settings.polarisations
    tags = {
        "TIFFTAG_DATETIME": SAR_TIME,
        "LICENSE": LICENCE,
        "POLARIZATION": " ".join(names),
        "PRODUCT": f"SIM_IW_GRDH_1SDV_20210615T135241_20210615T135306_{_identity(scene)}",
        "SCALING": "amplitude / 99th percentile of the scene, clipped to 0..1, x 255",
        "SENSOR": "simulated",
    }
    digital = np.stack([_digital_numbers(band) for band in scene.sar])
    _write(path, scene, digital, names, tags, nodata=0, photometric="minisblack")
    return path


def _digital_numbers(amplitude: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    valid = np.isfinite(amplitude)
    top = np.percentile(amplitude[valid], 99)
    scaled = np.clip(np.rint(amplitude * np.float32(255 / top)), 1, 255)
    return np.where(valid, scaled, 0).astype(np.uint8)


def _write_eo(pair: SimulatedPair, path: Path) -> None:
    tags = {
        "TIFFTAG_DATETIME": EO_TIME,
        "LICENSE": LICENCE,
        "PRODUCT": f"SIM_MSIL1C_20210612T183541_{_identity(pair)}",
        "SCALING": "like reflectance / 99th percentile, clipped to 0..1, x 255",
        "SENSOR": "simulated",
    }
    _write(path, pair, pair.eo, ("red", "green", "blue"), tags, mask=pair.eo_valid, photometric="RGB")


def _write_truth(pair: SimulatedPair, path: Path) -> None:
    kind = np.array([0, *(found.kind for found in pair.objects)], dtype=np.uint16)
    state = np.array([0, *(found.state for found in pair.objects)], dtype=np.uint16)
    bands = np.stack([pair.land_cover.astype(np.uint16), kind[pair.label], state[pair.label], pair.label])
    tags = {
        legend.__name__: ", ".join(f"{entry.value} {entry.name.lower()}" for entry in legend)
        for legend in (LandCover, ObjectKind, ObjectState)
    }
    tags["SHIFT"] = "{:g} rows, {:g} columns: the SAR against the EO and this truth".format(
        *pair.settings.shift
    )
    names = ("land cover", "object kind", "object state", "object number")
    _write(path, pair, bands, names, tags, photometric="minisblack")


def _identity(scene: SimulatedScene) -> str:
    return f"SEED{scene.settings.seed:06d}"


def make_folder(folder: Path) -> None:
    """Make a folder, if need be.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make this folder: {error.strerror}") from error


def _write(
    path: Path,
    scene: SimulatedScene,
    bands: npt.NDArray[Any],
    names: tuple[str, ...],
    tags: dict[str, str],
    *,
    photometric: str,
    nodata: int | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
) -> None:
    profile = {
        "driver": "GTiff", "dtype": bands.dtype, "count": len(bands), "nodata": nodata,
        "height": scene.grid.shape[0], "width": scene.grid.shape[1],
        "crs": scene.grid.crs, "transform": scene.grid.affine,
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK,
        "compress": "deflate", "predictor": 2, "photometric": photometric,
    }  # fmt: skip
    try:
        with (
            atomic_file(path) as temporary,
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(temporary, "w", **profile) as dataset,
        ):
            dataset.descriptions = names
            dataset.update_tags(**tags, **{SETTINGS_TAG: settings_tag(scene.settings)})
            dataset.write(bands)
            if mask is not None:
                dataset.write_mask(mask)
                dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    except rasterio.errors.RasterioError as error:
        raise OutputError(f"{path}: cannot be written: {error}") from error
