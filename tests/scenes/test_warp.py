import pickle

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from scipy import ndimage
from scipy.interpolate import RBFInterpolator
from support.scene_fixtures import UTM, curved_control, speckle, windows_of, write_raster

from sar2eo.errors import GeolocationWarning, GeoreferenceError
from sar2eo.geo.windows import Window
from sar2eo.scenes import find_reader, open_scene
from sar2eo.scenes.geolocation import ThinPlateSpline, choose_local_crs
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.scenes.raster import RasterReader

ROTATED = Affine(8.0, 6.0, 500_000.0, 6.0, -8.0, 5_000_000.0)  # 10 m pixels, turned
GEOGRAPHIC = Affine(1e-4, 0.0, 14.9, 0.0, -1e-4, 45.1)


def opened(path):
    scene = open_scene(path)
    return scene, find_reader(scene)[0]


# Reading in pieces -------------------------------------------------------------------------------


def _sources(folder):
    values = speckle((2, 300, 400))
    values[:, 100:140, 90:250] = 0
    names = ("VV", "VH")
    yield "rotated", write_raster(folder / "r.tif", values, transform=ROTATED, nodata=0, names=names)
    yield (
        "geographic",
        write_raster(folder / "g.tif", values, transform=GEOGRAPHIC, crs="EPSG:4326", nodata=0, names=names),
    )
    yield (
        "control",
        write_raster(
            folder / "c.tif",
            values,
            crs=None,
            transform=None,
            gcps=curved_control(300, 400),
            nodata=0,
            names=names,
        ),
    )
    decibels = (20 * np.log10(values.astype("float32") + 1e-3) - 80).astype("float32")
    yield "decibels", write_raster(folder / "d.tif", decibels, transform=ROTATED, nodata=-140, names=names)


@pytest.fixture(scope="module")
def warped(tmp_path_factory):
    found = {}
    for kind, path in _sources(tmp_path_factory.mktemp("warped")):
        for factor, scene in (("", open_scene(path)), ("/coarse", open_scene(path, resolution=27.0))):
            reader = find_reader(scene)[0]
            found[kind + factor] = reader, reader.read(reader.grid.window)
    return found


KINDS = [
    kind + factor for kind in ("rotated", "geographic", "control", "decibels") for factor in ("", "/coarse")
]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_reading_in_pieces_equals_reading_whole_bit_for_bit(warped, kind, data):
    reader, whole = warped[kind]
    window = data.draw(windows_of(reader.grid.shape))
    rows, cols = window.slices
    assert reader.read(window).tobytes() == whole[:, rows, cols].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_is_neither_empty_nor_full(warped, kind):
    valid = np.isfinite(warped[kind][1]).mean()
    assert 0.3 < valid < 0.97


@pytest.mark.parametrize("kind", ["control", "geographic"])
def test_a_warped_reader_survives_pickling(warped, kind):
    reader, whole = warped[kind]
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301
    assert again.identity() == reader.identity()
    assert again.read(again.grid.window).tobytes() == whole.tobytes()


def test_pieces_are_bounded_and_do_not_change_pixels(warped, monkeypatch):
    reader, whole = warped["rotated/coarse"]
    sizes = []
    read = RasterReader.read
    monkeypatch.setattr(
        RasterReader, "read", lambda self, w: sizes.append(w.height * w.width) or read(self, w)
    )
    monkeypatch.setattr("sar2eo.scenes.warp._SOURCE_PIXELS", 500)
    monkeypatch.setattr("sar2eo.scenes.warp._TILE", 40)
    assert reader.read(reader.grid.window).tobytes() == whole.tobytes()
    assert max(sizes) <= 500


