import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from support.scene_fixtures import speckle, write_raster, write_safe, zip_safe

from sar2eo.errors import PairsError, PairsWarning, SceneError
from sar2eo.geo.grid import Grid
from sar2eo.scenes.band_names import BandText, choose_rgb, find_cloud_rule, find_colour
from sar2eo.scenes.metadata import platform_name
from sar2eo.scenes.optical import open_eo_scene
from sar2eo.scenes.sources import Source, expand_sources

UTM = "EPSG:32633"
TARGET = Grid(UTM, (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0), (60, 80))
RANGE = (0.0, 3000.0)
TIFF = "image/tiff; application=geotiff"


def rgb_values(shape, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (3, *shape), dtype=np.uint8)


def write_rgb(path, values, grid=TARGET, **more):
    more = {"photometric": "RGB", **more}
    return str(write_raster(path, values, crs=grid.crs, transform=grid.affine, **more))


def centres(grid, crs=UTM):
    rows, cols = np.indices(grid.shape)
    x, y = grid.affine @ (cols + 0.5, rows + 0.5)
    return Transformer.from_crs(grid.crs, crs, always_xy=True).transform(x, y)


def pattern(x, y, shift=(0.0, 0.0)):
    """A smooth picture of ground coordinates; `shift` moves it by pixels of 10 m down and right."""
    x, y = x - 500_000 - 10 * shift[1], y - 5_000_000 + 10 * shift[0]
    waves = [(410.0, 290.0), (350.0, 530.0), (270.0, 330.0)]
    return np.stack([128 + 100 * np.sin(2 * np.pi * x / a) * np.cos(2 * np.pi * y / b) for a, b in waves])


def measured_shift(found, valid):
    """Shift (rows, cols) of what was found against the pattern, by least squares on its slopes."""
    x, y = centres(TARGET)
    slopes = [
        (pattern(x, y, (0.05, 0)) - pattern(x, y, (-0.05, 0))) / 0.1,
        (pattern(x, y, (0, 0.05)) - pattern(x, y, (0, -0.05))) / 0.1,
    ]
    system = np.stack([slope[:, valid].ravel() for slope in slopes], axis=1)
    return np.linalg.lstsq(system, (found - pattern(x, y))[:, valid].ravel(), rcond=None)[0]


