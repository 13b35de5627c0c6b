"""Regions: bounds, windows and polygons of a scene."""

import json
import os
import time
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import Transformer
from rasterio.features import geometry_mask
from support.command_line import run
from support.scenes import CRS, TRANSFORM, amplitude, write_scene

import sar2eo
from sar2eo.errors import SettingsError
from sar2eo.geo.grid import Grid
from sar2eo.scenes.lazy_array import decode_attributes
from sar2eo.settings import RegionSettings
from sar2eo.translation.region import clip_to, cut_region, read_area


@pytest.mark.parametrize("bounds", [(33.7, -118.3, 33.8, -118.2), (-1e9, -1e9, 1e9, 1e9)])
def test_bounds_that_are_nowhere_on_earth_are_a_slip_of_the_user(
    bounds: tuple[float, float, float, float],
) -> None:
    with pytest.raises(SettingsError, match="longitude before latitude"):
        Grid.create("EPSG:3395", TRANSFORM, (100, 100)).window_of(bounds, "EPSG:4326")


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4269"])
@pytest.mark.parametrize("left", [170.0, -190.0])
@pytest.mark.parametrize(
    ("bounds", "cols"),
    [
        ((179.0, 56.0, -179.0, 58.0), (900, 200)),
        ((175.0, 56.0, 178.0, 58.0), (500, 300)),
        ((-185.0, 56.0, -182.0, 58.0), (500, 300)),
        ((-179.0, 56.0, -178.0, 58.0), (1100, 100)),
    ],
)
def test_bounds_in_degrees_may_cross_the_antimeridian(
    bounds: tuple[float, float, float, float], cols: tuple[int, int], left: float, crs: str
) -> None:
    grid = Grid.create("EPSG:4326", Affine(0.01, 0, left, 0, -0.01, 60), (500, 2000))
    assert grid.window_of(bounds, crs) == (200, cols[0], 200, cols[1])
    projected = Grid.create("EPSG:32601", Affine(100, 0, 300000, 0, -100, 6500000), (8000, 4000))
    west, _, _, north = bounds
    found = projected.window_of((179.0, 56.0, -179.0, 58.0), crs)
    east, _ = Transformer.from_crs(crs, "EPSG:32601", always_xy=True).transform(-179.0, 58.0)
    assert found.stop_col == pytest.approx((east - 300000) / 100, abs=1)
    assert found.col == 0  # the grid begins east of 179
    # In metres it is a slip still, as are west and east in the wrong order, and south above north.
    for slip, of in (
        ((700000.0, 0.0, 600000.0, 1.0), "EPSG:32601"),
        ((-177.0, 56.0, -178.0, 57.0), crs),
        ((west, north, west + 1, north), crs),
    ):
        with pytest.raises(SettingsError, match="are empty"):
            projected.window_of(slip, of)


RING = [[-117.0, 36.0], [-116.9, 36.0], [-116.9, 36.1], [-117.0, 36.0]]
POLYGON = {"type": "Polygon", "coordinates": [RING]}
NESTED = {"type": "GeometryCollection", "geometries": [POLYGON]}


@pytest.mark.parametrize("geometry", [POLYGON, NESTED, {"type": "MultiPolygon", "coordinates": [[RING]]}])
def test_features_may_lack_a_geometry_or_hold_a_collection(geometry: object, tmp_path: Path) -> None:
    features = [{"type": "Feature", "properties": {}, "geometry": g} for g in (geometry, None)]
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8-sig")
    area = read_area(path, Grid.create("EPSG:4326", (0.1, 0, -118, 0, -0.1, 37), (20, 20)))
    assert area.area == pytest.approx(0.005)


def test_areas_come_in_any_crs_and_format_of_vectors(tmp_path: Path) -> None:
    grid = Grid.create("EPSG:32611", (10, 0, 500_000, 0, -10, 4_000_000), (100, 100))
    field = shapely.box(500_100, 3_999_200, 500_300, 3_999_500)
    table = geopandas.GeoDataFrame(geometry=[field, None], crs=grid.crs)
    for name in ("a.gpkg", "a.shp", "a.geojson"):
        table.to_crs("EPSG:4326" if name == "a.geojson" else grid.crs).to_file(tmp_path / name)
        assert read_area(tmp_path / name, grid).symmetric_difference(field).area < 1e-3 * field.area
    table.to_parquet(tmp_path / "a.parquet")
    assert read_area(tmp_path / "a.parquet", grid).equals(field)
    table.to_file(tmp_path / "a.gpkg", layer="another")
    with pytest.raises(SettingsError, match=r"--aoi .*has 2 layers \(a, another\)"):
        read_area(tmp_path / "a.gpkg", grid)
    (tmp_path / "a.prj").unlink()
    with pytest.raises(SettingsError, match="no CRS"):
        read_area(tmp_path / "a.shp", grid)
    with pytest.raises(SettingsError, match="no such file"):
        read_area(tmp_path / "b.gpkg", grid)


