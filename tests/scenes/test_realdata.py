import re
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint

from sar2eo.errors import PolarisationError, SceneError
from sar2eo.geo.windows import Window
from sar2eo.scenes import describe_scene, find_reader, open_scene
from sar2eo.scenes.lazy_array import decode_attributes

pytestmark = pytest.mark.realdata

# What every odd file comes to: options, then polarisations, quantity and valid share; or an error.
VERDICTS = {
    "capella_hh_complex64.tif": ({}, ("HH",), "amplitude"),
    "capella_quadpol_float32_4band.tif": ({"polarisations": "HH,HV,VH,VV"}, ("HH", "HV", "VH", "VV"), "db"),
    "s1_vv_db_nodata_minus99_utm31n.tif": ({}, ("VV",), "db"),
    "s1_vv_vh_db_float32_utm.tif": ({}, ("VV", "VH"), "db"),
    "s1rtc_vv_vh_db_float64_282D_485L_3_3.tif": ({}, ("VV", "VH"), "db"),
    "s1rtc_vv_vh_db_float64_38D_378R_2_3.tif": ({}, ("VV", "VH"), "db"),
    "s1rtc_vv_vh_db_float64_637U_59R_1_3.tif": ({}, ("VV", "VH"), "db"),
    "s2_13band_uint16_utm.tif": (SceneError, "13 bands"),
    "s2rgb_282D_485L_3_3.tif": (SceneError, "optical"),
    "s2rgb_38D_378R_2_3.tif": (SceneError, "optical"),
    "s2rgb_637U_59R_1_3.tif": (SceneError, "optical"),
    "worldview_rgb_of_capella.tif": (SceneError, "optical"),
    "s1_iw_grdh_annotation_vv.xml": (SceneError, ".SAFE folder"),
}


def test_every_odd_file_has_a_verdict(real_data):
    assert {path.name for path in (real_data / "odd").iterdir()} == set(VERDICTS)


@pytest.mark.parametrize("name", VERDICTS)
def test_odd_file(real_data, name):
    path, verdict = real_data / "odd" / name, VERDICTS[name]
    if len(verdict) == 2:
        error, text = verdict
        with pytest.raises(error, match=re.escape(text)):
            open_scene(path)
        return
    options, polarisations, quantity = verdict
    if options:
        with pytest.raises(PolarisationError, match="--pol"):
            open_scene(path)
    scene = open_scene(path, **options)
    assert scene.attrs["polarisations"] == polarisations
    assert scene.attrs["quantity"] == quantity
    with rasterio.open(path) as file:
        stored = file.read()
        placed = file.transform
    if scene.attrs["geolocation"] == "source grid":
        expected = stored.astype("float32")
        if "minus99" in name:
            expected[expected == -99] = np.nan
        np.testing.assert_array_equal(scene.values, expected)
        assert decode_attributes(scene)["scene_grid"].affine == placed
    else:
        assert decode_attributes(scene)["scene_grid"].transform[0] == 2.5
        valid = scene.values[np.isfinite(scene.values)]
        assert valid.size == pytest.approx(stored.size, rel=0.01)
        assert np.mean(valid.astype(float) ** 2) == pytest.approx(
            np.mean(np.abs(stored.astype(complex)) ** 2), rel=0.2
        )


@pytest.mark.parametrize(
    ("name", "day", "metres"),
    [
        ("la_west", "2020-11-07", 8.30),
        ("la_east", "2020-11-07", 8.31),
        ("san_antonio_west", "2020-12-04", 8.71),
    ],
)
def test_large_scenes(real_data, name, day, metres):
    scene = open_scene(real_data / f"scenes/{name}_sar.tif")
    said = describe_scene(scene)
    assert said["polarisations"] == ["VH"]
    assert (said["quantity"], said["calibration"], said["platform"]) == ("dn", "none", "Sentinel-1A")
    assert said["datetime"].startswith(day)
    assert said["ground_sample_distance_m"] == pytest.approx([metres, metres], abs=0.01)
    assert said["geolocation"] == "source grid"
    part = scene.isel(y=slice(3000, 3400), x=slice(2000, 2600))
    reader, window = find_reader(part)
    with rasterio.open(real_data / f"scenes/{name}_sar.tif") as file:
        stored = file.read(1, window=((3000, 3400), (2000, 2600))).astype("float32")
    np.testing.assert_array_equal(reader.read(window)[0], np.where(stored == 0, np.nan, stored))
    with pytest.raises(SceneError, match="optical"):
        open_scene(real_data / f"scenes/{name}_eo.tif")


@pytest.fixture(scope="module")
def swath(tmp_path_factory):
    """A sparse raster of the size and geolocation grid of a real product, with pixels in its middle."""
    annotation = Path(__file__).parents[3] / "shared/data/odd/s1_iw_grdh_annotation_vv.xml"
    if not annotation.is_file():
        pytest.skip("no real annotation beside the project")
    points = ElementTree.parse(annotation).iterfind(".//geolocationGridPoint")  # noqa: S314
    keys = ("line", "pixel", "longitude", "latitude")
    control = [[float(point.findtext(key)) for key in keys] for point in points]
    path = tmp_path_factory.mktemp("swath") / "vv.tif"
    profile = {"driver": "GTiff", "height": 16685, "width": 25368, "count": 1, "dtype": "uint16", "nodata": 0}
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True, "compress": "deflate"}
    with rasterio.open(
        path, "w", **profile, **tiles, crs=None, transform=rasterio.Affine(1, 0, 0, 0, 2, 0)
    ) as file:
        given = [GroundControlPoint(r + 0.5, c + 0.5, x, y) for r, c, x, y in control]
        file.gcps = (given, rasterio.CRS.from_epsg(4326))
        draw = np.random.default_rng(1).rayleigh(300, (3072, 3072)).astype("uint16") + 1
        file.write(draw, 1, window=((7168, 10240), (10240, 13312)))
    return path


def test_a_real_swath_is_placed_within_seconds_and_metres(swath):
    start = time.perf_counter()
    scene = open_scene(swath)
    assert time.perf_counter() - start < 5
    assert decode_attributes(scene)["scene_grid"].crs == "EPSG:32632"
    assert decode_attributes(scene)["scene_grid"].transform[0] == 10
    assert 1 < scene.attrs["geolocation_rmse_m"] < 24
    rows, cols = scene.shape[1:]
    assert 16_685 < rows < 24_000
    assert 25_368 < cols < 30_000


def test_a_real_swath_read_in_pieces_equals_the_whole(swath):
    reader, _ = find_reader(open_scene(swath))
    at_row, at_col = reader.mapping.ground(np.array([8700.0]), np.array([11800.0]))
    col, row = ~reader.grid.affine @ (at_row[0], at_col[0])
    whole_window = Window(int(row) - 350, int(col) - 420, 700, 840)
    whole = reader.read(whole_window)
    assert np.isfinite(whole).mean() > 0.99
    draw = np.random.default_rng(5)
    for _ in range(12):
        height, width = (int(n) for n in draw.integers(1, 300, 2))
        r, c = int(draw.integers(700 - height)), int(draw.integers(840 - width))
        part = reader.read(Window(whole_window.row + r, whole_window.col + c, height, width))
        assert part.tobytes() == whole[:, r : r + height, c : c + width].tobytes()
