"""Moving a scene: the kernel against a plain formula, pieces against the whole, storing without loss."""

from __future__ import annotations

from math import floor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from support.scene_fixtures import NORTH_UP, UTM, write_raster

from sar2eo.coregistration.moved_scene import (
    Layout,
    MovedReader,
    lanczos_at,
    map_moved,
    read_layout,
    write_moved,
)
from sar2eo.coregistration.transforms import FieldTransform, LinearTransform
from sar2eo.errors import RadiometryError
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import to_amplitude
from sar2eo.geo.windows import Window
from sar2eo.matching.shifts import Displacement, fit_drift
from sar2eo.scenes.optical import open_eo_scene
from sar2eo.scenes.sar_scene import open_sar_scene
from sar2eo.settings import PairsSettings, SceneSettings

NOWHERE = LinearTransform("shift", np.zeros((2, 3)))


def kernel(x: float) -> float:
    return float(np.sinc(x) * np.sinc(x / 3)) if abs(x) < 3 else 0.0


def plain_lanczos(values: np.ndarray, row: float, col: float) -> float:
    """One place by the formula, over what is valid, within its range."""
    top, left = floor(row), floor(col)
    beside = [
        values[top + i, left + j] for i in (0, 1) for j in (0, 1)
        if (i == 0 or row > top) and (j == 0 or col > left)
    ]  # fmt: skip
    if not np.isfinite(beside).all():
        return np.nan
    total = weight = 0.0
    known = []
    for i in range(top - 2, top + 4):
        for j in range(left - 2, left + 4):
            if np.isfinite(values[i, j]):
                w = kernel(row - i) * kernel(col - j)
                total, weight = total + w * values[i, j], weight + w
                known.append(values[i, j])
    return float(np.clip(total / weight, min(known), max(known)))


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.2))
@settings(max_examples=20)
def test_the_kernel_is_the_formula(seed, share):
    random = np.random.default_rng(seed)
    values = random.rayleigh(50, (2, 14, 15)).astype(np.float32)
    values[random.random(values.shape) < share] = np.nan
    # Places that the kernel's phases meet exactly, some of them pixels.
    rows = random.integers(3 * 8, 9 * 8, 30) / 8
    cols = random.integers(3 * 8, 10 * 8, 30) / 8
    rows[:6], cols[:3] = np.floor(rows[:6]), np.floor(cols[:3])
    found = lanczos_at(values, rows, cols)
    for band in range(2):
        expected = [plain_lanczos(values[band].astype(float), r, c) for r, c in zip(rows, cols, strict=True)]
        np.testing.assert_allclose(found[band], expected, rtol=2e-4, atol=1e-3)


def sar_file(path: Path, *, nodata: float = 0, dtype: str = "uint16", **more: object) -> Path:
    random = np.random.default_rng(4)
    values = random.rayleigh(200, (2, 150, 170)) + 1
    values[:, 40:60, 30:70] = nodata
    values[:, :5] = nodata
    return write_raster(
        path, values.astype(dtype), nodata=nodata, names=("VV", "VH"),
        tags={"TIFFTAG_DATETIME": "2024:05:06 07:08:09", "ACQUISITION_DATETIME": "2024:05:06 07:08:09",
              "STATISTICS_MEAN": "3"}, **more,
    )  # fmt: skip


def opened_sar(path: Path, **more: object):
    return open_sar_scene(str(path), PairsSettings(), SceneSettings(quantity="amplitude", **more))[0]


def moved(scene, grid: Grid, transform) -> tuple[MovedReader, Layout]:
    reader, layout = read_layout(scene)
    mapping = map_moved(scene.reader, grid, transform)
    return MovedReader(reader, mapping, grid, getattr(scene, "quantity", None), layout.nearest), layout


def test_no_shift_on_the_same_grid_copies_every_pixel(tmp_path):
    scene = opened_sar(sar_file(tmp_path / "sar.tif"))
    reader, layout = moved(scene, scene.grid, NOWHERE)
    values = reader.read(scene.grid.window)
    np.testing.assert_array_equal(values, scene.reader.read(scene.grid.window))
    stored, valid = layout.encode(values)
    with rasterio.open(tmp_path / "sar.tif") as file:
        np.testing.assert_array_equal(stored, file.read())
        np.testing.assert_array_equal(valid, file.dataset_mask() > 0)


def test_a_whole_shift_copies_pixels_from_where_it_points(tmp_path):
    scene = opened_sar(sar_file(tmp_path / "sar.tif"))
    transform = LinearTransform("shift", np.array([[3.0, 0, 0], [-7.0, 0, 0]]))
    reader, _ = moved(scene, scene.grid, transform)
    source = scene.reader.read(scene.grid.window)
    np.testing.assert_array_equal(reader.read(Window(10, 20, 100, 90)), source[:, 13:113, 13:103])


