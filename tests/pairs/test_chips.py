"""Chips: SAR between its pixels, EO on the SAR's pixels, and the files."""

import errno
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from support.scene_fixtures import write_raster

from sar2eo.errors import OutputError
from sar2eo.geo.chip_lattice import Cell
from sar2eo.geo.grid import Grid
from sar2eo.geo.radiometry import to_amplitude
from sar2eo.geo.windows import Window
from sar2eo.pairs.chips import ChipPair, cut_pair, write_pair
from sar2eo.scenes.optical import EoPatch, open_eo_scene
from sar2eo.scenes.reader import SceneReader
from sar2eo.scenes.sar_scene import SarScene, open_sar_scene
from sar2eo.scenes.warp import lanczos_taps, read_padded, read_shifted
from sar2eo.settings import PairsSettings, SceneSettings
from sar2eo.store.atomic import checksum

GRID = Grid("EPSG:32633", (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0), (60, 70))


@dataclass(frozen=True, eq=False)
class ArrayReader(SceneReader):
    """Values in memory as a scene."""

    values: np.ndarray
    grid: Grid = GRID
    polarisations: tuple[str, ...] = ("VV",)
    block_shape: tuple[int, int] = (16, 16)

    def read(self, window: Window) -> np.ndarray:
        return self.values[:, *window.slices].astype(np.float32)

    def identity(self) -> dict[str, object]:
        return {}