def test_a_small_window_reads_a_small_part(warped, monkeypatch):
    reader, _ = warped["control"]
    sizes = []
    read = RasterReader.read
    monkeypatch.setattr(
        RasterReader, "read", lambda self, w: sizes.append((w.height, w.width)) or read(self, w)
    )
    rows, cols = reader.grid.shape
    reader.read(Window(rows // 2, cols // 2, 16, 16))
    assert len(sizes) == 1
    assert max(sizes[0]) < 30


# Accuracy ----------------------------------------------------------------------------------------


def _analytic(east, north):
    return 500 + 200 * np.sin(east / 300) * np.cos(north / 230)


def _misplaced(scene):
    """Largest error inside, and in the outermost pixels, whose outer half has no second neighbour."""
    x, y = np.meshgrid(scene.x.values, scene.y.values)
    error = np.abs(scene.values[0] - _analytic(x - 500_000, y - 5_000_000))
    inner = ndimage.binary_erosion(np.isfinite(error), iterations=2)
    return error[inner].max(), np.nanmax(error)


def test_a_rotated_image_lies_where_it_should(tmp_path):
    col, row = np.meshgrid(np.arange(200) + 0.5, np.arange(150) + 0.5)
    x, y = ROTATED @ (col, row)
    values = _analytic(x - 500_000, y - 5_000_000).astype("float32")
    scene = open_scene(write_raster(tmp_path / "vv.tif", values, transform=ROTATED), quantity="amplitude")
    grid = decode_attributes(scene)["scene_grid"]
    assert grid.north_up
    assert grid.crs == UTM
    assert grid.transform[0] == 10.0
    inside, anywhere = _misplaced(scene)
    assert inside < 0.15  # of 200; a tenth of a pixel off would be 0.7
    assert anywhere < 5
    assert np.isfinite(scene.values).sum() == pytest.approx(values.size, rel=0.01)
    assert "rotated" in scene.attrs["geolocation"]


def test_a_geographic_image_lies_where_it_should(tmp_path):
    col, row = np.meshgrid(np.arange(200) + 0.5, np.arange(150) + 0.5)
    to_utm = Transformer.from_crs("EPSG:4326", UTM, always_xy=True)
    x, y = to_utm.transform(*(GEOGRAPHIC @ (col, row)))
    values = _analytic(x - 500_000, y - 5_000_000).astype("float32")
    path = write_raster(tmp_path / "vv.tif", values, transform=GEOGRAPHIC, crs="EPSG:4326")
    scene = open_scene(path, quantity="amplitude")
    # 7.87 m by 11.1 m on the ground: squares of the same area.
    assert decode_attributes(scene)["scene_grid"].transform[0] == pytest.approx(9.35, abs=0.1)
    inside, anywhere = _misplaced(scene)
    assert inside < 0.15
    assert anywhere < 5
    kept = open_scene(path, quantity="amplitude", crs="source")
    np.testing.assert_array_equal(kept.values[0], values)
    assert decode_attributes(kept)["scene_grid"].crs == "EPSG:4326"


def test_control_points_place_an_image(tmp_path):
    control = curved_control(300, 400, count=(9, 11))
    path = write_raster(
        tmp_path / "vv.tif", np.ones((300, 400), "float32"), crs=None, transform=None, gcps=control
    )
    place = Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True)
    scene = open_scene(path, quantity="amplitude")
    reader, _ = find_reader(scene)
    x, y = place.transform([p[2] for p in control], [p[3] for p in control])
    rows, cols = reader.mapping.pixels(np.array(x), np.array(y))
    np.testing.assert_allclose(rows, [p[0] for p in control], atol=1e-6)
    np.testing.assert_allclose(cols, [p[1] for p in control], atol=1e-6)
    assert decode_attributes(scene)["terrain_corrected"] is False
    assert scene.attrs["geolocation"] == "warped from 99 ground control points"
    assert 0 < scene.attrs["geolocation_rmse_m"] < 5
    assert decode_attributes(scene)["scene_grid"].crs == "EPSG:32633"


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_nodes_stand_for_the_map(warped, seed):
    reader, _ = warped["control"]
    draw = np.random.default_rng(seed)
    rows, cols = reader.grid.shape
    row, col = int(draw.integers(rows)), int(draw.integers(cols))
    x, y = reader.grid.affine @ (col + 0.5, row + 0.5)
    exact = np.concatenate(reader.mapping.pixels(np.array([x]), np.array([y])))
    near = np.concatenate([v.ravel() for v in reader.source_pixels(Window(row, col, 1, 1))])
    np.testing.assert_allclose(near, exact, atol=2e-2)


# Exactness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", ["dn", "amplitude", "intensity", "db"])
def test_a_south_up_grid_is_turned_without_changing_a_value(tmp_path, quantity):
    values = speckle((70, 90), dtype="float32") - (600 if quantity == "db" else 0)
    values = values * np.float32(0.03 if quantity == "db" else 1)
    south_up = Affine(10.5, 0.0, 500_003.0, 0.0, 10.5, 4_999_001.0)
    scene = open_scene(write_raster(tmp_path / "vv.tif", values, transform=south_up), quantity=quantity)
    assert decode_attributes(scene)["scene_grid"].transform == (
        10.5,
        0.0,
        500_003.0,
        0.0,
        -10.5,
        4_999_001.0 + 70 * 10.5,
    )
    np.testing.assert_array_equal(scene.values[0], values[::-1])


def test_a_quarter_turn_does_not_change_a_value(tmp_path):
    values = speckle((70, 90), dtype="float32")
    quarter = Affine(0.0, -10.0, 500_700.0, -10.0, 0.0, 5_000_000.0)
    scene = open_scene(write_raster(tmp_path / "vv.tif", values, transform=quarter), quantity="amplitude")
    assert scene.shape == (1, 90, 70)
    np.testing.assert_array_equal(scene.values[0], values.T[:, ::-1])


def test_the_same_crs_and_pixel_size_change_nothing(tmp_path):
    path = write_raster(tmp_path / "vv.tif", speckle((40, 50)))
    for option in ({"crs": UTM}, {"resolution": 10}, {"crs": "source", "resolution": (10.0, 10.0)}):
        scene = open_scene(path, **option)
        assert scene.attrs["geolocation"] == "source grid"
        assert scene.data.name == open_scene(path).data.name


def test_another_crs_is_warped_to(tmp_path):
    path = write_raster(tmp_path / "vv.tif", speckle((40, 50)))
    scene = open_scene(path, crs="EPSG:3395", resolution=20)
    assert decode_attributes(scene)["scene_grid"].crs == "EPSG:3395"
    assert decode_attributes(scene)["scene_grid"].transform[0] == 20
    assert np.isfinite(scene.values).mean() > 0.8
    assert np.nanmean(scene.values**2) == pytest.approx(
        np.mean(speckle((40, 50)).astype(float) ** 2), rel=0.05
    )


# Averages and nodata -----------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", ["amplitude", "intensity", "db"])
def test_coarser_pixels_are_means_of_intensity(tmp_path, quantity):
    power = speckle((60, 90), dtype="float64") ** 2
    stored = {"amplitude": np.sqrt(power), "intensity": power, "db": 10 * np.log10(power)}[quantity]
    path = write_raster(tmp_path / "vv.tif", stored)
    found = open_scene(path, quantity=quantity, resolution=30).values[0].astype("float64")
    means = power.reshape(20, 3, 30, 3).mean(axis=(1, 3))
    expected = {"amplitude": np.sqrt(means), "intensity": means, "db": 10 * np.log10(means)}[quantity]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_blocks_at_the_far_edges_average_what_there_is(tmp_path):
    values = speckle((61, 92), dtype="float64")
    path = write_raster(tmp_path / "vv.tif", values)
    found = open_scene(path, quantity="intensity", resolution=30).values[0]
    assert found.shape == (21, 31)
    assert found[0, 30] == pytest.approx(values[:3, 90:].mean(), rel=1e-6)
    assert found[20, 0] == pytest.approx(values[60:, :3].mean(), rel=1e-6)


def test_a_block_is_valid_where_half_of_it_is(tmp_path):
    values = np.full((4, 8), 5.0, dtype="float32")
    values[0, 0] = values[0, 2] = values[1, 2] = np.nan  # three of four, two of four valid
    values[:2, 4:6] = np.nan
    values[0, 5] = 9.0  # one of four valid
    path = write_raster(tmp_path / "vv.tif", values)
    found = open_scene(path, quantity="intensity", resolution=20).values[0]
    np.testing.assert_array_equal(found, [[5, 5, np.nan, 5], [5, 5, 5, 5]])


def test_nodata_neither_bleeds_nor_grows(tmp_path):
    values = np.full((30, 30), 100.0, dtype="float32")
    values[10:20, 10:20] = -9999
    turned = Affine(10.0, 0.0, 500_004.0, 0.0, 10.0, 5_000_000.0)  # south-up: warped, but on whole pixels
    whole = open_scene(
        write_raster(tmp_path / "vv.tif", values, transform=turned, nodata=-9999), quantity="amplitude"
    )
    assert np.isnan(whole.values).sum() == 100
    shifted = open_scene(tmp_path / "vv.tif", quantity="amplitude", crs="EPSG:3395", resolution=14.1)
    assert set(np.unique(np.round(shifted.values[np.isfinite(shifted.values)], 3))) == {100.0}
    hole = np.isnan(shifted.values[0][5:-5, 5:-5]).sum()
    assert hole == pytest.approx(100, rel=0.15)


# Where to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lon", "lat", "crs"),
    [
        (-180.0, 10.0, "EPSG:32601"), (179.9, -10.0, "EPSG:32760"), (180.0, 0.0, "EPSG:32601"),
        (14.9, 45.0, "EPSG:32633"), (0.0, -0.1, "EPSG:32731"), (30.0, 84.5, "EPSG:32661"),
        (30.0, -80.5, "EPSG:32761"),
    ],
)  # fmt: skip
def test_zone(lon, lat, crs):
    assert choose_local_crs(lon, lat) == crs


