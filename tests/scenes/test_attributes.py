"""Attributes go through netCDF, and mean the same afterwards."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from support.scene_fixtures import speckle, write_raster

import sar2eo
from sar2eo.geo.grid import Grid
from sar2eo.scenes.lazy_array import decode_attributes, encode_attributes

GRID = Grid.create("EPSG:32633", Affine(10.1, 0, 500_000.3, 0, -10.1, 5_000_000.7), (37, 53))


def test_values_come_back() -> None:
    values = {
        "grid": GRID,
        "scene_grid": Grid(None, GRID.transform, (1, 2)),
        "settings": {"steps": 8, "spacing": "trailing", "region": [0, 1], "scaling": None},
        "terrain_corrected": False,
        "polarisations": ("VV", "VH"),
        "source": "{not JSON",
        "gain": 0.1,
    }
    stored = encode_attributes({**values, "datetime": None})
    assert all(isinstance(value, str | int | float | tuple) for value in stored.values())
    assert not any(isinstance(value, bool) for value in stored.values())
    assert decode_attributes(xr.Dataset(attrs=stored)) == values


def test_what_users_put_there_stays() -> None:
    attrs = {"grid": GRID, "settings": {"steps": 8}, "datetime": None, "terrain_corrected": None}
    assert decode_attributes(xr.DataArray(0, attrs=attrs)) == attrs


@pytest.fixture
def scene(tmp_path: Path) -> xr.DataArray:
    return sar2eo.open_scene(write_raster(tmp_path / "s1_vv.tif", speckle((37, 53))), quantity="amplitude")


def test_scenes_and_results_are_written_as_netcdf(scene: xr.DataArray, tmp_path: Path) -> None:
    result = sar2eo.translate(scene, "identity", tile=32, overlap=8)
    for name, whole in {"scene": scene.to_dataset(), "result": result}.items():
        path = tmp_path / f"{name}.nc"
        whole.to_netcdf(path, engine="h5netcdf")
        with xr.open_dataset(path, engine="h5netcdf") as again:
            for variable in whole.data_vars:
                np.testing.assert_array_equal(again[variable].values, whole[variable].values)
            array = again["sar"] if name == "scene" else again
            known = decode_attributes(scene if name == "scene" else result)
            kept = decode_attributes(array)
            grid = "scene_grid" if name == "scene" else "grid"
            assert kept[grid] == known[grid] == decode_attributes(scene)["scene_grid"]
            assert kept.get("settings") == known.get("settings")
            assert kept["quantity"] == "amplitude"


def test_a_scene_read_from_netcdf_is_translated_alike(scene: xr.DataArray, tmp_path: Path) -> None:
    scene.to_netcdf(tmp_path / "scene.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "scene.nc", engine="h5netcdf", decode_coords="all") as again:
        one, other = (
            sar2eo.translate(each, "identity", tile=32, overlap=8, scaling=(200.0,))["eo"].values
            for each in (scene, again["sar"])
        )
    np.testing.assert_array_equal(one, other)