# Other zone and pixel, finer, coarser, geographic, rotated, bottom-up.
GRIDS = {
    "same zone, half a pixel off": Grid(UTM, (10.0, 0, 499_895.0, 0, -10.0, 5_000_105.0), (90, 110)),
    "other zone, 7 m": Grid("EPSG:32632", (7.0, 0, 971_550.0, 0, -7.0, 5_017_670.0), (120, 140)),
    "finer, 2.5 m": Grid(UTM, (2.5, 0, 499_900.0, 0, -2.5, 5_000_100.0), (330, 420)),
    "finer, 3.7 m": Grid(UTM, (3.7, 0, 499_900.0, 0, -3.7, 5_000_100.0), (230, 290)),
    "coarser, 15 m": Grid(UTM, (15.0, 0, 499_900.0, 0, -15.0, 5_000_100.0), (60, 80)),
    "geographic": Grid("EPSG:4326", (1e-4, 0, 14.998, 0, -1e-4, 45.154), (90, 140)),
    "bottom-up": Grid(UTM, (9.0, 0, 499_900.0, 0, 9.0, 4_999_300.0), (100, 110)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_another_crs_and_resolution_lands_within_a_fiftieth_of_a_pixel(tmp_path, name):
    grid = GRIDS[name]
    x, y = centres(grid)
    path = write_rgb(tmp_path / "eo.tif", np.rint(pattern(x, y)).astype(np.uint8), grid)
    patch = open_eo_scene(path, eo_range=RANGE).read_onto(TARGET)
    assert patch.valid.mean() > 0.95
    assert np.abs(measured_shift(patch.rgb.astype(float), patch.valid)).max() < 0.02
    error = (patch.rgb - pattern(*centres(TARGET)))[:, patch.valid]
    assert np.abs(error).max() < 4


def test_the_measure_of_shift_sees_half_a_pixel():
    moved = pattern(*centres(TARGET), shift=(0.5, -0.25))
    np.testing.assert_allclose(measured_shift(moved, np.ones(TARGET.shape, bool)), (0.5, -0.25), atol=0.01)


@settings(max_examples=30)
@given(st.integers(-70, 70), st.integers(-70, 90), st.integers(1, 50), st.integers(1, 50))
def test_coinciding_pixels_are_copied(tmp_path_factory, row, col, height, width):
    values = rgb_values(TARGET.shape)
    mask = np.random.default_rng(2).random(TARGET.shape) > 0.2
    path = tmp_path_factory.getbasetemp() / "copied.tif"
    if not path.exists():
        write_rgb(path, values, mask=mask)
    transform = TARGET.affine @ Affine.translation(col, row)
    patch = open_eo_scene(path, eo_range=RANGE).read_onto(Grid(UTM, transform[:6], (height, width)))
    room = 150
    padded = np.pad(np.where(mask, values, 0), ((0, 0), (room, room), (room, room)))
    there = np.pad(mask, room)
    rows, cols = slice(row + room, row + room + height), slice(col + room, col + room + width)
    np.testing.assert_array_equal(patch.rgb, padded[:, rows, cols])
    np.testing.assert_array_equal(patch.valid, there[rows, cols])
    assert (patch.rgb.dtype, patch.valid.dtype, patch.cloud) == (np.uint8, np.bool_, None)


@pytest.mark.parametrize("how", ["mask", "alpha", "nodata"])
@pytest.mark.parametrize("pixel", [2.0, 4.0, 10.0, 23.0])
def test_what_is_not_valid_does_not_bleed(tmp_path, how, pixel):
    size = int(600 / pixel) + 4
    grid = Grid(UTM, (pixel, 0, 500_003.0, 0, -pixel, 4_999_997.0), (size, size))
    valid = np.ones(grid.shape, bool)
    valid[: size // 3] = valid[:, size // 2 :] = False
    outside = 0 if how == "nodata" else 255
    values = np.where(valid, 100, outside).astype(np.uint8)[None].repeat(3, 0)
    values[0, valid] = 0  # a valid pixel may be as dark as nodata in one band
    if how == "alpha":
        values = np.concatenate([values, np.where(valid, 255, 0).astype(np.uint8)[None]])
        path = write_rgb(tmp_path / "eo.tif", values, grid, roles=["red", "green", "blue", "alpha"])
    elif how == "mask":
        path = write_rgb(tmp_path / "eo.tif", values, grid, mask=valid)
    else:
        path = write_rgb(tmp_path / "eo.tif", values, grid, nodata=0)
    patch = open_eo_scene(path, eo_range=RANGE).read_onto(TARGET)
    assert (patch.rgb[1:, patch.valid] == 100).all()
    assert (patch.rgb[0] == 0).all()
    assert (patch.rgb[:, ~patch.valid] == 0).all()
    # Valid where the centre of a pixel is, to within half a pixel of either grid.
    x, y = centres(TARGET)
    r, c = (4_999_997.0 - y) / pixel, (x - 500_003.0) / pixel
    slack = 0.5 + 5.0 / pixel
    inside = (r > size // 3 + slack) & (r < size - slack) & (c > slack) & (c < size // 2 - slack)
    beyond = (r < size // 3 - slack) | (c > size // 2 + slack) | (c < -slack) | (r > size + slack)
    assert inside.any()
    assert patch.valid[inside].all()
    assert not patch.valid[beyond].any()


def test_coarser_pixels_are_means(tmp_path):
    fine = Grid(UTM, (2.5, 0, 500_000.0, 0, -2.5, 5_000_000.0), (240, 320))
    values = rgb_values(fine.shape)
    path = write_rgb(tmp_path / "eo.tif", values, fine)
    means = values.reshape(3, 60, 4, 80, 4).mean(axis=(2, 4))
    found = open_eo_scene(path, eo_range=RANGE).read_onto(TARGET).rgb
    assert np.abs(found - means).max() <= 0.5001


def test_a_scene_elsewhere_is_not_valid_anywhere(tmp_path):
    scene = open_eo_scene(write_rgb(tmp_path / "eo.tif", rgb_values(TARGET.shape)), eo_range=RANGE)
    for crs in (UTM, "EPSG:32632"):
        patch = scene.read_onto(Grid(crs, (10.0, 0, 900_000.0, 0, -10.0, 5_500_000.0), (8, 9)))
        assert not patch.valid.any()
        assert patch.rgb.shape == (3, 8, 9)
        assert not patch.rgb.any()


def test_across_the_antimeridian(tmp_path):
    grid = Grid("EPSG:32601", (10.0, 0, 165_600.0, 0, -10.0, 100_000.0), (60, 80))
    x, y = centres(grid, "EPSG:4326")
    west = Grid("EPSG:4326", (1e-4, 0, (x % 360).min() - 0.002, 0, -1e-4, y.max() + 0.002), (110, 130))
    assert (x % 360).min() < 180 < (x % 360).max()
    values = np.full((3, *west.shape), 77, np.uint8)
    patch = open_eo_scene(write_rgb(tmp_path / "eo.tif", values, west), eo_range=RANGE).read_onto(grid)
    assert patch.valid.all()
    assert (patch.rgb == 77).all()


def reflectance(count=13, seed=3):
    return np.random.default_rng(seed).integers(1, 3500, (count, *TARGET.shape), dtype=np.uint16)


def as_bytes(numbers, low=0.0, high=3000.0):
    return np.clip(np.rint((numbers.astype(np.float64) - low) * 255 / (high - low)), 0, 255)


def near(found, expected):
    """Rounding of halves in float32 may differ."""
    assert np.abs(found.astype(float) - expected).max() <= 1
    assert (found != expected).mean() < 3e-3


def test_thirteen_bands_of_sentinel2_in_their_order(tmp_path):
    values = reflectance()
    values[:, 5, 7] = 0
    values[3, 6, 8] = 0  # red ends before the others
    path = write_raster(tmp_path / "s2.tif", values)
    scene = open_eo_scene(path, eo_range=RANGE)
    patch = scene.read_onto(TARGET)
    assert scene.kind == "reflectance"
    assert not patch.valid[5, 7]
    assert not patch.valid[6, 8]
    assert patch.valid.sum() == patch.valid.size - 2
    near(patch.rgb[:, patch.valid], as_bytes(values[[3, 2, 1]][:, patch.valid]))
    facts = scene.facts()
    assert facts["indexes"] == [4, 3, 2]
    assert (facts["range"], facts["offset"]) == ([0.0, 3000.0], 0.0)
    json.dumps(facts)


def test_offsets_are_honoured(tmp_path):
    values = np.maximum(reflectance(3), 1001).astype(np.uint16)
    names = ["B02", "B03", "B04"]
    expected = as_bytes(values[::-1].astype(float) - 1000)
    plain = write_raster(tmp_path / "a.tif", values, names=names)
    by_file = write_raster(tmp_path / "b.tif", values, names=names, scale=1e-4, offset=-0.1)
    by_tag = write_raster(tmp_path / "c.tif", values, names=names, tags={"BOA_ADD_OFFSET": "-1000"})
    near(open_eo_scene(plain, eo_range=RANGE).read_onto(TARGET).rgb, as_bytes(values[::-1]))
    for path in (by_file, by_tag):
        scene = open_eo_scene(path, eo_range=RANGE)
        near(scene.read_onto(TARGET).rgb, expected)
        assert scene.facts()["offset"] == pytest.approx(-1000)


def test_a_product_that_must_have_an_offset_is_warned_of(tmp_path):
    stem = "S2B_MSIL2A_20220304T050607_{}_R019_T33TWL_20220304T071135.tif"
    new, old = (
        write_raster(tmp_path / stem.format(baseline), reflectance(3), names=["blue", "green", "red"])
        for baseline in ("N0510", "N0301")
    )
    with pytest.warns(PairsWarning, match=r"\(0510\) is stored with 1000 added"):
        open_eo_scene(new, eo_range=RANGE)
    assert open_eo_scene(old, eo_range=RANGE).facts()["offset"] == 0
    with rasterio.open(new, "r+") as file:
        file.offsets = (-1000,) * 3
    assert open_eo_scene(new, eo_range=RANGE).facts()["offset"] == -1000


def test_a_range_that_leaves_the_scene_black_is_refused(tmp_path):
    values = reflectance(3).astype(np.float32) / 10_000
    path = write_raster(tmp_path / "a.tif", values, names=["red", "green", "blue"])
    with pytest.raises(PairsError, match=r"values reach 0\.3.*black: give --eo-range"):
        open_eo_scene(path, eo_range=RANGE)
    patch = open_eo_scene(path, eo_range=(0.0, 0.3)).read_onto(TARGET)
    near(patch.rgb, as_bytes(values, 0, 0.3))


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        ("Red (665 nm)", "red"), ("green", "green"), ("SR_B2 blue", "blue"), ("B04", None),
        ("red edge 1", None), ("rededge", None), ("B8A", None), ("red/green", None), ("", None),
        ("coastal_blue", None), ("green_i", None), ("Infra Red", None),
    ],
)  # fmt: skip
def test_colours_by_name(text, colour):
    assert find_colour(text) == colour


def test_bands_by_role_wavelength_and_number():
    plain = [BandText(i, ()) for i in range(1, 5)]
    nanometres = [BandText(i, (f"x{i}",), value) for i, value in enumerate((0.842, 0.49, 0.56, 0.665), 1)]
    roles = [BandText(i, (), None, role) for i, role in enumerate(("nir", "blue", "green", "red"), 1)]
    assert choose_rgb(nanometres, "uint16") == (4, 3, 2)
    assert choose_rgb(roles, "uint16") == (4, 3, 2)
    assert choose_rgb(plain[:3], "uint8") == (1, 2, 3)
    assert choose_rgb(plain[:3], "uint16") is None
    assert choose_rgb(plain, "uint16") is None


S2 = [f"B{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8)]
DOVE = ["coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"]


@pytest.mark.parametrize(
    ("sensor", "names", "expected"),
    [
        # https://www.usgs.gov/faqs/what-are-band-designations-landsat-satellites
        ("Landsat-5", ["SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B7"], (3, 2, 1)),
        ("Landsat-7", ["B4", "B3", "B2", "B1"], (2, 3, 4)),
        ("LANDSAT_8", ["SR_B2", "SR_B3", "SR_B4"], (3, 2, 1)),
        ("", ["SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6", "SR_B7"], (4, 3, 2)),
        ("Landsat-9", [""] * 7, (4, 3, 2)),
        ("Landsat-5 MSS", ["B1", "B2", "B3", "B4"], None),
        ("", ["SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B7"], None),
        ("", ["B4", "B3", "B2"], None),
        ("", ["B2", "B3", "B4", "B8"], (3, 2, 1)),
        ("", ["B04", "B03", "B02"], (1, 2, 3)),
        ("Sentinel-2A", ["b4", "b3", "b2"], (1, 2, 3)),
        ("", [*S2, "B8A", "B9", "B11", "B12"], (4, 3, 2)),
        ("HLS-L30", ["B02", "B03", "B04", "B05"], (3, 2, 1)),
        ("MODIS", [f"sur_refl_b0{n}" for n in range(1, 8)], (1, 4, 3)),
        ("", [f"sur_refl_b0{n}" for n in range(1, 8)], (1, 4, 3)),
        ("", ["Oa04_radiance", "Oa06_radiance", "Oa08_radiance"], (3, 2, 1)),
        ("", DOVE, (6, 4, 2)),
        ("PlanetScope", [""] * 8, (6, 4, 2)),
        ("PlanetScope", ["B1", "B2", "B3", "B4"], (3, 2, 1)),
        ("PlanetScope", [""] * 3, (1, 2, 3)),
        ("SkySat", [""] * 4, (3, 2, 1)),
        ("RapidEye", [""] * 5, (3, 2, 1)),
        ("Gaofen-2", [""] * 4, (3, 2, 1)),
        ("Gaofen-4", [""] * 5, (4, 3, 2)),
        ("WorldView-3", [""] * 8, (5, 3, 2)),
        ("WorldView-3", [""] * 4, (3, 2, 1)),
        ("ASTER", ["B1", "B2", "B3N"], None),
        ("", ["Band 48 (664.6 nm)", "Band 35 (559 nm)", "Band 16 (489.5 nm)", "Band 70 (842 nm)"], (1, 2, 3)),
        ("", ["red_20230601", "green_20230601", "blue_20230601", "red_20230613"], None),
    ],
)  # fmt: skip
def test_band_numbers_are_those_of_the_sensor(tmp_path, sensor, names, expected):
    path = tmp_path / "a.tif"
    write_raster(path, np.ones((len(names), 9, 9), np.uint16), names=names)
    with rasterio.open(path) as dataset:
        bands = [BandText.read(dataset, index) for index in dataset.indexes]
    assert choose_rgb(bands, "uint16", platform_name(sensor) or "") == expected


@pytest.mark.parametrize(
    "name", ["20170831_172754_101c_3B_AnalyticMS.tif", "20191014_083416_ssc9d1_0018_analytic.tif"]
)
def test_planets_photometric_lies_and_the_numbers_given_count(tmp_path, name):
    values = np.stack([np.full(TARGET.shape, v, np.uint16) for v in (500, 900, 1700, 2900)])
    path = write_raster(tmp_path / name, values, photometric="RGB")
    assert open_eo_scene(path, eo_range=RANGE).facts()["indexes"] == [3, 2, 1]
    assert open_eo_scene(path, eo_range=RANGE, eo_bands=(4, 3, 2)).facts()["indexes"] == [4, 3, 2]
    unknown = write_raster(tmp_path / "a.tif", values, photometric="RGB")
    with pytest.raises(PairsError, match="--eo-bands R,G,B"):
        open_eo_scene(unknown, eo_range=RANGE)
    with pytest.raises(PairsError, match="--eo-bands names band 5, and it has 4"):
        open_eo_scene(unknown, eo_range=RANGE, eo_bands=(5, 3, 2))


LANDSAT = "LC08_L2SP_193028_20230610_20230620_02_T1"


@pytest.mark.parametrize(
    ("folder", "names", "expected", "platform"),
    [
        (LANDSAT, [f"{LANDSAT}_SR_B{n}.TIF" for n in (2, 3, 4, 5)] + [f"{LANDSAT}_QA_PIXEL.TIF"],
         ["SR_B4", "SR_B3", "SR_B2", "QA_PIXEL"], "Landsat-8"),
        ("LT05_193028_20070610", ["B1.tif", "B2.tif", "B3.tif", "B4.tif"], ["B3", "B2", "B1"], "Landsat-5"),
        ("x", [f"HLS.S30.T32TNT.2023161T102601.v2.0.{b}.tif" for b in ("B02", "B03", "B04", "B8A", "Fmask")],
         ["B04", "B03", "B02", "Fmask"], "HLS-S30"),
        ("S2A_32TNT_20230610_0_L2A", ["B02.tif", "B03.tif", "B04.tif", "SCL.tif"],
         ["B04", "B03", "B02", "SCL"], "Sentinel-2A"),
        ("x", [f"T32TNT_20230610T102601_{b}_10m.jp2" for b in ("B02", "B03", "B04", "TCI")],
         ["B04_10m", "B03_10m", "B02_10m"], "Sentinel-2"),
        ("x", ["a_blue.tif", "a_green.tif", "a_red.tif", "a_nir.tif"], ["a_red", "a_green", "a_blue"], None),
    ],
)  # fmt: skip
def test_a_folder_of_one_file_per_band_is_a_scene(tmp_path, folder, names, expected, platform):
    for name in names:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch()
    (source,) = expand_sources([str(tmp_path / folder)], "eo")
    files = [part.partition("=")[2] for part in source.href.split(",")]
    assert [Path(file).stem.endswith(end) for file, end in zip(files, expected, strict=True)] == [True] * len(
        files
    )
    assert source.platform == platform


def test_files_of_one_band_each_are_read_by_their_product_or_the_numbers_given(tmp_path):
    def written(stem, band, value):
        return write_raster(tmp_path / stem / f"{stem}_{band}.TIF", np.full(TARGET.shape, value, np.uint16))

    for stem in (LANDSAT, "unknown"):
        (tmp_path / stem).mkdir()
        for band, value in (("SR_B2", 8200), ("SR_B3", 9100), ("SR_B4", 9800)):
            written(stem, band, value)
    scene = open_eo_scene(tmp_path / LANDSAT, eo_range=RANGE)
    near(scene.read_onto(TARGET).rgb[:, 0, 0], [59, 43, 22])  # reflectance 0.0695, 0.0503, 0.0255
    assert f"{scene.datetime:%Y-%m-%d}" == "2023-06-10"
    with pytest.raises(PairsError, match="--eo-bands R,G,B"):
        open_eo_scene(tmp_path / "unknown", eo_range=RANGE)
    found = open_eo_scene(tmp_path / "unknown", eo_range=(0, 10000), eo_bands=(4, 3, 2))
    assert found.labels == ("unknown_SR_B4", "unknown_SR_B3", "unknown_SR_B2")
    with pytest.raises(PairsError, match=r"begin at 8200.*white: give --eo-range"):
        open_eo_scene(tmp_path / "unknown", eo_range=RANGE, eo_bands=(4, 3, 2))
    with tarfile.open(tmp_path / "bands.tar", "w") as tar:
        tar.add(tmp_path / LANDSAT, arcname=".")
    near(open_eo_scene(tmp_path / "bands.tar", eo_range=RANGE).read_onto(TARGET).rgb[:, 0, 0], [59, 43, 22])
    with pytest.raises(PairsError, match="one file of several"):
        open_eo_scene(tmp_path / "unknown/unknown_SR_B4.TIF", eo_range=RANGE)


def test_names_go_before_the_roles_that_gdal_gives_to_any_bytes(tmp_path):
    values = np.random.default_rng(2).integers(1, 256, (4, *TARGET.shape), dtype=np.uint8)
    values[3, :, ::2] = 0
    names = ("blue", "green", "red", "nir")
    for count in (3, 4):
        path = write_raster(
            tmp_path / f"{count}.tif", values[:count], names=names[:count], crs=UTM, transform=TARGET.affine
        )
        patch = open_eo_scene(path, eo_range=RANGE).read_onto(TARGET)
        np.testing.assert_array_equal(patch.rgb, values[[2, 1, 0]])
        assert patch.valid.all()  # near infrared is no opacity
    for told in ((), ("red", "green", "blue", "alpha")):
        path = write_raster(tmp_path / "a.tif", values, names=told or None, crs=UTM, transform=TARGET.affine)
        patch = open_eo_scene(path, eo_range=RANGE).read_onto(TARGET)
        np.testing.assert_array_equal(patch.valid, values[3] > 0)


def test_bytes_stay_as_they_are_whatever_scale_is_declared(tmp_path):
    values = rgb_values(TARGET.shape)
    path = write_rgb(tmp_path / "a.tif", values, scale=1 / 255)
    np.testing.assert_array_equal(open_eo_scene(path, eo_range=RANGE).read_onto(TARGET).rgb, values)


def test_wavelengths_of_tags(tmp_path):
    path = write_raster(tmp_path / "a.tif", reflectance(4))
    with rasterio.open(path, "r+") as file:
        for band, value in enumerate((490, 560, 665, 842), start=1):
            file.update_tags(band, wavelength=f"{value} nm")
    assert open_eo_scene(path, eo_range=RANGE).facts()["indexes"] == [3, 2, 1]


@pytest.mark.parametrize(
    ("name", "values", "cloudy"),
    [
        ("SCL", [0, 2, 3, 4, 7, 8, 9, 10, 11], [3, 8, 9, 10]),
        ("QA60", [0, 1, 1024, 2048, 3072, 4096], [1024, 2048, 3072]),
        ("QA_PIXEL", [1, 2, 8, 16, 64, 21824], [2, 8, 16]),
        ("cloud mask", [0, 1, 255], [1, 255]),
        ("mask", [0, 1], [1]),
        ("cloud probability", [0, 49, 50, 100], [50, 100]),
    ],
)
def test_clouds(tmp_path, name, values, cloudy):
    told = np.random.default_rng(4).choice(np.array(values, np.uint16), TARGET.shape)
    stack = np.concatenate([reflectance(3), told[None]])
    path = write_raster(tmp_path / "a.tif", stack, names=["blue", "green", "red", name])
    scene = open_eo_scene(path, eo_range=RANGE)
    patch = scene.read_onto(TARGET)
    np.testing.assert_array_equal(patch.cloud, np.isin(told, cloudy))
    assert patch.cloud.dtype == np.bool_
    assert scene.facts()["cloud"].startswith(f"{name}: ")
    assert find_cloud_rule(name) == scene.cloud.rule


def test_a_scene_can_be_sent_to_another_process(tmp_path):
    scene = open_eo_scene(write_rgb(tmp_path / "eo.tif", rgb_values(TARGET.shape)), eo_range=RANGE)
    data = pickle.dumps(scene)
    assert len(data) < 10_000
    again = pickle.loads(data)  # noqa: S301 (our own)
    np.testing.assert_array_equal(again.read_onto(TARGET).rgb, scene.read_onto(TARGET).rgb)
    assert again.identity() == scene.identity()


def test_time_and_platform(tmp_path):
    name = "S2B_MSIL1C_20201104T183541_N0209_R027_T11SLT_20201104T203551"
    values = rgb_values(TARGET.shape)
    tagged = write_rgb(tmp_path / "a.tif", values, tags={"PRODUCT": name + ".SAFE"})
    named = write_rgb(tmp_path / f"{name}_rgb.tif", values)
    stamped = write_rgb(tmp_path / "scene_20210102T030405_x.tif", values)
    for path in (tagged, named):
        scene = open_eo_scene(path, eo_range=RANGE)
        assert scene.datetime.isoformat() == "2020-11-04T18:35:41+00:00"
        assert scene.platform == "Sentinel-2B"
    assert open_eo_scene(stamped, eo_range=RANGE).datetime.isoformat() == "2021-01-02T03:04:05+00:00"
    given = open_eo_scene(Source(tagged, datetime="2022-01-01", platform="X"), eo_range=RANGE)
    assert (given.datetime.year, given.platform) == (2022, "X")
    assert open_eo_scene(write_rgb(tmp_path / "b.tif", values), eo_range=RANGE).datetime is None


def write_item(folder, assets, name="item.json", **properties):
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "s2", "geometry": None, "links": [],
        "properties": {"datetime": "2022-03-04T05:06:07Z", "platform": "sentinel-2a", **properties},
        "assets": assets,
    }  # fmt: skip
    (folder / name).write_text(json.dumps(item))
    return str(folder / name)


@pytest.fixture
def item_files(tmp_path):
    values = np.maximum(reflectance(3), 1001).astype(np.uint16)
    for name, band in zip(("B04", "B03", "B02"), values, strict=True):
        write_raster(tmp_path / f"{name}.tif", band)
    half = TARGET.affine @ Affine.scale(2)
    classes = np.random.default_rng(6).choice(np.array([4, 9], np.uint8), (30, 40))
    write_raster(tmp_path / "scl.tif", classes, transform=half)
    return tmp_path, values, classes


def band_assets(**said):
    bands = {"red": "B04", "green": "B03", "blue": "B02"}
    return {
        colour: {"href": f"./{name}.tif", "type": TIFF, "roles": ["data"], "raster:bands": [said]}
        for colour, name in bands.items()
    }


@pytest.mark.parametrize(
    ("said", "properties", "offset"),
    [
        ({}, {}, 0),
        ({"scale": 1e-4, "offset": -0.1}, {}, -1000),
        ({"scale": 1e-4, "offset": -0.1}, {"earthsearch:boa_offset_applied": True}, 0),
        ({}, {"s2:processing_baseline": "05.10"}, -1000),
        ({}, {"s2:processing_baseline": "02.14"}, 0),
        ({"scale": 1e-4, "offset": 0}, {"s2:processing_baseline": "04.00"}, 0),
    ],
)
def test_an_item_with_an_asset_per_band(item_files, said, properties, offset):
    folder, values, classes = item_files
    scl = {"scl": {"href": "scl.tif", "type": TIFF, "roles": ["data"]}}
    scene = open_eo_scene(write_item(folder, {**band_assets(**said), **scl}, **properties), eo_range=RANGE)
    patch = scene.read_onto(TARGET)
    near(patch.rgb, as_bytes(values.astype(float) + offset))
    assert scene.facts()["offset"] == pytest.approx(offset)
    assert (scene.platform, scene.datetime.year) == ("Sentinel-2A", 2022)
    # 20 m classes on 10 m pixels: inside of each, and away from others, as classified.
    fine = classes.repeat(2, 0).repeat(2, 1) == 9
    assert (patch.cloud == fine).mean() > 0.9
    uniform = np.full_like(classes, 9)
    write_raster(folder / "scl.tif", uniform, transform=TARGET.affine @ Affine.scale(2))
    assert open_eo_scene(folder / "item.json", eo_range=RANGE).read_onto(TARGET).cloud.all()


def test_an_item_with_a_visual_asset_or_a_stack(item_files):
    folder, values, _ = item_files
    picture = rgb_values(TARGET.shape)
    write_rgb(folder / "tci.tif", picture)
    visual = {"visual": {"href": "tci.tif", "type": TIFF, "roles": ["visual"]}}
    scene = open_eo_scene(write_item(folder, {**band_assets(), **visual}), eo_range=RANGE)
    np.testing.assert_array_equal(scene.read_onto(TARGET).rgb, picture)
    write_raster(folder / "stack.tif", values)
    bands = [{"name": "B04", "common_name": "red"}, {"common_name": "green"}, {"common_name": "blue"}]
    stack = {"data": {"href": "stack.tif", "type": TIFF, "eo:bands": bands}}
    near(open_eo_scene(write_item(folder, stack), eo_range=RANGE).read_onto(TARGET).rgb, as_bytes(values))


def test_names_of_assets_that_carry_their_resolution(item_files):
    """As Copernicus' own catalogue spells them; an href is a URI."""
    folder, values, classes = item_files
    blank = folder / "a b"
    blank.mkdir()
    for path in folder.glob("*.tif"):
        path.rename(blank / path.name)
    names = {"B04_10m": "B04", "B03_10m": "B03", "B02_10m": "B02", "SCL_20m": "scl"}
    assets = {key: {"href": f"a%20b/{name}.tif", "type": TIFF} for key, name in names.items()}
    patch = open_eo_scene(write_item(folder, assets), eo_range=RANGE).read_onto(TARGET)
    near(patch.rgb, as_bytes(values))
    assert (patch.cloud == (classes.repeat(2, 0).repeat(2, 1) == 9)).mean() > 0.9


@pytest.mark.parametrize("said", [{"title": "Cloud Probabilities"}, {"href": "CLD_20m.tif"}])
def test_an_asset_of_cloud_probabilities_is_no_mask(item_files, said):
    folder, _, classes = item_files
    half = TARGET.affine @ Affine.scale(2)
    href = {"href": said.get("href", "cloud.tif"), "type": TIFF}
    write_raster(folder / href["href"], np.where(classes == 9, 90, 3).astype(np.uint8), transform=half)
    assets = {"cloud": {**href, **said}, **band_assets()}
    thick = (classes == 9).repeat(2, 0).repeat(2, 1)
    found = open_eo_scene(write_item(folder, assets), eo_range=RANGE).read_onto(TARGET).cloud
    assert (found == thick).mean() > 0.9
    # Classes tell more, wherever they stand.
    write_raster(folder / "scl.tif", np.full_like(classes, 4), transform=half)
    scl = {"scl": {"href": "scl.tif", "type": TIFF}}
    assert (
        not open_eo_scene(write_item(folder, {**assets, **scl}), eo_range=RANGE).read_onto(TARGET).cloud.any()
    )


@pytest.mark.parametrize("name", ["T33TWL_20220304T050607_TCI_10m.tif", "TCI.tif", "picture.tif"])
def test_a_true_colour_image_that_declares_no_nodata(item_files, name):
    """Of Sentinel-2's, 0 is no data by its specification; of others, where an item says so."""
    folder, values, _ = item_files
    picture = as_bytes(values).clip(1).astype(np.uint8)
    picture[..., :5] = 0
    write_raster(folder / name, picture, names=("red", "green", "blue"), crs=UTM, transform=TARGET.affine)
    named = "TCI" in name
    assert open_eo_scene(folder / name, eo_range=RANGE).read_onto(TARGET).valid[:, :5].any() == (not named)
    for said, known in (({}, named), ({"raster:bands": [{"nodata": 0}] * 3}, True)):
        visual = {"visual": {"href": name, "type": TIFF, "roles": ["visual"], **said}}
        valid = open_eo_scene(write_item(folder, visual), eo_range=RANGE).read_onto(TARGET).valid
        assert valid[:, 5:].all()
        assert valid[:, :5].any() == (not known)


METADATA = """<n1:Product xmlns:n1="https://psd-15.sentinel2.eo.esa.int/PSD/{level}.xsd"><n1:General_Info>
<PRODUCT_START_TIME>2022-03-04T05:06:07.024Z</PRODUCT_START_TIME><SPACECRAFT_NAME>Sentinel-2B</SPACECRAFT_NAME>
<BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>
<BOA_ADD_OFFSET band_id="0">-7</BOA_ADD_OFFSET><BOA_ADD_OFFSET band_id="1">-1000</BOA_ADD_OFFSET>
<BOA_ADD_OFFSET band_id="2">-1000</BOA_ADD_OFFSET><BOA_ADD_OFFSET band_id="3">-1000</BOA_ADD_OFFSET>
</n1:General_Info></n1:Product>"""


def write_sentinel2(parent, values, classes, level="2A"):
    """A product of Sentinel-2 as ESA lays it out; values are red, green, blue."""
    folder = parent / f"S2B_MSIL{level}_20220304T050607_N0400_R019_T33TWL_20220304T071135.SAFE"
    images = folder / "GRANULE/L2A_T33TWL_A026075/IMG_DATA"
    lossless = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"}
    for name in ("R10m", "R20m"):
        (images / name).mkdir(parents=True)
    for name, band in zip(("B04", "B03", "B02"), values, strict=True):
        path = images / f"R10m/T33TWL_20220304T050607_{name}_10m.jp2"
        write_raster(path, band, crs=UTM, transform=TARGET.affine, **lossless)
        write_raster(images / f"R20m/T33TWL_{name}_20m.jp2", band[::2, ::2], **lossless)
    half = TARGET.affine @ Affine.scale(2)
    write_raster(images / "R20m/T33TWL_20220304T050607_SCL_20m.jp2", classes, transform=half, **lossless)
    (folder / f"MTD_MSIL{level}.xml").write_text(METADATA.format(level=level))
    (folder / "manifest.safe").write_text("<xml/>")
    return folder


@pytest.mark.parametrize("given", ["folder", "metadata", "zip"])
def test_a_product_of_sentinel2(tmp_path, given):
    values = np.maximum(reflectance(3), 1001).astype(np.uint16)
    values[:, :4] = 0
    path = write_sentinel2(tmp_path, values, np.full((30, 40), 8, np.uint8))
    if given == "metadata":
        path = path / "MTD_MSIL2A.xml"
    elif given == "zip":
        path = zip_safe(path, tmp_path / "product.zip")
    scene = open_eo_scene(path, eo_range=RANGE)
    patch = scene.read_onto(TARGET)
    near(patch.rgb[:, 4:], as_bytes(values[:, 4:].astype(float) - 1000))
    assert patch.valid[4:].all()
    assert not patch.valid[:4].any()
    assert patch.cloud.all()
    assert (scene.platform, scene.datetime.isoformat()) == ("Sentinel-2B", "2022-03-04T05:06:07+00:00")
    assert (scene.facts()["offset"], scene.facts()["bands"]) == (-1000, ["B04", "B03", "B02"])
    assert [s.href for s in expand_sources([str(path)], "eo")] == [str(path)]


def test_metadata_that_are_no_numbers_are_told_and_a_time_that_is_none_is_left_out(tmp_path):
    path = write_sentinel2(tmp_path, reflectance(3), np.full((30, 40), 4, np.uint8))
    metadata = path / "MTD_MSIL2A.xml"
    text = metadata.read_text()
    for number in ("none", "0"):
        metadata.write_text(text.replace('"none">10000<', f'"none">{number}<'))
        with pytest.raises(SceneError, match="metadata hold no number"):
            open_eo_scene(path, eo_range=RANGE)
    metadata.write_text(text.replace("2022-03-04T05:06:07.024Z", "soon"))
    assert open_eo_scene(path, eo_range=RANGE).datetime is None


def test_products_go_to_their_role(tmp_path):
    sentinel1, _ = write_safe(tmp_path)
    sentinel2 = write_sentinel2(tmp_path, reflectance(3), np.full((30, 40), 4, np.uint8))
    assert [s.href for s in expand_sources([str(tmp_path)], "sar")] == [str(sentinel1)]
    assert [s.href for s in expand_sources([str(tmp_path)], "eo")] == [str(sentinel2)]
    with pytest.raises(SceneError, match="a folder, where an EO scene is"):
        open_eo_scene(sentinel1, eo_range=RANGE)
    next(sentinel2.glob("GRANULE/*/IMG_DATA/R10m/*B03_10m.jp2")).unlink()
    with pytest.raises(SceneError, match="no image of B03 at 10 m"):
        open_eo_scene(sentinel2, eo_range=RANGE)


def test_what_is_not_eo_is_told_in_words(tmp_path):
    sar = write_raster(tmp_path / "sar.tif", speckle((2, 20, 30)), names=["VV", "VH"])
    with pytest.raises(PairsError, match=r"but VV, VH: is this a SAR scene, given as --eo"):
        open_eo_scene(sar, eo_range=RANGE)
    stack = write_raster(tmp_path / "stack.tif", reflectance(5))
    with pytest.raises(PairsError, match=r"which of its 5 bands .* red, green and blue is not known"):
        open_eo_scene(stack, eo_range=RANGE)
    with pytest.raises(SceneError, match="a folder"):
        open_eo_scene(tmp_path, eo_range=RANGE)
    loose = write_raster(tmp_path / "loose.tif", rgb_values((9, 9)), crs=None, transform=None)
    with pytest.raises(SceneError, match="no CRS with a geotransform"):
        open_eo_scene(loose, eo_range=RANGE)
    item = write_item(tmp_path, {"vv": {"href": "sar.tif", "type": TIFF}}, **{"sar:polarizations": ["VV"]})
    with pytest.raises(PairsError, match="no EO asset among vv"):
        open_eo_scene(item, eo_range=RANGE)
    with pytest.raises(SceneError, match="cannot open"):
        open_eo_scene(tmp_path / "none.tif", eo_range=RANGE)
    turned = Grid(UTM, (10.0, 1.0, 0.0, 1.0, -10.0, 0.0), (4, 4))
    rgb = open_eo_scene(write_rgb(tmp_path / "rgb.tif", rgb_values(TARGET.shape)), eo_range=RANGE)
    with pytest.raises(PairsError, match="north-up"):
        rgb.read_onto(turned)


@pytest.mark.realdata
def test_real_scenes(real_data):
    with rasterio.open(real_data / "odd/s2_13band_uint16_utm.tif") as file:
        red = file.read(4)
    scene = open_eo_scene(real_data / "odd/s2_13band_uint16_utm.tif", eo_range=RANGE)
    near(scene.read_onto(scene.grid).rgb[0], as_bytes(red))
    for path in sorted(real_data.glob("odd/s2rgb_*.tif")):
        with rasterio.open(path) as file:
            stored = file.read()
        scene = open_eo_scene(path, eo_range=RANGE)
        np.testing.assert_array_equal(scene.read_onto(scene.grid).rgb, stored)
        assert scene.datetime is not None
    west = open_eo_scene(real_data / "scenes/la_west_eo.tif", eo_range=RANGE)
    assert (west.platform, west.datetime.isoformat()) == ("Sentinel-2A", "2020-11-04T18:35:41+00:00")
    with rasterio.open(real_data / "scenes/la_west_eo.tif") as file:
        place = ((3000, 3400), (5000, 5300))
        stored, mask = file.read(window=place), file.dataset_mask(window=place) > 0
    transform = west.grid.affine @ Affine.translation(5000, 3000)
    patch = west.read_onto(Grid(west.grid.crs, transform[:6], (400, 300)))
    np.testing.assert_array_equal(patch.valid, mask)
    np.testing.assert_array_equal(patch.rgb[:, mask], stored[:, mask])