def smooth(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Amplitude that a kernel of three lobes can follow: periods of 12 pixels and more."""
    return 100 + 30 * np.sin(rows * 2 * np.pi / 12) + 20 * np.cos(cols * 2 * np.pi / 15)


def oracle(values: np.ndarray, window: Window, rows: int, cols: int) -> np.ndarray:
    """A window of a padded copy."""
    pad = 200
    padded = np.pad(values.astype(np.float32), ((0, 0), (pad, pad), (pad, pad)), constant_values=np.nan)
    return padded[:, *window.shifted(rows + pad, cols + pad).slices]


@given(
    corner=st.tuples(st.integers(-40, 80), st.integers(-40, 80)),
    shift=st.tuples(st.integers(-20, 20), st.integers(-20, 20)),
    seed=st.integers(0, 9),
)
def test_whole_shifts_copy_pixels(corner, shift, seed):
    values = np.random.default_rng(seed).rayleigh(50, (1, *GRID.shape)).astype(np.float32)
    values[0, 10:20, 30:50] = np.nan
    window = Window(*corner, 24, 32)
    found = read_shifted(ArrayReader(values), window, *map(float, shift), "intensity")
    np.testing.assert_array_equal(found, oracle(values, window, *shift))


@given(rows=st.floats(-3, 3), cols=st.floats(-3, 3))
def test_shifts_between_pixels_are_found_where_the_formula_says(rows, cols):
    row, col = np.indices(GRID.shape)
    reader = ArrayReader(smooth(row, col)[None])
    window = Window(10, 12, 32, 40)
    found = read_shifted(reader, window, rows, cols, "dn")[0]
    row, col = np.indices((32, 40))
    expected = smooth(row + 10 + rows, col + 12 + cols)
    # The kernel's own error at these periods is under 1 %.
    np.testing.assert_allclose(found, expected, atol=1.5)
    wrong = smooth(row + 10 - rows, col + 12 - cols)
    if max(abs(rows), abs(cols)) > 0.5:
        assert np.abs(found - wrong).mean() > np.abs(found - expected).mean()


@pytest.mark.parametrize("quantity", ["amplitude", "intensity", "db"])
def test_every_quantity_is_interpolated_in_amplitude(quantity):
    amplitude = np.random.default_rng(3).rayleigh(50, (1, *GRID.shape)).astype(np.float32) + 1
    stored = {"amplitude": amplitude, "intensity": amplitude**2, "db": 20 * np.log10(amplitude)}[quantity]
    window = Window(10, 12, 32, 40)
    expected = read_shifted(ArrayReader(amplitude), window, 0.3, -0.6, "dn")
    found = read_shifted(ArrayReader(stored), window, 0.3, -0.6, quantity)
    np.testing.assert_allclose(to_amplitude(found, quantity), expected, rtol=1e-4)
    assert found.min() >= stored.min() * (1 - 1e-5 * np.sign(stored.min()))


def test_a_place_between_pixels_is_valid_if_all_next_to_it_are():
    values = np.full((1, *GRID.shape), 40.0, np.float32)
    values[0, 20, 30] = np.nan
    found = read_shifted(ArrayReader(values), Window(10, 20, 20, 20), 0.5, 0.25, "dn")[0]
    # Pixel (20, 30) is next to places (19 or 20, 29 or 30) shifted by a part: rows 9, 10 and columns 9, 10.
    expected = np.zeros((20, 20), bool)
    expected[9:11, 9:11] = True
    np.testing.assert_array_equal(np.isnan(found), expected)
    # A hole has no weight: around it the values are what they are everywhere.
    np.testing.assert_allclose(found[~expected], 40.0, rtol=1e-6)
    edge = read_shifted(ArrayReader(values), Window(50, 60, 10, 10), 0.5, 0.0, "dn")[0]
    assert np.isnan(edge[-1]).all()
    assert np.isfinite(edge[:-1]).all()


def test_bright_points_leave_no_value_outside_of_what_was_recorded():
    values = np.full((1, *GRID.shape), 2.0, np.float32)
    values[0, 30, 30] = 5000.0
    found = read_shifted(ArrayReader(values), Window(20, 20, 20, 20), 0.4, 0.4, "dn")
    assert found.min() == 2.0
    assert 2000 < found.max() <= 5000


def test_the_kernel_is_a_lanczos_kernel():
    np.testing.assert_allclose(lanczos_taps(0.0), [0, 0, 1, 0, 0, 0], atol=1e-12)
    # sinc(x) sinc(x / 3) at 0.5, 1.5, 2.5: 0.607927, -0.135095, 0.024317; twice their sum is 0.994298.
    expected = np.array([0.024317, -0.135095, 0.607927, 0.607927, -0.135095, 0.024317]) / 0.994298
    np.testing.assert_allclose(lanczos_taps(0.5), expected, atol=1e-6)


def test_reading_past_the_edge_is_reading_nothing():
    reader = ArrayReader(np.ones((1, *GRID.shape)))
    assert np.isnan(read_padded(reader, Window(60, 0, 5, 5))).all()
    part = read_padded(reader, Window(-2, 68, 4, 4))
    assert np.isfinite(part[0]).sum() == 4
    assert np.isfinite(part[0, 2:, :2]).all()


class Plain:
    """An EO scene of one colour."""

    def read_onto(self, grid: Grid) -> EoPatch:
        valid = np.ones(grid.shape, bool)
        valid[:4] = False
        cloud = np.zeros(grid.shape, bool)
        cloud[:, :8] = True
        return EoPatch(np.full((3, *grid.shape), 7, np.uint8), valid, cloud)


def sar_scene(values: np.ndarray, dtype: str = "uint8", quantity: str = "dn") -> SarScene:
    names = ("VV", "VH")[: len(values)]
    reader = ArrayReader(values, polarisations=names)
    return SarScene(href="a.tif", reader=reader, dtype=dtype, quantity=quantity, calibration="none")


def test_a_pair_knows_its_shares_and_statistics():
    values = np.full((2, *GRID.shape), 9.0, np.float32)
    values[0, 8:12, 8:40] = np.nan
    pair = cut_pair(sar_scene(values), Plain(), Cell(0, 0, 8, 8), size=32)
    assert pair is not None
    assert pair.sar_valid.sum() == 28 * 32  # invalid in one polarisation is invalid
    assert pair.valid_share == 28 / 32
    assert pair.cloud_share == 8 / 32
    assert pair.eo_statistics() == ([7.0] * 3, [0.0] * 3)
    assert (pair.eo[:, :4] == 0).all()
    assert pair.grid == GRID.crop(Window(8, 8, 32, 32))
    assert cut_pair(sar_scene(values), Plain(), Cell(0, 0, 8, 8), size=32, min_valid=0.9) is None


def test_the_share_of_cloud_is_that_of_what_the_eo_shows():
    class Half(Plain):
        def read_onto(self, grid: Grid) -> EoPatch:
            patch = super().read_onto(grid)
            patch.valid[:, 16:] = False
            return patch

    values = np.full((1, *GRID.shape), 9.0, np.float32)
    pair = cut_pair(sar_scene(values), Half(), Cell(0, 0, 8, 8), size=32)
    assert pair is not None
    assert pair.cloud_share == 8 / 16


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("size", [32, 50])
def test_files_hold_pixels_validity_place_and_tags(dtype, size, tmp_path):
    values = np.random.default_rng(1).integers(1, 200, (2, *GRID.shape)).astype(np.float32)
    values[:, 20:25, 20:40] = np.nan
    pair = cut_pair(sar_scene(values, dtype), Plain(), Cell(0, 0, 5, 6), size=size)
    assert pair is not None
    paths = tmp_path / "a_sar.tif", tmp_path / "a_eo.tif"
    checksums = write_pair(pair, ("VV", "VH"), {"QUANTITY": "dn"}, *paths)
    assert checksums == tuple(checksum(path.read_bytes()) for path in paths)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    expected = values[:, 5 : 5 + size, 6 : 6 + size]
    with rasterio.open(paths[0]) as sar, rasterio.open(paths[1]) as eo:
        assert sar.dtypes == (dtype, dtype)
        assert sar.descriptions == ("VV", "VH")
        assert sar.tags()["QUANTITY"] == eo.tags()["QUANTITY"] == "dn"
        assert sar.transform == eo.transform == Affine(*GRID.crop(Window(5, 6, size, size)).transform)
        assert sar.crs == eo.crs == rasterio.CRS.from_epsg(32633)
        assert [flag.name for flag in sar.mask_flag_enums[0]] == ["per_dataset"]
        np.testing.assert_array_equal(sar.read(), np.nan_to_num(expected))
        np.testing.assert_array_equal(sar.dataset_mask() > 0, np.isfinite(expected).all(axis=0))
        np.testing.assert_array_equal(eo.read(), pair.eo)
        np.testing.assert_array_equal(eo.dataset_mask() > 0, pair.eo_valid)
        assert [role.name for role in eo.colorinterp] == ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("dtype", "scale", "expected"),
    [
        ("uint16", None, "uint16"),
        ("uint8", None, "uint8"),
        ("float32", None, "float32"),
        ("uint32", None, "float32"),
        ("uint16", 0.5, "float32"),
    ],
)
def test_a_chip_is_stored_as_the_scene_is(dtype, scale, expected, tmp_path):
    path = write_raster(tmp_path / "s.tif", np.full((40, 40), 5, dtype), names=("VV",), nodata=0, scale=scale)
    scene, _ = open_sar_scene(str(path), PairsSettings(), SceneSettings(quantity="amplitude"))
    assert scene.dtype == expected
    warped, _ = open_sar_scene(str(path), PairsSettings(resolution=20.0), SceneSettings(quantity="amplitude"))
    assert warped.dtype == "float32"
    assert warped.grid.transform[0] == 20.0
    assert scene.percentiles() == pytest.approx((5 * (scale or 1),))


def blobs(grid: Grid, places: np.ndarray) -> np.ndarray:
    """Bright Gaussian spots of 25 m at places in longitude and latitude, as bytes."""
    to_grid = Transformer.from_crs("EPSG:4326", grid.pyproj_crs, always_xy=True)
    a, _, c, _, e, f = grid.transform
    x, y = np.meshgrid(a * (np.arange(grid.shape[1]) + 0.5) + c, e * (np.arange(grid.shape[0]) + 0.5) + f)
    image = np.full(grid.shape, 20.0)
    for east, north in zip(*to_grid.transform(places[:, 0], places[:, 1]), strict=True):
        image += 200 * np.exp(-((x - east) ** 2 + (y - north) ** 2) / (2 * 25.0**2))
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("pixel", [5.0, 8.0, 15.0])
def test_eo_of_another_crs_and_resolution_falls_on_the_right_pixels(pixel, tmp_path: Path):
    """Spots at known longitudes and latitudes are found on the chip where the chip's grid has them."""
    sar_grid = Grid("EPSG:32633", (10.0, 0.0, 600_000.0, 0.0, -10.0, 5_000_000.0), (160, 160))
    to_lonlat = Transformer.from_crs(sar_grid.crs, "EPSG:4326", always_xy=True)
    centres = np.array([(42.3, 51.6), (75.5, 90.25), (110.8, 60.1)])  # column, row on the chip's grid
    places = np.stack(
        to_lonlat.transform(600_000 + 10 * centres[:, 0], 5_000_000 - 10 * centres[:, 1]), axis=1
    )
    eo_crs = "EPSG:32634"
    x, y = Transformer.from_crs(sar_grid.crs, eo_crs, always_xy=True).transform(600_800, 4_999_200)
    side = int(3000 / pixel)
    eo_grid = Grid(eo_crs, (pixel, 0.0, x - 1503.7, 0.0, -pixel, y + 1498.2), (side, side))
    image = np.stack([blobs(eo_grid, places)] * 3)
    path = write_raster(
        tmp_path / "eo.tif", image, crs=eo_crs, transform=eo_grid.affine, names=("red", "green", "blue")
    )
    reader = ArrayReader(np.ones((1, 160, 160)), grid=sar_grid)
    sar = SarScene(href="s", reader=reader, dtype="uint8", quantity="dn", calibration="none")
    pair = cut_pair(sar, open_eo_scene(str(path), eo_range=(0, 3000)), Cell(0, 0, 16, 16), size=128)
    assert pair is not None
    assert pair.eo_valid.all()
    rows, cols = np.indices((128, 128))
    for col, row in centres:
        near = np.hypot(rows + 16.5 - row, cols + 16.5 - col) < 10
        weight = np.where(near, pair.eo[0].astype(float) - 20, 0).clip(0)
        found = (weight * (rows + 16.5)).sum() / weight.sum(), (weight * (cols + 16.5)).sum() / weight.sum()
        assert found == pytest.approx((row, col), abs=0.2)  # of a pixel; half was asked for


def test_a_full_disk_is_told_of_and_not_filled_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ones = np.ones((3, 40, 40), np.uint8)
    grid = Grid(GRID.crs, GRID.transform, (40, 40))
    pair = ChipPair(ones[:1], ones[0] > 0, ones, ones[0] > 0, None, grid)
    original = Path.write_bytes

    def filling(self: Path, data: bytes) -> int:
        original(self, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", filling)
    with pytest.raises(OutputError, match="no space for another"):
        write_pair(pair, ["VV"], {}, tmp_path / "a_sar.tif", tmp_path / "a_eo.tif")
    assert not list(tmp_path.iterdir())