@pytest.mark.parametrize(("lon", "lat"), [(179.99, 10.0), (-60.0, 85.0), (100.0, -84.0)])
def test_control_points_across_the_antimeridian_and_at_the_poles(tmp_path, lon, lat):
    control = curved_control(300, 400, lon=lon, lat=lat)
    path = write_raster(tmp_path / "vv.tif", speckle((300, 400)), crs=None, transform=None, gcps=control)
    scene = open_scene(path)
    rows, cols = decode_attributes(scene)["scene_grid"].shape
    assert rows * cols < 8 * 300 * 400
    assert np.isfinite(scene.values).sum() > 50_000


def test_a_geographic_grid_across_the_antimeridian(tmp_path):
    values = speckle((200, 300))
    across = Affine(1e-4, 0.0, 179.985, 0.0, -1e-4, 10.0)
    scene = open_scene(write_raster(tmp_path / "vv.tif", values, crs="EPSG:4326", transform=across))
    assert decode_attributes(scene)["scene_grid"].crs == "EPSG:32601"
    assert np.isfinite(scene.values).mean() > 0.97
    back = open_scene(tmp_path / "vv.tif", crs="EPSG:3832")  # Mercator around the Pacific
    assert np.isfinite(back.values).mean() > 0.97


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:3395"])
def test_a_crs_that_ends_at_the_antimeridian_is_refused_for_a_scene_across_it(tmp_path, crs):
    values = speckle((200, 300))
    utm = Affine(10.0, 0.0, 819_000.0, 0.0, -10.0, 8_119_000.0)
    north_up = write_raster(tmp_path / "utm_vv.tif", values, crs="EPSG:32760", transform=utm)
    control = curved_control(300, 400, lon=179.99, lat=10.0)
    curved = write_raster(
        tmp_path / "gcp_vv.tif", speckle((300, 400)), crs=None, transform=None, gcps=control
    )
    for path in (north_up, curved):
        with pytest.raises(GeoreferenceError, match=rf"{crs} tears the scene apart.*--crs"):
            open_scene(path, crs=crs)
        assert np.isfinite(open_scene(path, crs="EPSG:3832").values).mean() > 0.4  # around the Pacific
    beside = write_raster(
        tmp_path / "beside_vv.tif", values, crs="EPSG:32760", transform=Affine.translation(-200_000, 0) * utm
    )
    assert np.isfinite(open_scene(beside, crs=crs).values).mean() > 0.9