def drifting() -> FieldTransform:
    places = [(16.0 * i, 16.0 * j) for i in range(10) for j in range(10)]
    ties = [Displacement(r, c, np.sin(c / 90) * 3, np.cos(r / 80) * 3, 0.5, True) for r, c in places]
    drift = fit_drift(ties, apart_px=16)
    assert drift is not None
    return FieldTransform(drift)


AFFINE = LinearTransform("affine", np.array([[2.3, 1e-3, -2e-3], [-1.7, 3e-3, 1e-3]]))
FINE = Grid(UTM, (7.0, 0.0, 500_100.0, 0.0, -7.0, 4_999_900.0), (120, 130))
X, Y = Transformer.from_crs(UTM, "EPSG:3395", always_xy=True).transform(500_200.0, 4_999_900.0)
OTHER = Grid("EPSG:3395", (11.0, 0.0, X, 0.0, -11.0, Y), (110, 120))


@pytest.mark.parametrize("name", ["affine", "field", "other CRS", "coarse"])
def test_pieces_equal_the_whole(tmp_path, name):
    scene = opened_sar(sar_file(tmp_path / "sar.tif"))
    coarse = Grid(UTM, (25.0, 0.0, 500_000.0, 0.0, -25.0, 5_000_000.0), (60, 60))
    grids = {"affine": FINE, "field": FINE, "other CRS": OTHER, "coarse": coarse}
    transform = drifting() if name == "field" else AFFINE
    reader, _ = moved(scene, grids[name], transform)
    whole = reader.read(reader.grid.window)
    assert 0.1 < np.isfinite(whole).mean() < 1
    for window in (Window(0, 0, 31, 17), Window(13, 40, 30, 20), Window(29, 3, 31, 56)):
        rows, cols = window.slices
        np.testing.assert_array_equal(reader.read(window), whole[:, rows, cols])


def test_another_crs_shows_what_lies_there(tmp_path):
    """A ramp over the ground, read on a grid of another CRS, is the ramp there, moved by the shift."""
    rows, cols = np.indices((150, 170))
    ramp = 1000 + 3.0 * cols + 2.0 * rows
    path = write_raster(
        tmp_path / "eo.tif", np.stack([ramp] * 3).astype(np.uint16), names=("red", "green", "blue")
    )
    scene = open_eo_scene(str(path), eo_range=(0, 3000))
    to_utm = Transformer.from_crs("EPSG:32634", UTM, always_xy=True)
    back = Transformer.from_crs(UTM, "EPSG:32634", always_xy=True)
    x0, y0 = back.transform(500_800.0, 4_999_300.0)
    grid = Grid("EPSG:32634", (10.0, 0.0, round(x0), 0.0, -10.0, round(y0)), (40, 40))
    shift = LinearTransform("shift", np.array([[1.5, 0, 0], [-2.25, 0, 0]]))
    reader, _ = moved(scene, grid, shift)
    found = reader.read(grid.window)[0]
    r, c = np.indices((40, 40)) + 0.5
    x, y = to_utm.transform(grid.transform[2] + 10 * (c - 2.25), grid.transform[5] - 10 * (r + 1.5))
    expected = 1000 + 3.0 * ((x - 500_000) / 10 - 0.5) + 2.0 * ((5_000_000 - y) / 10 - 0.5)
    valid = np.isfinite(found)
    assert valid.mean() > 0.5
    # Between pixels the kernel follows a slope to a few hundredths of a pixel.
    np.testing.assert_allclose(found[valid], expected[valid], atol=0.15)


def test_decibels_are_interpolated_as_amplitude(tmp_path):
    random = np.random.default_rng(2)
    amplitude = random.rayleigh(1.0, (1, 60, 60)).astype(np.float32) + 0.05
    path = write_raster(tmp_path / "db.tif", 20 * np.log10(amplitude), names=("VV",), nodata=-99.0)
    scene = open_sar_scene(str(path), PairsSettings(), SceneSettings(quantity="db"))[0]
    half = LinearTransform("shift", np.array([[0.5, 0, 0], [0.25, 0, 0]]))
    reader, _ = moved(scene, scene.grid, half)
    found = to_amplitude(reader.read(Window(10, 10, 20, 20)), "db")[0]
    rows, cols = (part.ravel() for part in np.indices((20, 20)) + 10.0)
    expected = lanczos_at(amplitude, rows + 0.5, cols + 0.25)[0].reshape(20, 20)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def layout(dtype: str, nodata: float | None, *, together: bool = False, scale=1.0, offset=0.0) -> Layout:
    band = {"description": None, "role": "gray", "unit": None, "tags": {}, "scale": scale, "offset": offset}
    return Layout(dtype, nodata, together, (band, band), {}, (False, False))