def test_long_edges_of_an_area_follow_the_globe(tmp_path: Path) -> None:
    grid = Grid.create("EPSG:32611", (100, 0, 400_000, 0, -100, 3_800_000), (2000, 2000))
    path = tmp_path / "area.geojson"
    geopandas.GeoDataFrame(geometry=[shapely.box(-118, 33, -116, 34)], crs="EPSG:4326").to_file(path)
    # On the parallel of 33 degrees north, at the central meridian, where a straight line would lie 450 m off.
    x, y = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True).transform(-117.0, 33.0)
    found = read_area(path, grid)
    assert shapely.distance(found.boundary, shapely.Point(x, y)) < 1


@pytest.mark.parametrize("size_m", [10, 1000])
@pytest.mark.parametrize("name", ["EPSG:32611", "EPSG:3995", "EPSG:32701"])
def test_half_a_world_around_a_scene_holds_it(name: str, size_m: int, tmp_path: Path) -> None:
    corner = {"EPSG:32611": (5e5, 38e5), "EPSG:3995": (-5e5, 5e5), "EPSG:32701": (182e3, 81e5)}[name]
    grid = Grid.create(name, (size_m, 0, corner[0], 0, -size_m, corner[1]), (1000, 1000))
    path, scene = tmp_path / "land.geojson", shapely.box(*grid.bounds)
    for box in (shapely.box(-180, -88, 180, 90), shapely.box(-180, -60, 180, 90)):
        geopandas.GeoDataFrame(geometry=[box], crs="EPSG:4326").to_file(path)
        missing = scene.difference(read_area(path, grid)).area
        # Around the pole and on the antimeridian, where the box ends, a hair may be left between its sides.
        assert missing < 1e-6 * scene.area


def test_longitudes_may_be_counted_from_either_side(tmp_path: Path) -> None:
    grid = Grid.create("EPSG:4326", (1e-4, 0, 242, 0, -1e-4, 34), (100, 100))
    path = tmp_path / "area.geojson"
    geopandas.GeoDataFrame(geometry=[shapely.box(-117.995, 33.99, -117.99, 33.995)], crs=4326).to_file(path)
    assert read_area(path, grid).bounds == pytest.approx((242.005, 33.99, 242.01, 33.995), abs=1e-9)
    across = Grid.create("EPSG:32601", (100, 0, 300_000, 0, -100, 7e6), (1000, 1000))
    geopandas.GeoDataFrame(geometry=[shapely.box(179, 60, 180, 64)], crs=4326).to_file(path)
    west = Transformer.from_crs("EPSG:4326", across.crs, always_xy=True).transform(179.5, 62.8)
    assert read_area(path, across).contains(shapely.Point(west))


@pytest.mark.parametrize(("west", "col"), [(170, 3500), (-180, 0)])
def test_an_area_that_ends_at_the_antimeridian_has_its_own_width_on_a_global_grid(
    west: float, col: int, tmp_path: Path
) -> None:
    grid = Grid.create("EPSG:4326", (0.1, 0, -180, 0, -0.1, 90), (1800, 3600))
    path = tmp_path / "area.geojson"
    geopandas.GeoDataFrame(geometry=[shapely.box(west, 0, west + 10, 10)], crs=4326).to_file(path)
    area = read_area(path, grid)
    assert area.geom_type == "Polygon"
    assert len(area.exterior.coords) == 5
    assert grid.window_of(area.bounds) == (800, col, 100, 100)


def test_projected_areas_are_placed_on_longitudes_from_0_to_360(tmp_path: Path) -> None:
    grid = Grid.create("EPSG:4326", (0.01, 0, 242, 0, -0.01, 34), (100, 100))
    path = tmp_path / "area.gpkg"
    field = shapely.box(440_000, 3_700_000, 450_000, 3_710_000)
    geopandas.GeoDataFrame(geometry=[field], crs="EPSG:32611").to_file(path)
    west, south, east, north = read_area(path, grid).bounds
    assert 242 < west < east < 243
    assert 33 < south < north < 34


def test_polygons_beside_the_scene_are_told_and_those_of_other_scenes_add_nothing(tmp_path: Path) -> None:
    source = write_scene(tmp_path / "scene_vv.tif", amplitude((128, 128), 3))
    west, east = (
        shapely.box(480_000, 3_999_000, 481_000, 3_999_500),
        shapely.box(510_000, 3_999_000, 511_000, 4e6),
    )
    inside = shapely.box(500_200, 3_999_500, 500_500, 3_999_800)
    geopandas.GeoDataFrame(geometry=[west, east], crs=CRS).to_file(tmp_path / "beside.gpkg")
    geopandas.GeoDataFrame(geometry=[west, inside, east], crs=CRS).to_file(tmp_path / "sites.gpkg")
    scene = sar2eo.open_scene(source)
    grid = decode_attributes(scene)["scene_grid"]
    with pytest.raises(SettingsError, match="none of its polygons touches the scene"):
        cut_region(scene, grid, RegionSettings(aoi=str(tmp_path / "beside.gpkg")))
    part, area = cut_region(scene, grid, RegionSettings(aoi=str(tmp_path / "sites.gpkg")))
    assert part.shape == (1, 30, 30)
    assert area.equals(inside)