def test_a_grid_too_large_for_its_zone_is_refused(tmp_path):
    world = Affine(1.0, 0.0, -180.0, 0.0, -1.0, 90.0)
    path = write_raster(tmp_path / "vv.tif", speckle((180, 360)), crs="EPSG:4326", transform=world)
    with pytest.raises(GeoreferenceError, match="--crs"):
        open_scene(path)


# Control points ----------------------------------------------------------------------------------


def test_too_few_control_points(tmp_path):
    control = curved_control(30, 40, count=(2, 2))
    path = write_raster(tmp_path / "vv.tif", speckle((30, 40)), crs=None, transform=None, gcps=control)
    with pytest.warns(GeolocationWarning, match="4 ground control points"):
        scene = open_scene(path)
    assert np.isfinite(scene.values).any()
    write_raster(path, speckle((30, 40)), crs=None, transform=None, gcps=control[:3])
    with pytest.raises(GeoreferenceError, match="at least 4"):
        open_scene(path)
    # Without its fourth point such an image cannot be placed, so what the rest say of it is not known.
    bent = [(0.0, float(i), 12 + i / 1e4, 45.0) for i in (0, 20, 40)] + [(30.0, 0.0, 12.0, 44.997)]
    write_raster(path, speckle((30, 40)), crs=None, transform=None, gcps=bent)
    with pytest.warns(GeolocationWarning, match="4 ground control points"):
        scene = open_scene(path)
    assert np.isfinite(scene.values).mean() > 0.5
    line = [(float(i), float(i), 12 + i / 1e4, 45 + i / 1e4) for i in range(12)]
    write_raster(path, speckle((30, 40)), crs=None, transform=None, gcps=line)
    with pytest.raises(GeoreferenceError, match="one line"):
        open_scene(path)