def test_rounding_makes_no_valid_pixel_nodata():
    values = np.array([[[0.2, 7.4, np.nan, 300.0]], [[0.4, 0.3, np.nan, -5.0]]], np.float32)
    stored, valid = layout("uint8", 0).encode(values)
    np.testing.assert_array_equal(stored, [[[1, 7, 0, 255]], [[1, 1, 0, 1]]])
    np.testing.assert_array_equal(valid, [[True, True, False, True]])
    # In a picture a dark band is no hole.
    stored, _ = layout("uint8", 0, together=True).encode(values)
    np.testing.assert_array_equal(stored, [[[1, 7, 0, 255]], [[1, 0, 0, 0]]])
    stored, _ = layout("uint8", 255).encode(values)
    np.testing.assert_array_equal(stored[0], [[0, 7, 255, 254]])
    stored, valid = layout("float32", float("nan"), scale=0.5, offset=1.0).encode(values)
    np.testing.assert_allclose(stored[0], [[-1.6, 12.8, np.nan, 598.0]], rtol=1e-6)


def test_the_file_looks_like_the_one_it_was_made_from(tmp_path):
    path = sar_file(tmp_path / "sar.tif", dtype="float64", nodata=-99.0, scale=0.5, offset=2.0)
    scene = opened_sar(path)
    reader, how = moved(scene, FINE, AFFINE)
    done = write_moved(reader, how, FINE, tmp_path, tags={"COREGISTERED_TO": "x"}, overviews="RMS")
    with rasterio.open(path) as before, rasterio.open(done) as after:
        assert after.dtypes == before.dtypes == ("float64", "float64")
        assert (after.nodata, after.scales, after.offsets) == (-99.0, before.scales, before.offsets)
        assert after.descriptions == ("VV", "VH")
        assert after.tags()["TIFFTAG_DATETIME"] == "2024:05:06 07:08:09"
        assert after.tags()["COREGISTERED_TO"] == "x"
        assert "STATISTICS_MEAN" not in after.tags()
        assert Grid.create(after.crs, after.transform, after.shape) == FINE
        values = after.read() * 0.5 + 2
        valid = after.read() != -99
    expected = reader.read(FINE.window)
    np.testing.assert_array_equal(valid, np.isfinite(expected))
    np.testing.assert_allclose(values[valid], expected[valid], rtol=1e-6)


def test_all_bands_are_moved_with_their_mask_and_classes_stay_classes(tmp_path):
    random = np.random.default_rng(6)
    bands = np.concatenate([random.integers(900, 3000, (4, 150, 170)), random.integers(0, 12, (1, 150, 170))])
    mask = np.ones((150, 170), bool)
    mask[30:50, 60:90] = False
    path = write_raster(
        tmp_path / "s2.tif", bands.astype(np.uint16), names=("B02", "B03", "B04", "B08", "SCL"), mask=mask
    )
    scene = open_eo_scene(str(path), eo_range=(0, 3000))
    reader, how = moved(scene, FINE, AFFINE)
    assert how.nearest == (False, False, False, False, True)
    done = write_moved(reader, how, FINE, tmp_path, tags={}, overviews="NEAREST")
    with rasterio.open(done) as after:
        assert after.count == 5
        assert after.nodata is None
        assert after.descriptions == ("B02", "B03", "B04", "B08", "SCL")
        classes, valid = after.read(5), after.dataset_mask() > 0
        assert after.overviews(1) == []
    assert 0.5 < valid.mean() < 1
    rows, cols = (np.floor(part).astype(int) for part in reader._placed.source_pixels(FINE.window))
    inside = valid & (rows >= 0) & (rows < 150) & (cols >= 0) & (cols < 170)
    np.testing.assert_array_equal(classes[inside], bands[4][rows[inside], cols[inside]])
    near = inside & ~mask[np.clip(rows, 0, 149), np.clip(cols, 0, 169)]
    assert not near.any()


def test_complex_samples_are_refused(tmp_path):
    values = (np.ones((1, 40, 40)) * (1 + 1j)).astype(np.complex64)
    path = write_raster(tmp_path / "slc.tif", values, names=("VV",))
    with pytest.raises(RadiometryError, match="complex"):
        read_layout(open_sar_scene(str(path), PairsSettings(), SceneSettings())[0])


def test_a_rotated_scene_is_interpolated_once_from_its_own_pixels(tmp_path):
    turned = NORTH_UP @ Affine.rotation(12)
    scene = opened_sar(sar_file(tmp_path / "sar.tif", transform=turned))
    own, _ = moved(scene, FINE, NOWHERE)
    assert own.source.grid.transform == turned[:6]
    found = own.read(FINE.window)
    a, b, c, d, e, f = (~turned @ FINE.affine)[:6]
    rows, cols = np.indices(FINE.shape) + 0.5
    at_col, at_row = a * cols + b * rows + c - 0.5, d * cols + e * rows + f - 0.5
    source = own.source.read(own.source.grid.window)
    inner = (at_row > 8) & (at_row < 140) & (at_col > 4) & (at_col < 160) & np.isfinite(found[0])
    expected = lanczos_at(source, at_row[inner], at_col[inner])
    assert inner.sum() > 2000
    known = np.isfinite(expected[0])
    assert known.mean() > 0.99
    # Positions are told to a thousandth of a pixel.
    np.testing.assert_allclose(found[0][inner][known], expected[0][known], atol=2.0)