def test_a_polygon_that_only_touches_the_scene_adds_no_pixel(tmp_path: Path) -> None:
    scene = sar2eo.open_scene(write_scene(tmp_path / "scene_vv.tif", amplitude((128, 128), 3)))
    grid = decode_attributes(scene)["scene_grid"]
    west, _, _, north = grid.bounds
    inside = shapely.box(west + 200, north - 500, west + 500, north - 200)
    beside = shapely.box(west - 900, north - 1000, west, north - 100)
    geopandas.GeoDataFrame(geometry=[inside, beside], crs=CRS).to_file(tmp_path / "tiles.gpkg")
    part, area = cut_region(scene, grid, RegionSettings(aoi=str(tmp_path / "tiles.gpkg")))
    assert part.shape == (1, 30, 30)
    assert area.equals(inside)


@pytest.mark.parametrize("crs", ["+proj=laea +lat_0=36 +lon_0=-117 +datum=WGS84 +units=m", "EPSG:32612"])
def test_a_part_of_a_warped_scene_has_the_pixels_of_the_whole(crs: str, tmp_path: Path) -> None:
    source = write_scene(tmp_path / "scene_vv.tif", amplitude((150, 140), 3))
    scene = sar2eo.open_scene(source, crs=crs)
    settings = {"tile": 64, "overlap": 16, "scaling": (200.0,)}
    whole = sar2eo.translate(scene, "identity", **settings).eo.values
    part = sar2eo.translate(scene.isel(y=slice(40, 100), x=slice(30, 100)), "identity", **settings).eo.values
    np.testing.assert_array_equal(part, whole[:, 40:100, 30:100])
    # Given another CRS it is a scene of its own, of the pixels that it holds.
    moved = scene.isel(y=slice(40, 100), x=slice(30, 100)).rio.write_crs("EPSG:32633")
    own = sar2eo.translate(moved, "identity", **settings).eo.values
    assert np.abs(own.astype(int) - whole[:, 40:100, 30:100]).max() <= 1


def test_thousands_of_polygons_cost_little(tmp_path: Path) -> None:
    """They mask as their union does, are rasterised once, and stand in no tag."""
    source = write_scene(tmp_path / "scene_vv.tif", amplitude((600, 600), 3))
    west, north = TRANSFORM.c, TRANSFORM.f
    corners = [(west + 60 * i + 3, north - 60 * j - 3) for i in range(100) for j in range(100)]
    parcels = [shapely.Point(x + 30, y - 30).buffer(26, quad_segs=4) for x, y in corners]
    bow_tie = [(0, 0), (903, -911), (907, 0), (0, -901)]
    parcels.append(shapely.Polygon([(west + x, north + y) for x, y in bow_tie]))
    geopandas.GeoDataFrame(geometry=parcels, crs=CRS).to_file(tmp_path / "parcels.gpkg")
    scene = sar2eo.open_scene(source)
    grid = decode_attributes(scene)["scene_grid"]
    dataset = sar2eo.translate(scene, "identity", tile=128, overlap=16, scaling=(200.0,), block=(128, 128))
    started = time.process_time()
    _, area = cut_region(scene, grid, RegionSettings(aoi=str(tmp_path / "parcels.gpkg")))
    valid = clip_to(dataset, area, grid).valid.values
    assert time.process_time() - started < 20, "joined, they take minutes"
    joined = shapely.union_all(shapely.make_valid(parcels))
    np.testing.assert_array_equal(valid, geometry_mask([joined], (600, 600), TRANSFORM, invert=True))
    flags = ("--model", "identity", "--tile", "128", "--overlap", "16", "--scaling-from", "200")
    done = run("translate", source, "--out", tmp_path / "eo.tif", "--aoi", tmp_path / "parcels.gpkg", *flags)
    assert done.exit_code == 0, done.output
    with rasterio.open(tmp_path / "eo.tif") as raster:
        np.testing.assert_array_equal(raster.dataset_mask() > 0, valid)
        assert max(map(len, raster.tags().values())) < 4000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"type": "Polygon", "coordinates": []}, "no polygon"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, float("nan")], [1, 1], [0, 0]]]}, r"no place|read"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, float("inf")], [1, 1], [0, 0]]]}, r"no place|read"),
        ({"type": "FeatureCollection", "features": []}, "no polygon"),
        (
            {"type": "Polygon", "coordinates": [[[5e5, 4e6], [6e5, 4e6], [6e5, 5e6], [5e5, 4e6]]]},
            "in degrees",
        ),
        ([], "not a file of geometries that can be read"),
    ],
)
def test_areas_that_are_none_say_why(content: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=words):
        read_area(path, Grid.create(CRS, TRANSFORM, (100, 100)))


def test_an_area_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "area.geojson")
    with pytest.raises(SettingsError, match=r"--aoi .*a pipe"):
        read_area(tmp_path / "area.geojson", Grid.create(CRS, TRANSFORM, (100, 100)))