def test_control_points_that_disagree_are_warned_of(tmp_path):
    draw = np.random.default_rng(1)
    control = [(r, c, x + draw.normal(0, 0.004), y) for r, c, x, y in curved_control(300, 400)]
    path = write_raster(tmp_path / "vv.tif", speckle((300, 400)), crs=None, transform=None, gcps=control)
    with pytest.warns(GeolocationWarning, match="misplaced by"):
        scene = open_scene(path)
    assert scene.attrs["geolocation_rmse_m"] > 100


@given(st.integers(0, 2**32 - 1), st.integers(4, 40))
@settings(max_examples=20)
def test_the_spline_is_the_thin_plate_spline(seed, count):
    draw = np.random.default_rng(seed)
    points = draw.uniform(0, 1, (count, 2)) * [3e5, 1e5] + [5e5, 5e6]
    values = draw.normal(size=(count, 2))
    at = draw.uniform(0, 1, (50, 2)) * [3e5, 1e5] + [5e5, 5e6]
    unit = (points - points.mean(axis=0)) / 1e5
    expected = RBFInterpolator(unit, values, kernel="thin_plate_spline", degree=1)(
        (at - points.mean(axis=0)) / 1e5
    )
    spline = ThinPlateSpline.fit(points, values)
    np.testing.assert_allclose(spline(at), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(spline(points), values, atol=1e-6)
    assert np.concatenate([spline(at[:7]), spline(at[7:])]).tobytes() == spline(at).tobytes()


@pytest.mark.parametrize(
    ("pixel", "factor"), [(10.0, 2), (10.13, 2), (9.99, 2), (11.0, 1), (6.7, 3), (7.5, 2)]
)
def test_what_is_averaged_does_not_hang_on_a_hair(tmp_path, pixel, factor):
    """A scene of "10 m" measures 10.07 m here and 10.13 m there: at 20 m all of its looks are wanted."""
    transform = Affine(pixel, 0, 500_000, 0, -pixel, 5_000_000)
    path = write_raster(tmp_path / "vv.tif", speckle((300, 300)), transform=transform)
    reader, _ = find_reader(open_scene(path, crs="EPSG:32634", resolution=20))
    assert reader.factors == (factor, factor)
