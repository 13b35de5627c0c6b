"""SAR scenes that chips are cut from: small values that a worker can be sent."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sar2eo.errors import GeoreferenceError, PairsWarning, PolarisationError, RadiometryError, SettingsError
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import POLARISATIONS, sample_percentiles, to_amplitude
from sar2eo.scenes import SceneReader, find_reader, open_scene
from sar2eo.scenes.gdal import gdal_path, open_dataset
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.scenes.raster import RasterReader, open_raster
from sar2eo.settings import PairsSettings, SceneSettings

# Integers that float32 holds exactly, so that what is read can be written back as it was.
_EXACT = ("uint8", "int8", "uint16", "int16")


@dataclass(frozen=True, eq=False)
class SarScene:
    """A SAR scene on the grid that chips are cut from."""

    href: str  # as it was given
    reader: SceneReader
    # Type that chips are stored as: the scene's own where values are read as they are stored, else float32
    dtype: str
    quantity: str  # what the values are
    calibration: str | None

    @property
    def grid(self) -> Grid:
        """Place and shape of the whole scene."""
        return self.reader.grid

    def percentiles(self) -> tuple[float, ...]:
        """Estimate the 99th percentile of the scene's amplitude, for each polarisation."""
        try:
            return sample_percentiles(
                lambda window: to_amplitude(self.reader.read(window), self.quantity), self.grid.shape
            )
        except RadiometryError as error:
            raise RadiometryError(f"{self.href}: {error}") from error


def open_sar_scene(href: str, settings: PairsSettings, scene: SceneSettings) -> tuple[SarScene, xr.DataArray]:
    """Open a SAR scene to cut chips from, as it is and as `sar2eo.open_scene` returns it.

    `href` and `scene` are as `sar2eo.open_scene` takes them. The resolution is that of `settings`. A
    `PairsWarning` is given if the scene is not terrain-corrected: relief displaces what it shows.
    """
    options = dataclasses.asdict(scene)
    if settings.resolution != "native":
        options["resolution"] = settings.resolution
    array = open_scene(href, **options)
    found = find_reader(array)
    assert found is not None  # noqa: S101  (it was opened just now)
    reader, attrs = found[0], decode_attributes(array)
    if reader.grid.crs is None:
        raise GeoreferenceError(f"{href}: without a georeference it cannot be paired")
    if settings.resolution != "native":
        _check_metres(reader.grid, href)
    if attrs.get("terrain_corrected") is False:
        warnings.warn(
            f"{href}: not terrain-corrected ({attrs['geolocation']}): relief displaces what it shows by "
            "up to its height, which no smooth alignment corrects; prefer a terrain-corrected product",
            PairsWarning,
            stacklevel=2,
        )
    opened_scene = SarScene(
        href=href,
        reader=reader,
        dtype=_stored_dtype(reader),
        quantity=attrs["quantity"],
        calibration=attrs.get("calibration"),
    )
    return opened_scene, array


def fill_unknown(source: str | Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Complete options of `sar2eo.open_scene` for a scene that does not say what it is.

    For uses that look at structure alone: bands are named in order, and values taken for amplitude.
    """
    filled = dict(options)
    while True:
        try:
            open_scene(source, **filled)
        except PolarisationError:
            if filled.get("polarisations") is not None:
                raise
            filled["polarisations"] = POLARISATIONS[: len(open_raster(gdal_path(source)).bands)]
        except RadiometryError:
            if filled.get("quantity") is not None or filled.get("calibrate") is not None:
                raise
            filled["quantity"] = "amplitude"
        else:
            return filled


def _check_metres(grid: Grid, href: str) -> None:
    unit = grid.pyproj_crs.axis_info[0]
    if unit.unit_conversion_factor != 1 or unit.unit_name != "metre":
        raise SettingsError(
            f"{href}: its grid counts in {unit.unit_name}, and --resolution in metres: give a --crs in metres"
        )


def _stored_dtype(reader: SceneReader) -> str:
    """Return the type of the file's numbers if the reader passes them on unchanged, in float32."""
    if not isinstance(reader, RasterReader) or any(b.scale != 1 or b.offset != 0 for b in reader.bands):
        return "float32"
    found = set()
    for band in reader.bands:
        with open_dataset(band.path) as dataset:
            found.add(np.dtype(dataset.dtypes[band.index - 1]).name)
    return found.pop() if len(found) == 1 and found <= set(_EXACT) else "float32"
