"""Slips and oddities that users bring, each of which once ended badly."""

import numpy as np
import pytest
import rasterio
from scenes import CRS, TRANSFORM, amplitude, write_scene

import sar2eo
from sar2eo.errors import SettingsError
from sar2eo.grid import Grid


@pytest.mark.parametrize("bounds", [(33.7, -118.3, 33.8, -118.2), (-1e9, -1e9, 1e9, 1e9)])
def test_bounds_that_are_nowhere_on_earth_are_a_slip_of_the_user(
    bounds: tuple[float, float, float, float],
) -> None:
    with pytest.raises(SettingsError, match="longitude before latitude"):
        Grid.create("EPSG:3395", TRANSFORM, (100, 100)).window_of(bounds, "EPSG:4326")


@pytest.mark.parametrize("shape", [(600, 1), (1, 600), (1, 1), (2100, 2)])
def test_scenes_of_one_row_or_column_are_written(shape: tuple[int, int], tmp_path) -> None:
    source = write_scene(tmp_path / "scene.tif", amplitude(shape, 3))
    eo = sar2eo.translate(sar2eo.open_scene(source), "identity", scaling=(255.0,))
    sar2eo.write_cog(eo, tmp_path / "eo.tif")
    with rasterio.open(tmp_path / "eo.tif") as raster, rasterio.open(source) as scene:
        assert (raster.shape, raster.transform, raster.crs) == (
            shape,
            TRANSFORM,
            rasterio.CRS.from_string(CRS),
        )
        np.testing.assert_array_equal(raster.read(1), scene.read(1))
