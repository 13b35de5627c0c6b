import json

import geopandas
import numpy as np
import pandas
import pytest
import shapely
from support.scene_fixtures import speckle, write_raster, write_safe, zip_safe

from sar2eo.errors import PairsError, SceneError
from sar2eo.pairs.index import create_chip_tags
from sar2eo.scenes import display_name, open_scene
from sar2eo.scenes.sources import Source, expand_sources

TIFF = "image/tiff; application=geotiff"
SQUARE = shapely.box(14.0, 45.0, 15.0, 46.0)


def raster(path, seed=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_raster(path, speckle((20, 30), seed), names=["VV"])


def names(sources, folder):
    return [source.href.removeprefix(f"{folder}/") for source in sources]


@pytest.fixture
def archive(tmp_path):
    for name in ("b.tif", "a.tif", "deep/er/c.TIF", ".hidden/d.tif", "out.tif.partial/e.tif"):
        raster(tmp_path / name)
    for name in ("b.tif.msk", "b.tif.ovr", "b.tif.aux.xml", "readme.txt", "a.json"):
        (tmp_path / name).write_text("{}")
    write_safe(tmp_path)
    return tmp_path


SAFE = "S1B_IW_GRDH_1SDV_20190304T050607_20190304T050632_015205_01C6F5_ABCD.SAFE"


def test_a_folder_is_its_rasters_and_products(archive):
    assert names(expand_sources([str(archive)], "sar"), archive) == [
        SAFE, "a.tif", "b.tif", "deep/er/c.TIF",
    ]  # fmt: skip


def test_globs_files_and_products(archive):
    assert names(expand_sources([f"{archive}/*.tif*"], "sar"), archive) == ["a.tif", "b.tif"]
    found = expand_sources([f"{archive}/**/*.TIF", f"{archive}/b.tif"], "sar")
    assert names(found, archive) == ["deep/er/c.TIF", "b.tif"]
    zipped = zip_safe(archive / SAFE, archive / "product.zip")
    assert names(expand_sources([str(zipped), str(archive / SAFE)], "sar"), archive) == ["product.zip", SAFE]


def test_each_scene_once_in_the_order_given(archive, monkeypatch):
    monkeypatch.chdir(archive)
    given = ["b.tif", f"{archive}/b.tif", "./deep/../b.tif", ".", "*.tif"]
    assert [s.href for s in expand_sources(given, "sar")] == ["b.tif", SAFE, "a.tif", "deep/er/c.TIF"]
    manifest = f"{SAFE}/manifest.safe"
    assert [s.href for s in expand_sources([manifest, SAFE], "sar")] == [manifest]


def test_what_needs_no_look_stays_as_it_is():
    given = ["https://example.com/a.tif?sig=1", "s3://bucket/b.tif", "/vsimem/c.tif", "VV=a.tif,VH=b.tif"]
    assert expand_sources(given, "sar") == [Source(text) for text in given]


@pytest.mark.parametrize("given", ["none.tif", "none/*.tif", "empty"])
def test_what_names_nothing_is_an_error(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    raster(tmp_path / "a.tif")
    with pytest.raises(PairsError, match=rf"^{given.replace('*', '[*]')}: no "):
        expand_sources(["a.tif", given], "eo")
    with pytest.raises(PairsError, match="no EO scenes were given"):
        expand_sources([], "eo")


def item(name, assets, geometry=SQUARE, **properties):
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "links": [],
        "geometry": json.loads(shapely.to_geojson(geometry)), "bbox": list(geometry.bounds),
        "properties": {"datetime": "2022-03-04T05:06:07Z", **properties}, "assets": assets,
    }  # fmt: skip


def write_items(folder, items, name="items.json"):
    (folder / name).write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return f"{folder / name}"


@pytest.fixture
def collection(tmp_path):
    raster(tmp_path / "data/one.tif", 1)
    raster(tmp_path / "data/two.tif", 2)
    sar = {"sar:polarizations": ["VV"], "platform": "sentinel-1a", "sat:orbit_state": "ascending"}
    vv = [{"vv": {"href": f"./data/{name}.tif", "type": TIFF}} for name in ("one", "two")]
    visual = {"visual": {"href": "data/rgb.tif", "type": TIFF}}
    items = [
        item("A", vv[0], **sar),
        item("E", visual, platform="sentinel-2b"),
        item("B", vv[1], **{**sar, "datetime": "2022-03-05T05:06:07Z"}),
    ]
    return write_items(tmp_path, items)


def test_an_item_collection_gives_the_items_of_the_role(collection):
    sar, eo = expand_sources([collection], "sar"), expand_sources([collection], "eo")
    assert [s.href for s in sar] == [f"{collection}#A", f"{collection}#B"]
    assert [s.datetime for s in sar] == ["2022-03-04T05:06:07Z", "2022-03-05T05:06:07Z"]
    assert (sar[0].platform, sar[0].orbit_direction) == ("Sentinel-1A", "ascending")
    assert sar[0].footprint.equals(SQUARE)
    assert [(s.href, s.platform) for s in eo] == [(f"{collection}#E", "Sentinel-2B")]
    assert expand_sources([f"{collection}#B"], "sar") == [sar[1]]


def test_one_item_of_a_collection_is_opened(collection):
    scene = open_scene(f"{collection}#B")
    np.testing.assert_array_equal(scene.values[0], speckle((20, 30), 2))
    assert scene.attrs["datetime"] == "2022-03-05T05:06:07Z"
    with pytest.raises(SceneError, match="no item of this name"):
        open_scene(f"{collection}#C")


def test_a_single_item(tmp_path, collection):
    one = tmp_path / "item.json"
    one.write_text(json.dumps(item("A", {"vv": {"href": "data/one.tif", "type": TIFF}})))
    assert [s.href for s in expand_sources([str(one)], "sar")] == [str(one)]
    with pytest.raises(PairsError, match=r"no EO asset .* among vv"):
        expand_sources([str(one)], "eo")


def test_collections_that_offer_nothing(tmp_path):
    thumbnail = item("A", {"thumbnail": {"href": "a.png", "type": "image/png"}})
    with pytest.raises(PairsError, match=r"items.json: no SAR scene there"):
        expand_sources([write_items(tmp_path, [thumbnail])], "sar")
    (tmp_path / "catalog.json").write_text('{"type": "Catalog"}')
    with pytest.raises(PairsError, match="a Catalog: give a STAC item"):
        expand_sources([str(tmp_path / "catalog.json")], "sar")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(PairsError, match="neither STAC nor GeoJSON"):
        expand_sources([str(tmp_path / "broken.json")], "sar")


def write_table(table, crs="EPSG:4326", **columns):
    frame = geopandas.GeoDataFrame(columns, geometry=[SQUARE, shapely.box(16, 45, 17, 46)], crs="EPSG:4326")
    frame = frame.to_crs(crs)
    frame.to_parquet(table) if table.suffix == ".parquet" else frame.to_file(table)
    return str(table)


@pytest.mark.parametrize(
    ("name", "crs"),
    [
        ("t.geojson", "EPSG:4326"),
        *((n, c) for n in ("t.gpkg", "t.parquet") for c in ("EPSG:4326", "EPSG:3857")),
    ],
)
def test_tables_of_footprints(tmp_path, name, crs):
    times = pandas.to_datetime(["2022-03-04T05:06:07Z", None])
    path = write_table(
        tmp_path / name, crs, href=["sub/a.tif", "/data/b.tif"], datetime=times, platform=["X-1", None]
    )
    first, second = expand_sources([path], "eo")
    assert (first.href, second.href) == (str(tmp_path / "sub/a.tif"), "/data/b.tif")
    assert (first.datetime, second.datetime) == ("2022-03-04T05:06:07Z", None)
    assert (first.platform, second.platform) == ("X-1", None)
    assert first.footprint.symmetric_difference(SQUARE).area < 1e-6
    assert first.orbit_direction is None


def test_times_as_text_and_polarisations_in_tables(tmp_path):
    hrefs = ["VV=a.tif,VH=s3://b/c.tif", "https://example.com/a.tif"]
    path = write_table(tmp_path / "t.gpkg", href=hrefs, datetime=["2022-03-04", "2022-03-04T01:00:00+02:00"])
    found = expand_sources([path], "sar")
    assert [s.href for s in found] == [f"VV={tmp_path}/a.tif,VH=s3://b/c.tif", hrefs[1]]
    assert [s.datetime for s in found] == ["2022-03-04T00:00:00Z", "2022-03-03T23:00:00Z"]


def test_tables_that_cannot_be_used(tmp_path):
    with pytest.raises(PairsError, match="column href, and this one has path"):
        expand_sources([write_table(tmp_path / "a.gpkg", path=["a", "b"])], "sar")
    with pytest.raises(PairsError, match="row 2 has no href"):
        expand_sources([write_table(tmp_path / "b.gpkg", href=["a", None])], "sar")
    with pytest.raises(PairsError, match=r"row 1: datetime='soon'"):
        expand_sources([write_table(tmp_path / "c.gpkg", href=["a", "b"], datetime=["soon", "x"])], "sar")
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    with pytest.raises(PairsError, match="not a file of geometries that can be read"):
        expand_sources([str(tmp_path / "d.parquet")], "sar")


def test_a_table_and_a_folder_know_more_together(tmp_path):
    raster(tmp_path / "sub/a.tif")
    table = write_table(tmp_path / "t.gpkg", href=["sub/a.tif", "b.tif"], datetime=["2022-03-04", None])
    found = expand_sources([str(tmp_path / "sub"), table], "sar")
    assert len(found) == 2
    assert found[0].datetime == "2022-03-04T00:00:00Z"
    assert found[0].footprint.equals(SQUARE)


def test_footprints_across_the_antimeridian(tmp_path):
    across = shapely.Polygon([(179, 10), (-179, 10), (-179, 11), (179, 11)])
    path = write_items(tmp_path, [item("A", {"visual": {"href": "a.tif", "type": TIFF}}, geometry=across)])
    (source,) = expand_sources([path], "eo")
    halves = shapely.union_all([shapely.box(179, 10, 180, 11), shapely.box(-180, 10, -179, 11)])
    assert source.footprint.symmetric_difference(halves).area < 1e-9


def test_what_is_recorded_of_signed_urls_holds_no_secret():
    signed = "https://store.example/a_vv.tif?sv=2024&sig=SECRET"
    assert display_name(signed) == "https://store.example/a_vv.tif"
    both = f"VV={signed},VH={signed.replace('vv', 'vh')}"
    assert display_name(both) == "VV=https://store.example/a_vv.tif,VH=https://store.example/a_vh.tif"
    common = dict.fromkeys(("quantity", "calibration", "sar_datetime", "eo_datetime"))
    common |= {"polarisations": ["VV", "VH"], "scaling": [1.0, 2.0]}
    tags = create_chip_tags(common | {"sar_href": display_name(both), "eo_href": "/data/eo.tif"})
    assert tags["SAR_SOURCE"] == "VV=a_vv.tif,VH=a_vh.tif"
    assert tags["EO_SOURCE"] == "eo.tif"
