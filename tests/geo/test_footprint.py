from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from shapely.geometry import MultiPolygon, Polygon, box

from sar2eo.errors import GeoreferenceError
from sar2eo.geo.footprint import lonlat_bounds, to_lonlat, trace_footprint
from sar2eo.geo.grid import Grid


def grid_of(rows: int, cols: int, crs: str = "EPSG:32611", at=(380_000.0, 3_770_000.0), pixel=10.0) -> Grid:
    return Grid(crs, (pixel, 0.0, at[0], 0.0, -pixel, at[1]), (rows, cols))


def test_a_full_scene_is_its_rectangle() -> None:
    grid = grid_of(1000, 1700)
    found = trace_footprint(np.ones((100, 170), bool), grid)
    assert found.normalize().equals(box(*grid.bounds).normalize())
    assert len(found.exterior.coords) == 5
    assert found.exterior.is_ccw


def test_nothing_valid_is_an_empty_polygon() -> None:
    assert trace_footprint(np.zeros((10, 10), bool), grid_of(10, 10)).is_empty


def test_holes_and_islands_are_kept_above_a_size() -> None:
    valid = np.zeros((100, 100), bool)
    valid[:60, :60] = True
    valid[10:30, 10:20] = False  # a hole of 200
    valid[40:42, 40:42] = False  # a hole of 4
    valid[80:90, 80:100] = True  # an island of 200
    valid[95, 5] = True  # an island of 1
    found = trace_footprint(valid, grid_of(1000, 1000))
    assert isinstance(found, MultiPolygon)
    assert found.area == pytest.approx((3600 - 200 + 200) * 100**2)
    assert sum(len(part.interiors) for part in found.geoms) == 1
    assert len(trace_footprint(valid, grid_of(1000, 1000), smallest=1).geoms) == 3


def test_a_tiny_scene_is_not_left_out() -> None:
    valid = np.zeros((5, 5), bool)
    valid[2, 1:3] = True
    assert trace_footprint(valid, grid_of(5, 5)).area > 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), cols=st.integers(1, 40))
def test_the_outline_stays_within_a_pixel_of_the_validity(seed: int, rows: int, cols: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.random((-(-rows // 8), -(-cols // 8))) > 0.4
    valid = np.kron(coarse, np.ones((8, 8), bool))[:rows, :cols]
    grid = grid_of(rows * 10, cols * 10)
    found = trace_footprint(valid, grid, smallest=1)
    assert found.is_valid
    y, x = np.nonzero(np.ones_like(valid))
    centres = shapely.points(grid.bounds[0] + (x + 0.5) * 100, grid.bounds[3] - (y + 0.5) * 100)
    near = shapely.dwithin(found, centres, 100)
    inside = shapely.contains(found.buffer(-100), centres)
    assert near[valid.ravel()].all(), "every valid pixel is near the polygon"
    assert valid.ravel()[inside].all(), "what is well inside is valid"


def test_a_rotated_grid_is_followed() -> None:
    grid = Grid("EPSG:32611", (6.0, 8.0, 1000.0, 8.0, -6.0, 2000.0), (50, 80))
    corners = [grid.affine @ at for at in ((0, 0), (80, 0), (80, 50), (0, 50))]
    found = trace_footprint(np.ones((50, 80), bool), grid)
    assert found.symmetric_difference(Polygon(corners)).area < 1e-6


def test_lonlat_agrees_with_the_projection() -> None:
    area = box(380_000, 3_700_000, 480_000, 3_770_000)
    found = to_lonlat(area, "EPSG:32611")
    assert isinstance(found, Polygon)
    assert found.exterior.is_ccw
    to_utm = Transformer.from_crs("EPSG:4326", "EPSG:32611", always_xy=True)
    back = shapely.transform(found, lambda xy: np.column_stack(to_utm.transform(xy[:, 0], xy[:, 1])))
    # The parallel through the corners would be a hundred times further off.
    assert back.symmetric_difference(area).area < 1e-4 * area.area
    assert lonlat_bounds(found) == found.bounds


def test_holes_survive_the_way_to_lonlat() -> None:
    area = box(0, 0, 100, 100).difference(box(40, 40, 60, 60))
    found = to_lonlat(area, "EPSG:4326") if area.bounds[3] <= 90 else to_lonlat(area, "EPSG:3857")
    assert len(found.interiors) == 1


def test_the_antimeridian_splits() -> None:
    # UTM zone 60 south, reaching past 180 degrees at Fiji.
    area = box(600_000, 7_900_000, 900_000, 8_100_000)
    found = to_lonlat(area, "EPSG:32760")
    assert isinstance(found, MultiPolygon)
    assert len(found.geoms) == 2
    assert found.is_valid
    west, south, east, north = lonlat_bounds(found)
    assert 177 < west < 180
    assert -180 < east < -178
    assert -20 < south < north < -16
    assert found.area == pytest.approx(300 / 111.2 / np.cos(np.radians(18)) * 200 / 111.2, rel=0.03)


@pytest.mark.parametrize("west", [170.0, -190.0, 530.0])
def test_longitudes_beyond_180_come_back(west: float) -> None:
    found = to_lonlat(box(west, 10, west + 20, 20), "EPSG:4326")
    assert found.symmetric_difference(box(170, 10, 180, 20).union(box(-180, 10, -170, 20))).area < 1e-9
    assert lonlat_bounds(found) == (170, 10, -170, 20)


def test_an_area_that_ends_at_the_antimeridian_is_one_part() -> None:
    found = to_lonlat(box(170, 10, 180, 20), "EPSG:4326")
    assert isinstance(found, Polygon)
    assert lonlat_bounds(found) == (170, 10, 180, 20)


@pytest.mark.parametrize(("crs", "sign"), [("EPSG:3413", 1), ("EPSG:3031", -1)])
def test_a_scene_over_a_pole_holds_the_pole(crs: str, sign: int) -> None:
    found = to_lonlat(box(-500_000, -300_000, 500_000, 400_000), crs)
    assert found.is_valid
    assert found.bounds[0] == -180
    assert found.bounds[2] == 180
    to_crs = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 500), sign * rng.uniform(83, 90, 500)
    x, y = to_crs.transform(lon, lat)
    inside = (np.abs(x) < 500_000) & (y > -300_000) & (y < 400_000)
    edge = np.minimum(np.abs(np.abs(x) - 500_000), np.minimum(np.abs(y + 300_000), np.abs(y - 400_000)))
    clear = edge > 5_000
    assert (shapely.contains_xy(found, lon, lat) == inside)[clear].all()
    assert lonlat_bounds(found)[0] == -180


def test_what_has_no_place_on_earth_is_refused() -> None:
    with pytest.raises(GeoreferenceError, match="no longitude and latitude"):
        to_lonlat(box(1e9, 1e9, 1.1e9, 1.1e9), "EPSG:32611")


def test_threads_do_not_take_each_others_warnings() -> None:
    grid = Grid("EPSG:32633", (10, 0, 5e5, 0, -10, 5e6), (64, 64))
    with ThreadPoolExecutor(8) as pool:
        areas = list(pool.map(lambda _: trace_footprint(np.ones((64, 64), bool), grid).area, range(400)))
    assert areas == [640.0**2] * 400
